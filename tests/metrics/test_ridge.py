"""choose_ridge: against explicit hat matrices, and on data where least squares fails."""

import math

import numpy as np
import pytest
import torch

import deeprep
from deeprep import UndefinedStatisticError, metrics, reference


def problem(num_samples, num_features, num_classes=3, signal=1.0, rank=None):
    rng = np.random.default_rng(num_samples + num_features)
    labels = np.arange(num_samples) % num_classes
    features = rng.standard_normal((num_samples, num_features))
    features += signal * rng.standard_normal((num_classes, num_features))[labels]
    if rank is not None:
        features = features @ rng.standard_normal((num_features, rank))
        features = features @ rng.standard_normal((rank, num_features))
    return features, labels


@pytest.mark.parametrize(
    "shape", [(200, 5), (60, 40), (30, 30), (31, 30), (20, 90), (80, 40, 3, 1.0, 6), (7, 1)]
)
@pytest.mark.parametrize("signal", [0.0, 0.3, 3.0])
def test_it_is_that_of_the_explicit_hat_matrix(shape, signal):
    features, labels = problem(*shape[:3], *([signal, shape[4]] if len(shape) > 3 else [3, signal]))
    found = metrics.choose_ridge(deeprep.class_scatter(features, labels, full=True))
    assert found == pytest.approx(reference.choose_ridge(features, labels), rel=1e-6)


def test_where_least_squares_fits_any_labels_the_ridge_generalises():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    means = 1.5 * rng.standard_normal((4, 130)) / math.sqrt(130) * 4
    train, test = (means[labels] + rng.standard_normal((120, 130)) for _ in range(2))
    s = deeprep.class_scatter(train, labels, full=True)
    plain, chosen = metrics.probe(s), metrics.probe(s, metrics.choose_ridge(s))
    assert plain.accuracy(train, labels) == 1.0
    assert chosen.accuracy(test, labels) > plain.accuracy(test, labels) + 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_and_offsets(dtype):
    features, labels = problem(300, 20)
    rows, labels = torch.from_numpy(features + 50.0).to(dtype), torch.from_numpy(labels)
    found = metrics.choose_ridge(deeprep.class_scatter(rows, labels, full=True))
    assert found == pytest.approx(reference.choose_ridge(rows.double(), labels), rel=1e-3)


@pytest.mark.filterwarnings("ignore:2 of 3 classes")
def test_degenerate_states():
    one_point = deeprep.class_scatter(torch.ones(6, 3), torch.arange(6) % 3, full=True)
    assert metrics.choose_ridge(one_point) == 0.0
    one_class = deeprep.class_scatter(torch.randn(6, 3), torch.zeros(6).long(), 3, full=True)
    assert math.isfinite(metrics.choose_ridge(one_class))
    one_sample = deeprep.class_scatter(torch.randn(1, 3), torch.zeros(1).long(), full=True)
    assert metrics.choose_ridge(one_sample) == 0.0
    with pytest.raises(UndefinedStatisticError, match="choose_ridge needs at least one class"):
        metrics.choose_ridge(deeprep.ClassScatter(3, 4, full=True))
    with pytest.raises(ValueError, match="full=True"):
        metrics.choose_ridge(deeprep.class_scatter(torch.eye(4), torch.arange(4) % 2))
    broken = torch.eye(4)
    broken[0, 0] = math.nan
    s = deeprep.class_scatter(broken, torch.arange(4) % 2, full=True)
    with pytest.warns(UserWarning, match="choose_ridge is nan: the features of 1 class"):
        found = metrics.choose_ridge(s)
    assert math.isnan(found)
