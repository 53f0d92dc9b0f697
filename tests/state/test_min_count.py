"""with_min_count: the state of the rows of large classes alone, whatever the others hold."""

from __future__ import annotations

import math

import pytest
import torch

import deeprep
from deeprep import ClassScatter, class_scatter, metrics


def problem(counts=(9, 3, 0, 1, 12, 5), width=6):
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels))]
    return torch.randn(len(labels), width) + labels.unsqueeze(1), labels


def large_only(features, labels, min_count, **options):
    counts = labels.bincount(minlength=6)
    ignored = torch.where(counts[labels] >= min_count, labels, -100)
    return class_scatter(features, ignored, 6, **options)


@pytest.mark.parametrize("min_count", [1, 2, 4, 9, 10, 100])
def test_it_is_the_state_of_the_rows_that_are_left(min_count):
    features, labels = problem()
    s = class_scatter(features, labels, 6)
    left, wanted = s.with_min_count(min_count), large_only(features, labels, min_count)
    for name, tensor in wanted.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(left.state_dict()[name], tensor), name
    assert left.num_samples == wanted.num_samples
    assert s.num_samples == 30


@pytest.mark.filterwarnings("ignore:.* of 6 classes have no samples")
def test_every_metric_leaves_them_out():
    features, labels = problem()
    s = class_scatter(features, labels, 6).with_min_count(4)
    wanted = large_only(features, labels, 4)
    names = ("compression", "discrimination", "cdnv", "equinorm", "etf_error", "gnc2")
    for name in (*names, "equiangularity"):
        assert getattr(metrics, name)(s) == getattr(metrics, name)(wanted), name
    assert metrics.closest_pairs(s, 9) == metrics.closest_pairs(wanted, 9)
    with pytest.raises(deeprep.UndefinedStatisticError, match="found 3 of 6"):
        metrics.jackknife(s)
    assert metrics.per_class(s).nearest.tolist() == metrics.per_class(wanted).nearest.tolist()
    weights = torch.randn(6, 6)
    assert metrics.self_duality(s, weights) == metrics.self_duality(wanted, weights)
    assert metrics.nearest_class(s, features).tolist() == (
        metrics.nearest_class(wanted, features).tolist()
    )


def test_without_small_classes_it_is_the_state_itself():
    features, labels = problem()
    s = class_scatter(features, labels, 6, full=True)
    assert s.with_min_count(1) is s
    assert ClassScatter(3, 2).with_min_count(5).num_samples == 0


def test_a_bad_small_class_is_gone():
    features, labels = problem()
    features[labels == 1] = math.nan
    features[labels == 3] = math.inf
    left = class_scatter(features, labels, 6).with_min_count(4)
    assert left.nonfinite_classes == []
    assert math.isfinite(deeprep.compression(left))


@pytest.mark.filterwarnings("error")
def test_what_was_asked_for_is_no_warning():
    features, labels = problem()
    deeprep.compression(class_scatter(features, labels, 6).with_min_count(4))


@pytest.mark.filterwarnings("ignore:3 of 6 classes have no samples")
def test_the_scatter_is_kept_where_single_samples_are_left_out():
    features, labels = problem((9, 1, 0, 1, 12, 5))
    s = class_scatter(features, labels, 6, full=True).with_min_count(2)
    wanted = large_only(features, labels, 2, full=True)
    assert s.full
    assert s.unit_roundoff == wanted.unit_roundoff
    torch.testing.assert_close(s.pooled_scatter, wanted.pooled_scatter, rtol=1e-6, atol=1e-6)
    assert metrics.vci(s) == pytest.approx(metrics.vci(wanted), rel=1e-6)


def test_the_scatter_of_other_classes_is_not_known():
    features, labels = problem()
    s = class_scatter(features, labels, 6, full=True)
    left = s.with_min_count(4)
    assert not left.full
    message = "full=False, .* part in it of those with fewer than 4 samples is not known"
    for statistic in (metrics.nc1, metrics.probe, metrics.singular_values):
        with pytest.raises(ValueError, match=message):
            statistic(left)
    assert s.full


def test_the_copy_is_a_state_of_its_own(tmp_path):
    features, labels = problem()
    s = class_scatter(features, labels, 6)
    before = s.means.clone()
    left = s.with_min_count(4)
    left.update(torch.full((1, 6), 7.0), torch.tensor([1]))
    assert left.counts.tolist() == [9, 1, 0, 0, 12, 5]
    assert left.means[1].tolist() == [7.0] * 6
    assert torch.equal(s.means, before)
    left.save(tmp_path / "left.safetensors")
    assert ClassScatter.load(tmp_path / "left.safetensors").num_samples == 27


@pytest.mark.parametrize(
    ("min_count", "error"), [(0, ValueError), (-3, ValueError), (1.5, TypeError)]
)
def test_what_is_no_count(min_count, error):
    with pytest.raises(error, match="min_count is"):
        ClassScatter(3, 2).with_min_count(min_count)
