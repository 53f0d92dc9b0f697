"""separation_fuzziness, h_score, vci, lidar: their authors' words, closed forms, degenerate input.

The brute-force computations here share no algebra with deeprep.metrics or its reference.
"""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

import deeprep
from deeprep import UndefinedStatisticError, metrics, reference

STATISTICS = [metrics.separation_fuzziness, metrics.h_score, metrics.vci, metrics.lidar]
COUNTS = [(8, 8, 8, 8, 8), (3, 12, 1, 20, 7)]


def blobs(counts=COUNTS[1], num_features=12, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = rng.standard_normal((len(counts), num_features))
    rows = means[labels] + rng.standard_normal((len(labels), num_features))
    return (rows + 3.0).astype(dtype), labels


def state(features, labels, **options):
    return deeprep.class_scatter(features, labels, full=True, **options)


def class_means(features, labels):
    return np.array([features[labels == k].mean(axis=0) for k in np.unique(labels)])


# ---------------------------------------------------------------- from the authors' words


def mahalanobis(features, labels):
    """Mean of (z - mu_k)' SS_B^+ (z - mu_k) over the samples, which is Tr(SS_W SS_B^+)."""
    own = np.array([features[labels == k].mean(axis=0) for k in labels])
    spread = scipy.linalg.pinv(np.cov(own.T, bias=True), rtol=1e-10)
    return np.mean([(z - m) @ spread @ (z - m) for z, m in zip(features, own, strict=True)])


def canonical_correlations(features, labels):
    """Sum of squared sines and cosines of the angles between features and one-hot labels."""
    one_hot = np.eye(labels.max() + 1)[labels]
    spaces = [scipy.linalg.orth(x - x.mean(axis=0), rcond=1e-10) for x in (features, one_hot)]
    return np.cos(scipy.linalg.subspace_angles(*spaces))


def generalised_eigenvalues(features, labels, delta):
    """Of Sigma_b v = lambda Sigma_w v, with NumPy's unbiased covariances."""
    groups = [features[labels == k] for k in np.unique(labels)]
    residuals = np.concatenate([g - g.mean(axis=0) for g in groups])
    within = residuals.T @ residuals / (len(features) - len(groups))
    within += delta * np.eye(features.shape[1])
    between = np.cov(class_means(features, labels).T)
    return scipy.linalg.eigvals(np.linalg.solve(within, between)).real


@pytest.mark.parametrize("counts", COUNTS)
def test_fuzziness_is_the_mean_distance_of_samples_from_their_means(counts):
    features, labels = blobs(counts)
    found = metrics.separation_fuzziness(state(features, labels))
    assert found == pytest.approx(mahalanobis(features, labels), rel=1e-9)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("dead", [0, 4])
def test_h_score_and_vci_are_canonical_correlations(counts, dead):
    features, labels = blobs(counts)
    features[:, :dead] = 0.5  # units that never fire: the covariance has no inverse
    cosines = canonical_correlations(features, labels)
    s = state(features, labels)
    assert metrics.h_score(s) == pytest.approx(np.square(cosines).sum(), rel=1e-9)
    assert metrics.vci(s) == pytest.approx(1.0 - np.square(cosines).mean(), rel=1e-9)


@pytest.mark.parametrize("counts", COUNTS)
def test_h_score_is_what_a_linear_probe_explains(counts):
    features, labels = blobs(counts)
    shares = np.array(counts) / len(labels)
    targets = (np.eye(len(counts))[labels] - shares) / np.sqrt(shares)
    centered = features - features.mean(axis=0)
    fitted = centered @ np.linalg.lstsq(centered, targets, rcond=None)[0]
    expected = np.square(fitted).sum() / len(labels)
    assert metrics.h_score(state(features, labels)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("delta", [1e-4, 3.0])
def test_lidar_is_the_entropy_of_the_discriminant(counts, delta):
    features, labels = blobs(counts)
    values = generalised_eigenvalues(features, labels, delta).clip(min=0.0)
    shares = values / values.sum() + 1e-7
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert metrics.lidar(state(features, labels), delta) == pytest.approx(expected, rel=1e-9)


# ---------------------------------------------------------------- what they are to one another


def test_fuzziness_of_balanced_classes_is_k_times_nc1():
    s = state(*blobs(COUNTS[0]))
    assert metrics.separation_fuzziness(s) == 5 * metrics.nc1(s)
    unbalanced = state(*blobs(COUNTS[1]))
    assert metrics.separation_fuzziness(unbalanced) != pytest.approx(
        5 * metrics.nc1(unbalanced), rel=0.01
    )


@pytest.mark.parametrize("statistic", [metrics.h_score, metrics.vci])
def test_an_invertible_map_changes_nothing(statistic):
    features, labels = blobs(num_features=6)
    mixed = features @ np.random.default_rng(1).standard_normal((6, 6)) - 7.0
    expected = statistic(state(features, labels))
    assert statistic(state(mixed, labels)) == pytest.approx(expected, rel=1e-8)


def test_a_collapsed_network_has_vci_zero_and_an_h_score_of_k_minus_one():
    features, labels = blobs(COUNTS[0])
    collapsed = class_means(features, labels)[labels]
    s = state(collapsed, labels)
    assert metrics.vci(s) == pytest.approx(0.0, abs=1e-12)
    assert metrics.h_score(s) == pytest.approx(4.0, rel=1e-12)
    assert metrics.separation_fuzziness(s) == pytest.approx(0.0, abs=1e-20)


def test_vci_counts_the_rank_of_dependent_means():
    # Four means on one line: rank 1, where min(K - 1, d) is 3.
    labels = np.arange(40) % 4
    rng = np.random.default_rng(0)
    features = np.outer(labels, np.ones(5)) + 0.1 * rng.standard_normal((40, 5))
    on_line = np.outer(labels, np.ones(5))
    for k in range(4):  # each class mean exactly on the line
        own = labels == k
        features[own] += on_line[own][0] - features[own].mean(axis=0)
    s = state(features, labels)
    assert metrics.vci(s) == pytest.approx(1.0 - metrics.h_score(s), rel=1e-6)


def test_lidar_of_equal_directions_counts_them():
    corners = np.concatenate([np.eye(6), -np.eye(6)])
    features = np.concatenate([corners + 1e-3, corners - 1e-3])
    s = state(features, np.tile(np.arange(12), 2))
    assert metrics.lidar(s, delta=1.0) == pytest.approx(6.0, rel=1e-4)


def test_decompositions_give_what_the_state_gives():
    s = state(*blobs())
    parts = metrics.Decompositions(s)
    both = (*STATISTICS, metrics.nc1, metrics.participation_ratio)
    for statistic in both:
        assert statistic(parts) == statistic(s)
    values = metrics.covariance_eigenvalues(parts)
    assert torch.equal(values, metrics.covariance_eigenvalues(s))
    assert metrics.alpha_req(parts, 2, 9) == metrics.alpha_req(values, 2, 9)


@pytest.mark.parametrize("dead", [0, 4])
def test_nothing_is_decomposed_twice(monkeypatch, dead):
    features, labels = blobs(num_features=20)
    features[:, :dead] = 0.5
    parts = metrics.Decompositions(state(features, labels))
    seen = []
    for name in ("svd", "eigh", "eigvalsh"):
        original = getattr(torch.linalg, name)

        def watched(matrix, *args, original=original, name=name, **options):
            seen.append((name, matrix.clone()))
            return original(matrix, *args, **options)

        monkeypatch.setattr(torch.linalg, name, watched)
    for statistic in (*STATISTICS, metrics.nc1, metrics.covariance_eigenvalues) * 2:
        statistic(parts)
    matrices = [matrix for _, matrix in seen]
    for index, matrix in enumerate(matrices):
        assert not any(torch.equal(matrix, other) for other in matrices[:index])
    wanted = ["svd", "svd", "eigh"] if dead else ["svd", "svd", "eigvalsh"]
    assert sorted(name for name, _ in seen) == sorted(wanted)


# ---------------------------------------------------------------- degenerate input


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda f: f.__name__)
def test_one_class_is_an_error(statistic):
    s = deeprep.ClassScatter(10, 2, full=True)
    with pytest.raises(UndefinedStatisticError, match=f"{statistic.__name__} .*found 0 of 10"):
        statistic(s)
    s.update(torch.ones(3, 2), torch.tensor([4, 4, 4]))
    with pytest.raises(UndefinedStatisticError, match=f"{statistic.__name__} .*found 1 of 10"):
        statistic(s)
    with pytest.raises(UndefinedStatisticError, match=f"{statistic.__name__} .*found 1 of 5"):
        getattr(reference, statistic.__name__)(np.ones((3, 2)), [4, 4, 4])


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda f: f.__name__)
def test_a_state_that_is_not_full_is_an_error(statistic):
    with pytest.raises(ValueError, match="full=False, expected full=True"):
        statistic(deeprep.class_scatter(*blobs()))


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_features_give_nan(statistic, bad):
    features, labels = blobs()
    features[labels == 3, 1] = bad
    with pytest.warns(UserWarning, match=rf"{statistic.__name__} is nan.* 1 class \(3\)"):
        assert math.isnan(statistic(state(features, labels)))


