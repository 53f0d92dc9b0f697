"""The reference against independent oracles and numbers worked out by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import calinski_harabasz_score
from sklearn.neighbors import NearestCentroid

from deeprep import UndefinedStatisticError, reference


def blobs(seed=0, counts=(5, 9, 2, 14), num_features=6):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    return rng.standard_normal((len(labels), num_features)) + labels[:, None] / 3, labels


def test_moments_by_definition():
    features, labels = blobs()
    s = reference.class_scatter(features, labels)
    assert s.counts.tolist() == [5, 9, 2, 14]
    for k in range(4):
        rows = features[labels == k]
        np.testing.assert_allclose(s.means[k], rows.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(s.sumsq[k], rows.var(axis=0).sum() * len(rows), rtol=1e-13)
    np.testing.assert_allclose(s.global_mean, features.mean(axis=0), rtol=1e-13)


def test_scatter_matrices():
    features, labels = blobs()
    s = reference.class_scatter(features, labels)
    assert np.trace(s.within) == pytest.approx(s.trace_within)
    assert np.trace(s.between) == pytest.approx(s.trace_between)
    # Total variance is within plus between, if classes are weighted by their share.
    total = np.square(features - features.mean(axis=0)).sum() / len(features)
    assert s.trace_within + s.trace_between_prior == pytest.approx(total)
    np.testing.assert_allclose(s.within, s.within.T)


def test_far_from_the_origin_and_identical_rows():
    features, labels = blobs()
    near, far = (reference.class_scatter(features + c, labels) for c in (0.0, 2.0**20))
    np.testing.assert_allclose(far.sumsq, near.sumsq, rtol=1e-9)
    same = reference.class_scatter(np.full((7, 3), 0.1), np.zeros(7, dtype=int))
    assert same.sumsq[0] == 0.0
    assert np.all(same.means == 0.1)


def test_ignored_rows_and_empty_classes():
    features, labels = blobs()
    s = reference.class_scatter(features, np.where(labels == 1, -100, labels), 6)
    assert s.counts.tolist() == [5, 0, 2, 14, 0, 0]
    assert s.present.tolist() == [0, 2, 3]
    assert not s.means[1].any()
    kept = labels != 1
    np.testing.assert_allclose(s.global_mean, features[kept].mean(axis=0))


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range(label):
    with pytest.raises(ValueError, match=rf"labels holds {label}, expected classes in \[0, 3\)"):
        reference.class_scatter(np.zeros((2, 1)), [0, label], 3)


def test_nonfinite_features_stay_in_their_class():
    s = reference.class_scatter([[1.0], [np.inf], [np.nan], [2.0]], [0, 1, 2, 0])
    assert np.isfinite(s.means).ravel().tolist() == [True, False, False]


def test_too_few_classes():
    with pytest.raises(UndefinedStatisticError, match=r"cdnv needs at least two .* found 1 of 2"):
        reference.cdnv([[1.0], [2.0]], [1, 1])
    with pytest.raises(UndefinedStatisticError, match="singular_values needs at least one class"):
        reference.effective_rank(np.zeros((0, 3)), np.zeros(0))


def test_compression_is_calinski_harabasz():
    features, labels = blobs(counts=(10, 10, 10))
    score = calinski_harabasz_score(features, labels)
    assert reference.compression(features, labels) == pytest.approx(27 / (2 * score), rel=1e-12)


def test_compression_of_orthonormal_samples():
    # Ten orthonormal inputs a class, three classes: (1 - 1/n) / (1/n - 1/N) = 13.5.
    labels = np.repeat([0, 1, 2], 10)
    assert reference.compression(np.eye(30, 50), labels) == pytest.approx(13.5, rel=1e-12)
    assert reference.discrimination(np.eye(30, 50), labels) == 1.0


def test_coinciding_and_zero_means():
    with pytest.warns(UserWarning, match="compression is inf"):
        assert reference.compression([[1.0], [-1.0], [0.0]], [0, 0, 1]) == math.inf
    with pytest.warns(UserWarning, match="compression is nan"):
        assert math.isnan(reference.compression([[0.1], [0.1], [0.1]], [0, 1, 2]))
    with pytest.warns(UserWarning, match=r"discrimination is nan: the class means \[1\]"):
        assert math.isnan(reference.discrimination([[1.0], [0.0]], [0, 1]))


def test_closest_pairs_by_hand():
    # Cosines 0.8 of (1, 3), 0.6 of (0, 3), 0 of (0, 1); class 2 has no samples.
    features, labels = [[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]], [0, 1, 3]
    pairs = reference.closest_pairs(features, labels, 9)
    assert [pair[:2] for pair in pairs] == [(1, 3), (0, 3), (0, 1)]
    assert [pair[2] for pair in pairs] == pytest.approx([0.8, 0.6, 0.0])
    assert reference.closest_pairs(np.eye(4), range(4), 2) == [(0, 1, 0.0), (0, 2, 0.0)]
    with pytest.warns(UserWarning, match=r"closest_pairs is nan: the class means \[1\] are zero"):
        assert reference.closest_pairs([[1.0], [0.0]], [0, 1], 1) == []
    with pytest.raises(UndefinedStatisticError, match="closest_pairs needs at least two classes"):
        reference.closest_pairs([[1.0]], [0], 1)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_simplex(num_classes):
    means, labels = np.eye(num_classes), np.arange(num_classes)
    expected = num_classes / (num_classes - 1)
    assert reference.discrimination(means, labels, centered=True) == pytest.approx(expected)
    for statistic in (reference.etf_error, reference.equinorm, reference.equiangularity):
        assert statistic(means, labels) == pytest.approx(0, abs=1e-12)
    assert reference.self_duality(means, labels, means - 1 / num_classes) == pytest.approx(0)


def test_probe_interpolates_and_is_smallest():
    features, labels = blobs(num_features=100)
    weight, bias = reference.probe(features, labels)
    np.testing.assert_allclose(features @ weight.T + bias, np.eye(4)[labels], atol=1e-10)
    # The smallest weight lies in the span of the centred samples.
    centered = features - features.mean(axis=0)
    np.testing.assert_allclose(weight @ np.linalg.pinv(centered) @ centered, weight, atol=1e-10)
    shrunk, _ = reference.probe(features, labels, ridge=1.0)
    assert np.linalg.norm(shrunk) < np.linalg.norm(weight)


def test_nearest_class_is_scikit_learns():
    features, labels = blobs()
    oracle = NearestCentroid().fit(features, labels).predict(features)
    assert reference.nearest_class(features, labels, features).tolist() == oracle.tolist()
    assert reference.ncc_accuracy(features, labels) == np.mean(oracle == labels)
    ignored = np.where(labels == 3, -100, labels)
    own = labels != 3
    queried = reference.ncc_accuracy(features, labels, features, ignored)
    assert queried == np.mean(oracle[own] == labels[own])


def test_ranks():
    features = np.diag([4.0, 2.0, 1.0, 1.0])
    assert reference.numerical_rank(features, range(4), 0.75) == 2
    assert reference.numerical_rank(features, range(4), 0.76) == 3
    assert reference.effective_rank(features, range(4)) == pytest.approx(2**1.75)
    assert reference.numerical_rank(np.zeros((3, 2)), range(3)) == 0
    assert reference.effective_rank(np.zeros((3, 2)), range(3)) == 0.0


def test_stable_rank_and_rankme():
    features = np.diag([4.0, 2.0, 1.0, 1.0])
    assert reference.stable_rank(features, range(4)) == pytest.approx(22 / 16)
    shares = np.array([4, 2, 1, 1]) / 8 + 1e-7
    assert reference.rankme(features, range(4)) == pytest.approx(np.exp(-shares @ np.log(shares)))
    assert reference.stable_rank(np.zeros((3, 2)), range(3)) == 0.0
    assert reference.rankme(np.zeros((3, 2)), range(3)) == 0.0


def test_corrected_trace_between_of_two_by_two_samples():
    # Means 1 and 4 of variance 2 each (n - 1): 2.25 less 2/2 - 2 * 2/4 + 2 * 2 * 2/16.
    s = reference.class_scatter([[0.0], [2.0], [3.0], [5.0]], [0, 0, 1, 1])
    assert s.trace_between == 2.25
    assert s.trace_between_corrected() == pytest.approx(1.75)
    assert s.trace_between_corrected("prior") == pytest.approx(1.75)
    with pytest.raises(UndefinedStatisticError, match=r"two samples a class, found one in \[1\]"):
        reference.compression([[0.0], [2.0], [3.0]], [0, 0, 1], corrected=True)


def test_directional_cdnv_sees_the_line_between_the_means_alone():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    along = rng.standard_normal(80) + 3.0 * labels
    across = 10.0 * rng.standard_normal(80)
    across -= np.where(labels, across[40:].mean(), across[:40].mean())
    features = np.column_stack([along, across])
    found = reference.directional_cdnv(features, labels)
    assert found == pytest.approx(reference.cdnv(along[:, None], labels))
    assert found < reference.cdnv(features, labels) / 10
