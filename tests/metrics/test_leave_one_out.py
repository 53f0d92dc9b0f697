"""jackknife: degenerate input, and what leaving out a class does far from equal classes."""

import math

import numpy as np
import pytest
import torch

import deeprep
from deeprep import UndefinedStatisticError, metrics, reference


def blobs(counts, num_features=6, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    means = rng.standard_normal((len(counts), num_features))
    return means[labels] + scale * rng.standard_normal((len(labels), num_features)), labels


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_too_few_classes(classes):
    features, labels = blobs([4] * classes)
    message = f"jackknife needs at least four classes with samples, found {classes} of 5"
    with pytest.raises(UndefinedStatisticError, match=message):
        metrics.jackknife(deeprep.class_scatter(features, labels, 5))
    with pytest.raises(UndefinedStatisticError, match="jackknife needs at least four classes"):
        reference.jackknife(features, labels)


def test_another_weighting_and_single_samples():
    s = deeprep.class_scatter(*blobs([4, 1, 4, 4]))
    with pytest.raises(ValueError, match="weighting is 'classes'"):
        metrics.jackknife(s, "classes")
    with pytest.raises(UndefinedStatisticError, match=r"found one in 1 class \(1\)"):
        metrics.jackknife(s, corrected=True)
    assert metrics.jackknife(s).compression > 0


def test_nonfinite_features():
    features, labels = blobs([4] * 4)
    features[0, 0] = math.nan
    with pytest.warns(UserWarning, match=r"jackknife is nan.* 1 class \(0\)"):
        errors = metrics.jackknife(deeprep.class_scatter(features, labels))
    assert np.isnan(errors).all()


def test_the_classes_that_are_left_may_coincide():
    # Without class 3 the means are one: compression is inf there, and has no error.
    features = torch.tensor([[1.0], [3.0], [1.0], [3.0], [1.0], [3.0], [7.0], [9.0]])
    s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    with pytest.warns(UserWarning, match=r"error of compression is nan: .* of 1 class \(3\)"):
        errors = metrics.jackknife(s)
    assert math.isnan(errors.compression)
    assert errors.discrimination == 0.0  # all means have one direction, without any of them too


def test_a_zero_mean_leaves_the_error_of_compression():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [5.0, 0.0], [2.0, 2.0]])
    s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 2, 3]))
    with pytest.warns(UserWarning, match="error of discrimination is nan.* are zero"):
        errors = metrics.jackknife(s)
    assert math.isnan(errors.discrimination)
    assert errors.compression > 0


@pytest.mark.parametrize("weighting", ["uniform", "prior"])
@pytest.mark.parametrize("distance", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("count", [2, 2000])
def test_a_class_that_holds_nearly_all_of_the_scatter(distance, count, weighting):
    # Taking its share back out of Tr Sigma_B would leave no digits of what the others hold.
    features, labels = blobs([5, 3, 4, count], scale=0.1)
    features[labels == 3] += distance
    s = deeprep.class_scatter(features, labels)
    expected = reference.jackknife(features, labels, weighting)
    assert metrics.jackknife(s, weighting) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("counts", [[9] * 30, [1000, 1, 1, 1], [1, 1, 1000, 1000]])
def test_any_number_of_samples_far_from_the_origin(counts):
    features, labels = blobs(counts, scale=1e-4)
    features += 1e3
    expected = reference.jackknife(features, labels)
    found = metrics.jackknife(deeprep.class_scatter(features, labels))
    assert found == pytest.approx(expected, rel=1e-5)


def test_closest_pair_in_every_place():
    # Of four classes, any two may be the closest pair: the first two rows, the last, or mixed.
    for first in range(4):
        for second in range(first + 1, 4):
            means = np.eye(4, 5)
            means[second] = means[first] + 0.3 * means[second]
            expected = reference.jackknife(means, np.arange(4))[1]
            found = metrics.jackknife(deeprep.class_scatter(means, np.arange(4)))
            assert found.discrimination == pytest.approx(expected, rel=1e-9), (first, second)
            assert expected > 0


def test_error_is_that_of_drawing_classes():
    # Many draws of 40 classes: the mean of the jackknife's errors is the spread of the draws.
    rng = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(100):
        labels = np.repeat(np.arange(40), 5)
        means, sizes = rng.standard_normal((40, 8)), rng.uniform(0.1, 1.0, 40)
        noise = sizes[labels, None] * rng.standard_normal((200, 8))
        s = deeprep.class_scatter(means[labels] + noise, labels)
        values.append(deeprep.compression(s))
        errors.append(metrics.jackknife(s).compression)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)