@pytest.mark.filterwarnings("ignore:1 of 9 classes have no samples")
@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda f: f.__name__)
def test_an_empty_class_and_ignored_rows_change_nothing(statistic):
    features, labels = blobs()
    padded = np.concatenate([features, np.full((2, 12), 1e9)])
    # Class 0 left free.
    moved = np.append(labels + 1, [-100, -100])
    moved[moved == 5] = 8
    with pytest.warns(UserWarning, match="4 of 9 classes have no samples"):
        found = statistic(state(padded, moved, num_classes=9))
    assert found == pytest.approx(statistic(state(features, labels)), rel=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_coinciding_means(offset):
    features = np.tile(np.random.default_rng(0).standard_normal((4, 5)), (3, 1)) + offset
    labels = np.repeat(np.arange(3), 4)
    s = state(features, labels)
    with pytest.warns(UserWarning, match="separation_fuzziness is inf: all class means coincide"):
        assert metrics.separation_fuzziness(s) == math.inf
    with pytest.warns(UserWarning, match="vci is nan: all class means coincide"):
        assert math.isnan(metrics.vci(s))
    assert metrics.h_score(s) == metrics.lidar(s) == 0.0
    nothing = state(np.full((6, 2), offset), np.arange(6) % 2)
    with pytest.warns(UserWarning, match="separation_fuzziness is nan"):
        assert math.isnan(metrics.separation_fuzziness(nothing))
    assert metrics.h_score(nothing) == metrics.lidar(nothing) == 0.0


def test_one_sample_a_class():
    features = np.random.default_rng(0).standard_normal((5, 9))
    s = state(features, np.arange(5))
    assert metrics.separation_fuzziness(s) == 0.0
    assert metrics.h_score(s) == pytest.approx(4.0, rel=1e-9)
    assert metrics.vci(s) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(UndefinedStatisticError, match="lidar needs at least two samples in one"):
        metrics.lidar(s)
    with pytest.raises(UndefinedStatisticError, match="lidar needs at least two samples in one"):
        reference.lidar(features, np.arange(5))


def test_one_feature_by_hand():
    s = state(np.array([[1.0], [3.0], [-1.0], [-3.0]]), np.array([0, 0, 1, 1]))
    assert metrics.separation_fuzziness(s) == pytest.approx(0.25)
    assert metrics.h_score(s) == pytest.approx(0.8)
    assert metrics.vci(s) == pytest.approx(0.2)
    assert metrics.lidar(s) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_fewer_samples_than_features(dtype, scale):
    features, labels = blobs((3, 3, 2, 4), num_features=40, dtype=dtype)
    s = state((features * dtype(scale)).astype(dtype), labels)
    tolerance = 1e-3 if dtype is np.float32 else 1e-6
    # Twelve samples of 40 features are told apart perfectly by a linear map.
    assert metrics.h_score(s) == pytest.approx(3.0, rel=tolerance)
    assert metrics.vci(s) == pytest.approx(0.0, abs=tolerance)
    assert metrics.separation_fuzziness(s) == pytest.approx(
        mahalanobis(features.astype(np.float64), labels), rel=tolerance
    )
    assert 1.0 <= metrics.lidar(s) <= 3.001


@pytest.mark.parametrize("delta", [0.0, -1.0, math.inf, math.nan])
def test_delta_out_of_range(delta):
    with pytest.raises(ValueError, match=r"delta is .*, expected a finite number > 0"):
        metrics.lidar(state(*blobs()), delta)
