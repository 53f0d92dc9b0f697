"""per_class: degenerate input, and what the columns add up to."""

import math

import numpy as np
import pytest
import torch

import deeprep
from deeprep import UndefinedStatisticError, metrics


def blobs():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), [3, 8, 2, 1, 6])
    means = rng.standard_normal((5, 4))
    return means[labels] + rng.standard_normal((20, 4)), labels


@pytest.mark.parametrize("weighting", ["uniform", "prior"])
def test_columns_add_up_to_the_layers_metrics(weighting):
    s = deeprep.class_scatter(*blobs())
    columns = metrics.per_class(s, weighting)
    share = s.counts.double() / s.num_samples
    expected = deeprep.compression(s, weighting)
    assert float(share @ columns.compression) == pytest.approx(expected, rel=1e-12)
    assert float(columns.cdnv.mean()) == pytest.approx(metrics.cdnv(s), rel=1e-12)
    assert 1 - float(columns.cosine.max()) == pytest.approx(deeprep.discrimination(s), rel=1e-12)
    first, second, _ = metrics.closest_classes(s)
    assert columns.nearest[first] == second
    assert columns.nearest[second] == first


@pytest.mark.filterwarnings("ignore:2 of 7 classes")
def test_empty_classes():
    features, labels = blobs()
    columns = metrics.per_class(deeprep.class_scatter(features, labels + (labels > 2) + 1, 7))
    assert columns.counts.tolist() == [0, 3, 8, 2, 0, 1, 6]
    assert columns.nearest[[0, 4]].tolist() == [-1, -1]
    for name in set(columns._fields) - {"counts", "nearest"}:
        defined = getattr(columns, name).isfinite().tolist()
        assert defined == [False, True, True, True, False, True, True], name
    assert not set(columns.nearest[[1, 2, 3, 5, 6]].tolist()) & {0, 4, -1}


def test_too_few_classes():
    s = deeprep.class_scatter(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), 4)
    with pytest.raises(
        UndefinedStatisticError, match=r"per_class needs at least two .*found 1 of 4"
    ):
        metrics.per_class(s)


def test_a_zero_mean_is_nobodys_neighbour():
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.1]])
    columns = metrics.per_class(deeprep.class_scatter(means, torch.arange(3)))
    assert columns.nearest.tolist() == [-1, 2, 1]
    assert math.isnan(columns.cosine[0])
    assert columns.cosine[1] < 0
    alone = metrics.per_class(deeprep.class_scatter(means[:2], torch.arange(2)))
    assert alone.nearest.tolist() == [-1, -1]


def test_coinciding_means():
    features = torch.tensor([[0.0], [2.0], [1.0], [1.0]])
    columns = metrics.per_class(deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1])))
    assert columns.compression.tolist() == pytest.approx([math.inf, math.nan], nan_ok=True)
    assert columns.centered_norm.tolist() == [0.0, 0.0]
    assert columns.cdnv.tolist() == [math.inf, math.inf]


def test_nonfinite_features_leave_what_is_a_class_own():
    features, labels = blobs()
    features[labels == 2] = math.nan
    s = deeprep.class_scatter(features, labels)
    with pytest.warns(UserWarning, match=r"what per_class compares .* is nan.* 1 class \(2\)"):
        columns = metrics.per_class(s)
    assert columns.variance.isfinite().tolist() == [True, True, False, True, True]
    assert columns.counts.tolist() == [3, 8, 2, 1, 6]
    assert columns.nearest.tolist() == [-1] * 5
    assert columns.cdnv.isnan().all()
    assert columns.compression.isnan().all()
