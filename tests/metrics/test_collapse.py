"""compression, nc1, cdnv: degenerate input, closed forms, independent oracles."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import f_oneway
from sklearn.metrics import calinski_harabasz_score

import deeprep
from deeprep import UndefinedStatisticError, metrics
from deeprep.metrics import class_means

STATISTICS = [
    metrics.compression,
    metrics.nc1,
    metrics.cdnv,
    metrics.cdnv_per_class,
    metrics.equinorm,
    metrics.equiangularity,
    metrics.etf_error,
    metrics.gnc2,
    metrics.discrimination,
    metrics.closest_classes,
]


def blobs(num_classes=5, per_class=8, num_features=12, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), per_class)
    means = rng.standard_normal((num_classes, num_features))
    return means[labels] + rng.standard_normal((len(labels), num_features)), labels


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda f: f.__name__)
def test_one_class_or_none_is_an_error_that_names_the_statistic(statistic):
    s = deeprep.ClassScatter(10, 2, full=True)
    with pytest.raises(UndefinedStatisticError, match=f"{statistic.__name__} .*found 0 of 10"):
        statistic(s)
    s.update(torch.ones(3, 2), torch.tensor([4, 4, 4]))
    message = f"{statistic.__name__} needs at least two classes with samples, found 1 of 10"
    with pytest.raises(UndefinedStatisticError, match=message):
        statistic(s)


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_features_give_nan_and_name_the_class(statistic, bad):
    features, labels = blobs()
    features[labels == 3, 1] = bad
    s = deeprep.class_scatter(features, labels, full=True)
    name = statistic.__name__
    with pytest.warns(UserWarning, match=rf"{name} is nan.* 1 class \(3\) hold NaN or Inf"):
        value = statistic(s)
    value = value.cosine if name == "closest_classes" else value
    assert np.isnan(np.asarray(value)).all()


def test_many_nonfinite_classes_are_counted_and_the_first_named():
    s = deeprep.class_scatter(torch.full((8, 2), torch.nan), torch.arange(8))
    with pytest.warns(UserWarning, match=r"8 classes \(0, 1, 2, 3, 4, \.\.\.\)"):
        deeprep.compression(s)


@pytest.mark.parametrize("statistic", [metrics.compression, metrics.nc1])
@pytest.mark.parametrize("location", [0.0, 1.0, 0.1, 1e6])
def test_coinciding_means(statistic, location):
    location = torch.full((1, 3), location)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    constant = deeprep.class_scatter(location.expand(6, 3), labels, full=True)
    with pytest.warns(UserWarning, match=f"{statistic.__name__} is nan: all class means coincide"):
        assert math.isnan(statistic(constant))
    spread = torch.tensor([[1.0], [-1.0]]).repeat(3, 1)
    spreading = deeprep.class_scatter(location + spread, labels, full=True)
    with pytest.warns(UserWarning, match=f"{statistic.__name__} is inf: all class means coincide"):
        assert statistic(spreading) == math.inf


def test_compression_rejects_another_weighting():
    s = deeprep.class_scatter(*blobs())
    with pytest.raises(ValueError, match=r"weighting.*'classes'.*'uniform'.*'prior'"):
        deeprep.compression(s, "classes")


@pytest.mark.parametrize("weighting", ["uniform", "prior"])
def test_corrected_traces_are_unbiased(weighting):
    # Three classes of covariance traces 3, 12 and 0.75 about means e_k; 2, 3 and 7 samples of each.
    rng = np.random.default_rng(0)
    counts, scales = np.array([2, 3, 7]), np.array([1.0, 2.0, 0.5])
    labels = np.repeat(np.arange(3), counts)
    shares = counts / 12
    distances = np.square(np.eye(3) - shares).sum(axis=1)  # of e_k from sum_j shares_j e_j
    wanted = distances.mean() if weighting == "uniform" else shares @ distances
    plain, corrected = [], []
    for _ in range(2000):
        noise = rng.standard_normal((12, 3)) * scales[labels, None]
        s = deeprep.class_scatter(np.eye(3)[labels] + noise, labels)
        plain.append(s.trace_between(weighting))
        corrected.append(s.trace_between(weighting, corrected=True))
    error = np.std(corrected) / math.sqrt(len(corrected))
    assert abs(np.mean(corrected) - wanted) < 4 * error
    assert np.mean(plain) - wanted > 20 * error  # what it is all about
    # Tr Sigma_W / Tr Sigma_B of two unbiased numbers, on one draw.
    traces = np.array([s.sumsq[k] / (counts[k] - 1) for k in range(3)])
    expected = shares @ traces / s.trace_between(weighting, corrected=True)
    assert deeprep.compression(s, weighting, corrected=True) == pytest.approx(
        expected if expected > 0 else math.inf, rel=1e-12
    )


def test_correction_is_that_of_the_analysis_of_variance():
    # Balanced classes in one dimension: Tr Sigma_B = (K-1)/N (MSB - MSW), and F = MSB / MSW.
    features, labels = blobs(num_classes=4, per_class=6, num_features=1)
    groups = [features[labels == k, 0] for k in range(4)]
    within = np.mean([np.var(group, ddof=1) for group in groups])
    expected = 3 / 24 * within * (f_oneway(*groups).statistic - 1)
    s = deeprep.class_scatter(features, labels)
    assert s.trace_between(corrected=True) == pytest.approx(expected, rel=1e-9)
    assert deeprep.compression(s, corrected=True) == pytest.approx(within / expected, rel=1e-9)


def test_corrected_compression_of_equal_means_and_single_samples():
    s = deeprep.class_scatter(np.array([[1.0], [-1.0]] * 3), np.repeat([0, 1, 2], 2))
    assert s.trace_between(corrected=True) < 0
    with pytest.warns(UserWarning, match="compression is inf: the corrected Tr Sigma_B is not"):
        assert deeprep.compression(s, corrected=True) == math.inf
    constant = deeprep.class_scatter(np.full((6, 2), 0.1), np.repeat([0, 1, 2], 2))
    with pytest.warns(UserWarning, match="compression is nan"):
        assert math.isnan(deeprep.compression(constant, corrected=True))
    single = deeprep.class_scatter(np.arange(5.0)[:, None], np.array([0, 0, 1, 2, 2]))
    for compute in (
        single.trace_between,
        lambda corrected: deeprep.compression(single, "prior", corrected),
    ):
        with pytest.raises(
            UndefinedStatisticError, match=r"two samples .*found one in 1 class \(1\)"
        ):
            compute(corrected=True)


@pytest.mark.parametrize("weighting", ["uniform", "prior"])
def test_compression_is_calinski_harabasz_on_balanced_classes(weighting):
    features, labels = blobs(num_classes=7, per_class=20)
    num_samples, num_classes = len(labels), 7
    score = calinski_harabasz_score(features, labels)
    expected = (num_samples - num_classes) / ((num_classes - 1) * score)
    found = deeprep.compression(deeprep.class_scatter(features, labels), weighting)
    assert found == pytest.approx(expected, rel=1e-9)


def test_prior_weighting_is_calinski_harabasz_on_any_classes():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2, 3], [3, 30, 9, 1])
    features = rng.standard_normal((len(labels), 4)) + labels[:, None]
    expected = (len(labels) - 4) / (3 * calinski_harabasz_score(features, labels))
    s = deeprep.class_scatter(features, labels)
    assert deeprep.compression(s, "prior") == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:2 of 7 classes")
def test_empty_classes_take_part_in_nothing():
    features, labels = blobs()
    full = deeprep.class_scatter(features, labels, full=True)
    holes = deeprep.class_scatter(features, labels + (labels > 2) + 1, 7, full=True)
    for statistic in STATISTICS[:-1]:
        found, expected = statistic(holes), statistic(full)
        if statistic is metrics.cdnv_per_class:
            assert found[[0, 4]].isnan().all()
            found, expected = found[[1, 2, 3, 5, 6]].tolist(), expected.tolist()
        assert found == pytest.approx(expected, rel=1e-12), statistic.__name__


def test_nc1_closed_form():
    # mu_k = e_k, each sample a distance r from its mean in one further direction: Sigma_W has
    # nothing in the span of the means. With the spread along e_0 - e_1 it has: 1/|s|^2 r^2.
    means = torch.eye(3, 4, dtype=torch.float64).repeat_interleave(2, 0)
    labels = torch.arange(3).repeat_interleave(2)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(3).unsqueeze(1)
    outside = means + 0.1 * signs * torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert metrics.nc1(deeprep.class_scatter(outside, labels, full=True)) == pytest.approx(
        0, abs=1e-15
    )
    inside = means + 0.1 * signs * torch.tensor([1.0, -1.0, 0.0, 0.0])
    # Sigma_B = (I - 11'/3)/3 on the span, so Sigma_B^+ = 3 there; Tr(Sigma_W Sigma_B^+)/3 = 0.02.
    assert metrics.nc1(deeprep.class_scatter(inside, labels, full=True)) == pytest.approx(0.02)


@pytest.mark.parametrize("wide", [True, False])
def test_nc1_of_ill_conditioned_means(wide):
    # Means of condition number 1e9: in the d x d product it would be 1e18, beyond float64.
    rng = np.random.default_rng(0)
    num_classes, num_features = (6, 20) if wide else (40, 5)
    rank = min(num_classes - 1, num_features)
    left, _ = np.linalg.qr(
        np.column_stack([np.ones(num_classes), rng.standard_normal((num_classes, rank))])
    )
    right, _ = np.linalg.qr(rng.standard_normal((num_features, rank)))
    lengths = np.logspace(0, -9, rank)
    means = left[:, 1:] * lengths @ right.T
    # Each class is its mean +- r_j v_j, so that v_j' Sigma_W v_j = r_j^2 / rank.
    spreads = rng.uniform(0.5, 2.0, rank)
    steps = spreads[:, None] * right.T
    features = (means[:, None] + np.concatenate([steps, -steps])).reshape(-1, num_features)
    labels = np.repeat(np.arange(num_classes), 2 * rank)
    s = deeprep.class_scatter(features, labels, full=True)
    expected = np.square(spreads / lengths).sum() / rank
    assert metrics.nc1(s) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nc1_far_from_the_origin(dtype):
    features, labels = blobs(num_classes=4, per_class=20, num_features=10)
    shifted = (features + 1e3).astype(dtype)
    expected = metrics.nc1(deeprep.class_scatter(features, labels, full=True))
    found = metrics.nc1(deeprep.class_scatter(shifted, labels, full=True))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("statistic", [metrics.nc1, metrics.numerical_rank, metrics.probe])
def test_full_is_required(statistic):
    with pytest.raises(ValueError, match="full=True"):
        statistic(deeprep.class_scatter(*blobs()))


def test_cdnv_of_near_means_far_from_the_others():
    # Classes 0 and 1 are 1e-6 apart, class 2 is 1e3 away: a Gram matrix alone has no digits left.
    features = np.array([[0.0], [0.0], [1e-6], [1e-6], [1e3], [1e3]])
    features += 1e-7 * np.array([[1.0], [-1.0]] * 3)
    labels = np.repeat([0, 1, 2], 2)
    assert metrics.cdnv(deeprep.class_scatter(features, labels)) == pytest.approx(
        1e-14 / 1e-12 / 3, rel=1e-6
    )


def test_cdnv_of_coinciding_means_is_infinite():
    features = torch.tensor([[1.0], [-1.0], [2.0], [-2.0], [5.0]])
    s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1, 2]))
    assert metrics.cdnv(s) == math.inf


@pytest.mark.parametrize("entries", [1, 17, 100])
def test_tiles_change_nothing(entries, monkeypatch):
    features, labels = blobs(num_classes=23, per_class=2)
    s = deeprep.class_scatter(features, labels)
    names = ["cdnv", "discrimination", "closest_classes", "equiangularity", "etf_error", "gnc2"]
    names.append("jackknife")
    whole = [getattr(metrics, name)(s) for name in names]
    classes, lines = metrics.per_class(s), metrics.directional_cdnv(s, features, labels)
    hits = metrics.nearest_class(s, features).tolist()
    monkeypatch.setattr(class_means, "TILE_ENTRIES", entries)
    for name, value in zip(names, whole, strict=True):
        assert getattr(metrics, name)(s) == pytest.approx(value, rel=1e-12), name
    assert metrics.nearest_class(s, features).tolist() == hits
    assert metrics.directional_cdnv(s, features, labels) == pytest.approx(lines, rel=1e-12)
    found = metrics.per_class(s)
    assert torch.equal(found.nearest, classes.nearest)
    for column, expected in zip(found, classes, strict=True):
        torch.testing.assert_close(column, expected, rtol=1e-12, atol=0)
