"""directional_cdnv: degenerate input, closed forms, rows that are not the state's."""

import math

import numpy as np
import pytest
import torch

import deeprep
from deeprep import UndefinedStatisticError, metrics, reference


def blobs(num_classes=4, per_class=9, num_features=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(num_classes * per_class) % num_classes
    means = rng.standard_normal((num_classes, num_features))
    return means[labels] + rng.standard_normal((len(labels), num_features)), labels


def test_in_one_dimension_it_is_the_cdnv():
    features, labels = blobs(num_features=1)
    s = deeprep.class_scatter(features, labels)
    found = metrics.directional_cdnv(s, features, labels)
    assert found == pytest.approx(metrics.cdnv(s), rel=1e-12)


def test_spread_across_the_lines_does_not_count():
    # Means on the first axis, spread on the second: nothing lies along.
    features = np.array([[0.0, 1.0], [0.0, -1.0], [2.0, 3.0], [2.0, -3.0]])
    labels = np.array([0, 0, 1, 1])
    s = deeprep.class_scatter(features, labels)
    assert metrics.directional_cdnv(s, features, labels) == 0.0
    assert metrics.cdnv(s) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_is_read(dtype):
    features, labels = blobs()
    features, labels = torch.from_numpy(features).to(dtype), torch.from_numpy(labels)
    s = deeprep.class_scatter(features, labels)
    expected = reference.directional_cdnv(features.double(), labels)
    assert metrics.directional_cdnv(s, features, labels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_tiny_spreads_far_from_the_origin(offset):
    features, labels = blobs(per_class=3)
    scale = 2.0**-30
    means = reference.class_scatter(features, labels).means
    tight = means[labels] + scale * (features - means[labels])
    s = deeprep.class_scatter(tight + offset, labels)
    # Rounding of float64 at 1e6 is 1e-10, of spreads of 1e-9.
    expected = scale**2 * reference.directional_cdnv(features, labels)
    found = metrics.directional_cdnv(s, tight + offset, labels)
    assert found == pytest.approx(expected, rel=1e-6 if offset == 0 else 0.3)


def test_near_means_far_from_the_others():
    # Classes 0 and 1 are 1e-6 apart, class 2 is 1e3 away: a Gram matrix alone has no digits left.
    features = np.array([[0.0], [0.0], [1e-6], [1e-6], [1e3], [1e3]])
    features += 1e-7 * np.array([[1.0], [-1.0]] * 3)
    labels = np.repeat([0, 1, 2], 2)
    s = deeprep.class_scatter(features, labels)
    found = metrics.directional_cdnv(s, features, labels)
    assert found == pytest.approx(1e-14 / 1e-12 / 3, rel=1e-5)


@pytest.mark.filterwarnings("ignore:1 of 5 classes")
def test_rows_that_do_not_count():
    features, labels = blobs()
    known = labels != 2
    s = deeprep.class_scatter(features[known], labels[known], 5)
    expected = metrics.directional_cdnv(s, features[known], labels[known])
    # Class 2 has no mean, and class 4 neither.
    assert metrics.directional_cdnv(s, features, labels) == pytest.approx(expected, rel=1e-12)
    ignored = np.where(known, labels, -100)
    assert metrics.directional_cdnv(s, features, ignored) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(UndefinedStatisticError, match="needs at least one row that counts"):
        metrics.directional_cdnv(s, features[~known], labels[~known])


def test_rows_of_another_set_are_measured_about_the_means_of_the_state():
    s = deeprep.class_scatter(np.array([[0.0], [2.0]]), np.array([0, 1]))
    rows, labels = np.array([[1.0], [2.0], [2.5]]), np.array([0, 1, 1])
    # Class 0: 1^2 / 2^2; class 1: (0 + 0.5^2) / 2 / 2^2.
    found = metrics.directional_cdnv(s, rows, labels)
    assert found == pytest.approx((0.25 + 0.03125) / 2)
    assert metrics.directional_cdnv(s, rows[:1], labels[:1]) == pytest.approx(0.25)


def test_undefined():
    features, labels = blobs()
    s = deeprep.class_scatter(features, np.zeros_like(labels), 3)
    message = "directional_cdnv needs at least two classes with samples, found 1 of 3"
    with pytest.raises(UndefinedStatisticError, match=message):
        metrics.directional_cdnv(s, features, labels)
    same = deeprep.class_scatter(np.array([[1.0], [3.0], [1.0], [3.0]]), np.array([0, 0, 1, 1]))
    with pytest.warns(UserWarning, match="directional_cdnv is nan: two class means coincide"):
        assert math.isnan(metrics.directional_cdnv(same, np.array([[1.0]]), np.array([0])))
    bad = deeprep.class_scatter(np.array([[math.inf], [3.0]]), np.array([0, 1]))
    with pytest.warns(UserWarning, match=r"directional_cdnv is nan.* 1 class \(0\)"):
        assert math.isnan(metrics.directional_cdnv(bad, np.array([[1.0]]), np.array([0])))


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (torch.ones(2, 4), torch.tensor([0, 1]), ValueError, r"shape \(2, 4\), expected \(N, 5\)"),
        (torch.ones(2, 5), torch.tensor([0]), ValueError, r"labels has shape \(1,\)"),
        (torch.ones(2, 5), torch.tensor([0, 4]), ValueError, r"labels\[1\] is 4"),
        (torch.ones(2, 5).long(), torch.tensor([0, 1]), TypeError, "features has dtype"),
    ],
)
def test_input_that_does_not_fit(features, labels, error, message):
    s = deeprep.class_scatter(*blobs())
    with pytest.raises(error, match=message):
        metrics.directional_cdnv(s, features, labels)
