"""ClassScatter: batches, merges, files and processes all lead to the same statistics."""

from __future__ import annotations

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import calinski_harabasz_score

import deeprep
from deeprep import ClassScatter, class_scatter, reference


def make_data(num_rows=200, num_columns=6, num_classes=4, dtype=torch.float64, offset=0.0):
    labels = torch.randint(0, num_classes, (num_rows,))
    means = 3.0 * torch.randn(num_classes, num_columns, dtype=torch.float64)
    features = means[labels] + torch.randn(num_rows, num_columns, dtype=torch.float64) + offset
    return features.to(dtype), labels


def assert_same(a, b, tolerance):
    assert torch.equal(a.counts, b.counts)
    torch.testing.assert_close(a.means, b.means, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.sumsq, b.sumsq, rtol=tolerance, atol=0)
    if a.full:
        scale = float(b.pooled_scatter.diagonal().mean())
        torch.testing.assert_close(
            a.pooled_scatter, b.pooled_scatter, rtol=tolerance, atol=tolerance * scale
        )


@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 200), max_size=4),
    full=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    offset=st.sampled_from([0.0, 1e4]),
)
def test_chunked_updates_equal_one_update_equal_merge_of_parts(seed, cuts, full, dtype, offset):
    torch.manual_seed(seed)
    features, labels = make_data(dtype=dtype, offset=offset)
    labels[::7] = -100
    whole = class_scatter(features, labels, 4, full=full)
    updated, merged = ClassScatter(4, 6, full=full), ClassScatter(4, 6, full=full)
    edges = [0, *sorted(cuts), len(labels)]
    for begin, end in itertools.pairwise(edges):
        updated.update(features[begin:end], labels[begin:end])
        merged.merge(class_scatter(features[begin:end], labels[begin:end], 4, full=full))
    tolerance = 1e-10 if dtype == torch.float64 else 2e-6
    assert_same(updated, whole, tolerance)
    assert_same(merged, whole, tolerance)


@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    offset=st.sampled_from([0.0, 100.0, 1e6]),
    num_columns=st.sampled_from([1, 5, 130]),
)
def test_matrices_equal_the_reference(seed, dtype, offset, num_columns):
    torch.manual_seed(seed)
    if dtype in (torch.float16, torch.bfloat16):
        offset = min(offset, 100.0)
    features, labels = make_data(90, num_columns, dtype=dtype, offset=offset)
    s = class_scatter(features, labels, 4, full=True)
    expected = reference.class_scatter(features.double().numpy(), labels.numpy(), 4)
    scale = np.abs(expected.within).max()
    assert np.abs(s.within.numpy() - expected.within).max() <= 2e-6 * scale
    assert abs(float(s.within.trace()) - s.trace_within) <= 2e-6 * s.trace_within
    scale = np.abs(expected.between).max()
    assert np.abs(s.between.numpy() - expected.between).max() <= 1e-5 * scale
    assert s.trace_between("prior") == pytest.approx(expected.trace_between_prior, rel=1e-5)
    np.testing.assert_allclose(s.global_mean, expected.global_mean, rtol=1e-6, atol=1e-6)


def test_compression_is_calinski_harabasz_in_disguise():
    labels = torch.arange(300) % 5
    features = torch.randn(5, 8, dtype=torch.float64)[labels] + torch.randn(300, 8).double()
    expected = (300 - 5) / ((5 - 1) * calinski_harabasz_score(features.numpy(), labels.numpy()))
    assert deeprep.compression(class_scatter(features, labels)) == pytest.approx(expected, rel=1e-9)


def test_many_columns_use_every_panel_of_the_matrix():
    features, labels = make_data(300, 1200)
    s = class_scatter(features, labels, 4, full=True)
    expected = reference.class_scatter(features.numpy(), labels.numpy(), 4)
    np.testing.assert_allclose(s.within.numpy(), expected.within, rtol=0, atol=1e-12)


