"""class_scatter of one feature matrix: what it infers, and arrays of any layout."""

import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deeprep import ClassScatter, class_scatter, reference
from deeprep.base import validate


def test_a_stray_label_is_named_before_it_takes_gigabytes(monkeypatch):
    features, labels = torch.randn(1000, 16), torch.arange(1000) % 10
    labels[[7, 8]] = torch.tensor([20_000_000, -100])
    message = (
        "labels[7] is 20000000, expected one that num_classes can be inferred from: 20000001 "
        "classes of 16 features would take 2.7 GiB, and fewer than one in ten of them has a "
        "sample; if it is a class, pass num_classes=20000001"
    )
    monkeypatch.setattr("deeprep.state.scatter.ClassScatter", None)  # not even begun
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        class_scatter(features, labels)
    with pytest.raises(ValueError, match=r"^labels\[3\] is 9223372036854775807, expected one that"):
        class_scatter(features, torch.where(torch.arange(1000) == 3, 2**63 - 1, labels))


def test_many_classes_are_inferred():
    """A hundred thousand of them: more than 1 GiB needs one in ten to have a sample, no more."""
    labels = torch.arange(100_000).repeat_interleave(2)
    s = class_scatter(torch.ones(200_000, 1), labels)
    assert (s.num_classes, s.num_samples) == (100_000, 200_000)
    assert validate.infer_num_classes(labels, 100_000, -100) == 100_000
    assert validate.infer_num_classes(labels[::20], 100_000, -100) == 99_991
    with pytest.raises(ValueError, match=r"labels\[9090\] is 99990, .* pass num_classes=99991"):
        validate.infer_num_classes(labels[::22], 100_000, -100)


def test_a_small_state_is_made_whatever_the_labels():
    assert class_scatter(torch.ones(2, 3), torch.tensor([0, 1_000_000])).num_classes == 1_000_001


def test_labels_below_zero_are_not_counted(monkeypatch):
    monkeypatch.setattr(validate, "_UNASKED_STATE_BYTES", 0)
    with pytest.raises(ValueError, match=r"labels\[1\] is -7, expected a class in \[0, 2\)"):
        class_scatter(torch.ones(3, 2), torch.tensor([0, -7, 1]))


def test_without_a_label_there_is_nothing_to_infer_from():
    with pytest.raises(ValueError, match="num_classes is None and there is no label to infer"):
        class_scatter(torch.ones(2, 3), torch.tensor([5, 5]), ignore_index=5)


def test_num_classes_that_are_given_are_taken(monkeypatch):
    monkeypatch.setattr(validate, "_UNASKED_STATE_BYTES", 0)
    labels = torch.tensor([0, 999])
    with pytest.raises(ValueError, match=r"labels\[1\] is 999, expected one that num_classes"):
        class_scatter(torch.ones(2, 3), labels)
    assert class_scatter(torch.ones(2, 3), labels, 1000).num_classes == 1000
    one_hot = torch.nn.functional.one_hot(labels)
    assert class_scatter(torch.ones(2, 3), one_hot).num_classes == 1000
    state = ClassScatter(1000, 3)
    state.update(torch.ones(2, 3), labels)
    assert state.num_samples == 2


NUMBERS = np.random.default_rng(0).standard_normal((60, 60))
LABELS = np.random.default_rng(1).integers(0, 3, 60)

steps = st.sampled_from([-3, -2, -1, 1, 2, 3])
slices = st.builds(slice, st.none() | st.integers(0, 59), st.none() | st.integers(0, 59), steps)