def test_numpy_dlpack_one_hot_and_reversed_inputs_are_the_same_data():
    features, labels = make_data(dtype=torch.float32)
    expected = class_scatter(features, labels)

    class SpeaksDLPack:
        def __init__(self, tensor):
            self.__dlpack__ = tensor.__dlpack__
            self.__dlpack_device__ = tensor.__dlpack_device__

    read_only = features.numpy().copy()
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y in [
            (features.numpy(), labels.numpy()),
            (read_only, labels.numpy().astype(np.int32)),
            (SpeaksDLPack(features), labels),
            (features, torch.nn.functional.one_hot(labels)),
            (features.numpy(), np.eye(4)[labels]),
            (features.numpy()[::-1].copy()[::-1], labels),
            (features.clone().requires_grad_(), labels),
        ]:
            assert_same(class_scatter(x, y), expected, 1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ClassScatter(0, 3), ValueError, "num_classes is 0, expected"),
        (lambda: ClassScatter(2, 0), ValueError, "num_features is 0, expected"),
        (lambda: ClassScatter(2.5, 3), TypeError, "num_classes is 2.5, expected"),
        (lambda: class_scatter([[1.0]], [0]), TypeError, "features is a list, expected a torch"),
        (
            lambda: class_scatter(np.ones((2, 2)), np.array([0.0, 1.0])),
            TypeError,
            "labels has dtype",
        ),
        (
            lambda: class_scatter(np.ones((2, 2)), np.array([[0.5, 0.5], [0, 1]])),
            ValueError,
            r"labels\[0\] is \[0.5, 0.5\], expected a one-hot row",
        ),
        (
            lambda: class_scatter(np.ones((2, 2)), np.eye(2), num_classes=3),
            ValueError,
            r"labels has shape \(2, 2\), expected \(2,\) or one-hot rows \(2, 3\)",
        ),
        (lambda: class_scatter(torch.ones(0, 2), torch.ones(0).long()), ValueError, "num_classes"),
        (
            lambda: class_scatter(np.ones((2, 2), ">f4"), np.zeros(2, int)),
            TypeError,
            "features has dtype >f4",
        ),
        (
            lambda: class_scatter(torch.ones(2, 2, device="meta"), torch.zeros(2).long(), 2),
            ValueError,
            "labels is on cpu, expected meta",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_bad_batch_leaves_a_full_state_untouched():
    features, labels = make_data()
    s = class_scatter(features, labels, 4, full=True)
    before = s.state_dict()
    with pytest.raises(ValueError, match=r"labels\[0\] is 9"):
        s.update(features[:1], torch.tensor([9]))
    for name, value in s.state_dict().items():
        assert torch.equal(value, before[name]) if torch.is_tensor(value) else value == before[name]


def test_no_samples_are_legal_but_statistics_say_they_are_undefined():
    s = ClassScatter(3, 2, full=True)
    s.update(torch.ones(0, 2), torch.ones(0, dtype=torch.int64))
    s.update(torch.ones(2, 2), torch.tensor([-100, -100]))
    assert s.num_samples == 0
    for statistic in ("trace_within", "global_mean", "within"):
        with pytest.raises(deeprep.UndefinedStatisticError, match=f"{statistic} is undefined"):
            getattr(s, statistic)
    with pytest.raises(deeprep.UndefinedStatisticError, match="no samples"):
        s.trace_between()


def test_empty_classes_are_left_out_and_reported_once():
    features, labels = make_data(num_classes=3)
    s = class_scatter(features, labels, 5)
    with pytest.warns(UserWarning, match="2 of 5 classes have no samples"):
        within_five = deeprep.compression(s)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deeprep.discrimination(s)
    assert within_five == deeprep.compression(class_scatter(features, labels, 3))


def test_the_warning_names_the_line_of_the_caller():
    features, labels = make_data(num_classes=3)
    for read in (lambda s: s.present, lambda s: deeprep.compression(s), lambda s: s.within):
        s = class_scatter(features, labels, 5, full=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read(s)
            s.trace_between()
        (warning,) = caught
        assert warning.filename == __file__


@pytest.mark.parametrize("ignore_index", [255, 2])  # 2 is a class otherwise
def test_ignore_index_skips_rows(ignore_index):
    features, labels = make_data()
    kept = labels != 2
    marked = torch.where(kept, labels, ignore_index)
    s = class_scatter(features, marked, 4, full=True, ignore_index=ignore_index)
    expected = class_scatter(features[kept], labels[kept], 4, full=True)
    assert_same(s, expected, 1e-12)


def test_state_dict_round_trip_and_refusals():
    features, labels = make_data(dtype=torch.float32)
    s = class_scatter(features, labels, 4, full=True)
    copy = ClassScatter(4, 6, full=True)
    copy.load_state_dict(s.state_dict())
    s.update(features, labels)
    copy.update(features, labels)
    assert_same(copy, s, 0)
    assert copy.unit_roundoff == s.unit_roundoff == 2.0**-24
    with pytest.raises(ValueError, match=r"state\['counts'\] has shape \(4,\)"):
        ClassScatter(5, 6, full=True).load_state_dict(s.state_dict())
    with pytest.raises(ValueError, match="state has full=True, expected full=False"):
        ClassScatter(4, 6).load_state_dict(s.state_dict())
    with pytest.raises(ValueError, match=r"state\['version'\] is None, expected 1"):
        copy.load_state_dict({})


@pytest.mark.parametrize("full", [False, True])
def test_a_state_made_in_inference_mode_goes_on_outside(full):
    features, labels = make_data()
    with torch.inference_mode():
        s = class_scatter(features, labels, 4, full=full)
    s.update(features, labels)
    s.merge(class_scatter(features, labels, 4, full=full))
    assert_same(s, class_scatter(features.repeat(3, 1), labels.repeat(3), 4, full=full), 1e-12)


def test_reset_forgets_everything():
    features, labels = make_data()
    s = class_scatter(features, labels, 4, full=True)
    s.reset()
    s.update(features, labels)
    assert_same(s, class_scatter(features, labels, 4, full=True), 0)


def test_what_a_state_derives_is_derived_once_and_anew_after_every_change():
    features, labels = make_data(dtype=torch.float32)
    s = class_scatter(features, labels, 5)
    other = class_scatter(features[:50], labels[:50], 5)
    saved = other.state_dict()
    broken = features.clone()
    broken[0] = torch.nan

    def derive():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return s.num_samples, s.present, s.nonfinite_classes, s.global_mean

    for change in (
        lambda: s.update(features[:10], labels[:10]),
        lambda: s.merge(other),
        lambda: s.load_state_dict(saved),
        lambda: s.update(broken, torch.full_like(labels, 4)),
    ):
        derive()
        kept = s._derived
        assert kept
        for value in derive()[1:]:  # which are the caller's to change
            value.clear() if isinstance(value, list) else value.zero_()
        assert s._derived is kept
        change()
        assert s._derived is not kept
        samples, present, nonfinite, mean = derive()
        assert samples == int(s.counts.sum())
        assert torch.equal(present, s.counts.nonzero().squeeze(1))
        assert nonfinite == ([4] if s.means.isnan().any() else [])
        expected = (s.counts.double() / samples) @ s.means
        assert torch.equal(mean.nan_to_num(), expected.nan_to_num())
    s.reset()
    assert s.num_samples == 0


def test_an_update_that_fails_leaves_nothing_derived_wrong():
    features, labels = make_data()
    s = class_scatter(features, labels, 4)
    before = s.num_samples, s.global_mean
    with pytest.raises(ValueError, match="is 9, expected a class"):
        s.update(features, torch.full_like(labels, 9))
    assert s.num_samples == before[0]
    assert torch.equal(s.global_mean, before[1])


def test_a_shallow_copy_and_its_original_notice_what_the_other_takes_in():
    features, labels = make_data()
    s = class_scatter(features, labels, 4)
    samples = s.num_samples
    other = copy.copy(s)
    other.update(features, labels)
    assert s.num_samples == other.num_samples == 2 * samples == int(s.counts.sum())
    s.reset()
    assert other.num_samples == 0


def test_what_a_state_derives_in_inference_mode_can_be_used_outside_it():
    features, labels = make_data()
    s = class_scatter(features, labels, 4)
    with torch.inference_mode():
        deeprep.discrimination(s, centered=True)
    weight = torch.ones_like(s.global_mean, requires_grad=True)
    (weight * s.global_mean).sum().backward()
    assert torch.equal(weight.grad, s.global_mean)


@pytest.mark.parametrize("full", [False, True])
def test_counts_means_and_sumsq_change_with_the_state(full):
    features, labels = make_data()
    s = class_scatter(features, labels, 4, full=full)
    counts, means, sumsq = s.counts, s.means, s.sumsq
    s.update(2.0 * features, labels)
    assert counts is s.counts
    assert means is s.means
    assert sumsq is s.sumsq
    assert int(counts.sum()) == 400


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_merged_class_has_the_same_bits_alone_and_among_others(num_threads, restore_threads):
    """Ranks merge shares of the classes: these must not depend on how many are in a share."""
    features = torch.randn(8, 40_000, dtype=torch.float64)
    labels = torch.arange(8) % 4
    torch.set_num_threads(1)
    expected = class_scatter(features[:4], labels[:4], 4)
    expected.merge(class_scatter(features[4:], labels[4:], 4))
    torch.set_num_threads(num_threads)
    for k in range(4):
        alone = class_scatter(features[k : k + 1], torch.tensor([0]), 1)
        alone.merge(class_scatter(features[k + 4 : k + 5], torch.tensor([0]), 1))
        assert torch.equal(alone.means, expected.means[k : k + 1])
        assert torch.equal(alone.sumsq, expected.sumsq[k : k + 1])


def test_states_that_do_not_fit_cannot_be_merged():
    with pytest.raises(ValueError, match=r"other.num_features is 3, expected 2"):
        ClassScatter(2, 2).merge(ClassScatter(2, 3))
    with pytest.raises(ValueError, match="this ClassScatter has full=False"):
        _ = ClassScatter(2, 2).within


def test_the_state_is_read_but_not_replaced():
    s = ClassScatter(2, 2)
    for name in ("counts", "means", "sumsq", "device"):
        with pytest.raises(AttributeError):
            setattr(s, name, torch.zeros(2))


def test_class_scatter_computes_where_it_is_told():
    features, labels = make_data()
    assert_same(class_scatter(features, labels, device="cpu"), class_scatter(features, labels), 0)
    with pytest.raises(ValueError, match="device is meta, expected a CPU or a CUDA device"):
        class_scatter(features, labels, device="meta")


def test_nonfinite_classes_are_known():
    features, labels = make_data()
    features[labels == 1] = float("nan")
    assert class_scatter(features, labels, 4).nonfinite_classes == [1]