def assert_of(s, features, labels):
    """Assert that a state is that of these features and labels, by the definition in NumPy."""
    expected = reference.class_scatter(features, labels, num_classes=3)
    np.testing.assert_array_equal(s.counts.numpy(), expected.counts)
    np.testing.assert_allclose(s.means.numpy(), expected.means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(s.sumsq.numpy(), expected.sumsq, rtol=1e-5, atol=1e-12)
    if s.full:
        centred = features.astype(np.float64) - expected.means[labels]
        np.testing.assert_allclose(s.pooled_scatter.numpy(), centred.T @ centred, atol=1e-4)


@given(
    rows=slices,
    columns=slices,
    transposed=st.booleans(),
    dtype=st.sampled_from([np.float64, np.float32, np.float16]),
    writeable=st.booleans(),
    full=st.booleans(),
)
def test_arrays_of_any_strides_are_read(rows, columns, transposed, dtype, writeable, full):
    numbers = NUMBERS.astype(dtype)
    numbers.flags.writeable = writeable
    features = (numbers.T if transposed else numbers)[rows, columns]
    labels = LABELS[rows]
    if features.shape[1] == 0:
        with pytest.raises(ValueError, match=r"num_features is 0, expected"):
            class_scatter(features, labels, 3)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = class_scatter(features, labels, 3, full=full)
        assert_of(s, features, labels)
        s.update(features, labels)  # onto what is there
    assert_of(s, np.concatenate([features] * 2), np.concatenate([labels] * 2))


def test_repeated_rows_and_columns_are_read():
    for features in (
        np.broadcast_to(NUMBERS[0], (60, 60)),
        np.broadcast_to(NUMBERS[:, :1], (60, 9)),
    ):
        assert_of(class_scatter(features, LABELS), features, LABELS)
        assert_of(class_scatter(features[::-1, ::-1], LABELS), features[::-1, ::-1], LABELS)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_reversed_features_are_read_where_they_lie(monkeypatch, axes):
    seen = []
    take = ClassScatter._take

    def recorded(self, features, labels):
        seen.append(features.data_ptr())
        take(self, features, labels)

    monkeypatch.setattr(ClassScatter, "_take", recorded)
    class_scatter(np.flip(NUMBERS, axes), LABELS)
    assert seen == [NUMBERS.ctypes.data]


def test_a_wrong_label_of_reversed_rows_is_named_as_the_caller_knows_it():
    labels = LABELS.copy()
    labels[7] = 3
    s = ClassScatter(3, 60)
    for features in (NUMBERS[::-1], NUMBERS[:, ::-1], NUMBERS[::-1, ::-1]):
        with pytest.raises(ValueError, match=r"^labels\[7\] is 3, expected a class in \[0, 3\)"):
            s.update(features, labels)
        with pytest.raises(ValueError, match=r"^labels has shape \(59,\), expected \(60,\)"):
            s.update(features, labels[1:])
    with pytest.raises(ValueError, match=r"features"):
        ClassScatter(3, 59).update(NUMBERS[:, ::-1], LABELS)
    assert s.num_samples == 0


def test_labels_of_any_layout_are_read():
    one_hot = np.eye(3)[LABELS]
    for labels in (LABELS[::-1], np.flip(one_hot, 0), np.flip(one_hot, 0).astype(np.int32)):
        assert_of(class_scatter(NUMBERS, labels), NUMBERS, LABELS[::-1])
        assert_of(class_scatter(NUMBERS[::-1], labels), NUMBERS[::-1], LABELS[::-1])
    flipped = class_scatter(NUMBERS, one_hot[:, ::-1])
    assert_of(flipped, NUMBERS, 2 - LABELS)


RECORDS = np.zeros(60, [("label", "i1"), ("x", "f4", (6,)), ("y", "i8")])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            NUMBERS.astype(">f4"),
            "dtype >f4, expected the machine's byte order; pass features.astype('<f4')",
        ),
        (
            NUMBERS.astype(np.longdouble),
            f"dtype {np.dtype(np.longdouble)}, expected at most float64; "
            "pass features.astype(np.float64)",
        ),
        (NUMBERS.astype(object), "dtype object, expected numbers such as float64, float32 or int"),
        (NUMBERS.astype(str), "dtype <U32, expected numbers such as float64, float32 or int64"),
        (RECORDS, f"dtype {RECORDS.dtype}, expected numbers such as float64"),
        (
            RECORDS["x"],
            "strides (33, 4), expected multiples of 4, none below 0; "
            "pass np.ascontiguousarray(features)",
        ),
        (NUMBERS > 0, "dtype torch.bool, expected one of torch.float32,"),
        (NUMBERS.astype(complex), "dtype torch.complex128, expected one of torch.float32,"),
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_arrays_that_cannot_be_read_are_refused_with_the_reason(features, message, backwards):
    if backwards:
        features = features[::-1]
    with pytest.raises(TypeError, match=f"^features has {re.escape(message)}"):
        class_scatter(features, LABELS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.astype(">i8"), "dtype >i8, expected the machine's byte order; pass labels.astype("),
        (LABELS.astype(np.longdouble), f"dtype {np.dtype(np.longdouble)}, expected at most float"),
        (RECORDS["y"], "strides (33,), expected multiples of 8, none below 0; pass np.ascont"),
        (LABELS.astype("u8"), "dtype torch.uint64, expected torch.int64 or torch.int32"),
    ],
)
def test_labels_that_cannot_be_read_are_refused_with_the_reason(labels, message):
    with pytest.raises(TypeError, match=f"^labels has {re.escape(message)}"):
        class_scatter(NUMBERS, labels)


def test_what_dlpack_cannot_hand_over_is_refused_with_the_reason():
    class Reversed:
        def __dlpack__(self, **options):
            return NUMBERS[::-1].__dlpack__(**options)

        def __dlpack_device__(self):
            return NUMBERS.__dlpack_device__()

    with pytest.raises(
        TypeError, match=r"^features is a Reversed, expected one that torch can read"
    ):
        class_scatter(Reversed(), LABELS)
