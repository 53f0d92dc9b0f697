"""The neural-collapse geometry: degenerate input and closed forms."""

import math

import numpy as np
import pytest
import torch

import deeprep
from deeprep import metrics, reference


def scatter_of_means(means):
    means = torch.as_tensor(means, dtype=torch.float64)
    return deeprep.class_scatter(means, torch.arange(len(means)))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_simplex(num_classes):
    # Any orthogonal means are a simplex about their mean: cosines -1/(K-1), not clipped at D = 1.
    s = scatter_of_means(5.0 * torch.eye(num_classes, num_classes + 2) + 1.0)
    expected = num_classes / (num_classes - 1)
    assert deeprep.discrimination(s, centered=True) == pytest.approx(expected, rel=1e-12)
    assert metrics.equinorm(s) == pytest.approx(0, abs=1e-12)
    assert metrics.equiangularity(s) == pytest.approx(0, abs=1e-12)
    assert metrics.etf_error(s) == pytest.approx(0, abs=1e-12)
    assert metrics.gnc2(s) == pytest.approx(0, abs=1e-12)
    assert metrics.self_duality(s, 0.1 * (s.means - s.global_mean)) == pytest.approx(0, abs=1e-12)
    assert metrics.self_duality(s, s.global_mean - s.means) == pytest.approx(2)


def test_deviations_from_a_simplex():
    # Means a, -a, 2a, -2a of one line: cosines +-1 (2 and 4 pairs), norms 1, 1, 2, 2.
    s = scatter_of_means([[1.0], [-1.0], [2.0], [-2.0]])
    assert metrics.equinorm(s) == pytest.approx(0.5 / 1.5)
    assert metrics.equiangularity(s) == pytest.approx(math.sqrt(1 - (1 / 3) ** 2))
    # MM'/|MM'|_F = mm'/10; its inner product with the simplex (I - J/4)/sqrt(3) is 1/sqrt(3).
    assert metrics.etf_error(s) == pytest.approx(math.sqrt(2 - 2 / math.sqrt(3)))


def test_gnc2_of_a_square():
    # Directions on a square: four pairs sqrt(2) apart, two pairs 2 apart, whatever their lengths.
    s = scatter_of_means([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, -3.0]])
    kernels = np.log([2**-0.5] * 4 + [1 / 2] * 2)
    assert metrics.gnc2(s) == pytest.approx(np.std(kernels) / -np.mean(kernels))


def test_gnc2_of_coinciding_directions():
    s = scatter_of_means([[1.0, 0.0], [2.0, 0.0], [-3.0, 0.0]])
    with pytest.warns(UserWarning, match="gnc2 is nan: two class means lie in the same direction"):
        assert math.isnan(metrics.gnc2(s))


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e6])
def test_a_mean_at_the_global_mean_has_no_centred_direction(offset):
    s = scatter_of_means(np.array([[-0.3, 0.7], [0.0, 0.0], [0.3, -0.7]]) + offset)
    for statistic in (
        lambda s: metrics.discrimination(s, centered=True),
        metrics.equiangularity,
        metrics.gnc2,
    ):
        with pytest.warns(UserWarning, match=r"1 class \(1\)"):
            assert math.isnan(statistic(s))


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_coinciding_means_have_no_geometry(value):
    # A dead layer: every feature is the bias.
    s = scatter_of_means(torch.full((3, 5), value, dtype=torch.float64))
    weight = torch.ones(3, 5)
    for statistic in (
        metrics.equinorm,
        metrics.etf_error,
        lambda s: metrics.self_duality(s, weight),
    ):
        with pytest.warns(UserWarning, match="is nan: all class means coincide"):
            assert math.isnan(statistic(s))


def test_self_duality_of_bad_weights():
    s = scatter_of_means(torch.eye(3))
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3\), expected \(3, 3\)"):
        metrics.self_duality(s, torch.ones(2, 3))
    with pytest.warns(UserWarning, match="self_duality is nan: the weight is zero"):
        assert math.isnan(metrics.self_duality(s, torch.zeros(3, 3)))


def test_huge_and_tiny_scales():
    means = np.random.default_rng(0).standard_normal((5, 4))
    for scale in (1e-100, 1e100):
        s = scatter_of_means(means * scale)
        for name in ("discrimination", "equinorm", "equiangularity", "etf_error", "gnc2"):
            expected = getattr(reference, name)(means, np.arange(5))
            assert getattr(metrics, name)(s) == pytest.approx(expected, rel=1e-9), name


def test_state_is_left_alone():
    s = deeprep.class_scatter(torch.randn(40, 6), torch.arange(40) % 4, full=True)
    before = {k: v.clone() for k, v in s.state_dict().items() if isinstance(v, torch.Tensor)}
    for name in filter(str.islower, metrics.__all__):
        extra = {
            "alpha_req": (1, 6),
            "class_ranks": (torch.randn(4, 6), torch.arange(4)),
            "closest_pairs": (3,),
            "directional_cdnv": (torch.randn(4, 6), torch.arange(4)),
            "ncc_accuracy": (torch.randn(4, 6), torch.arange(4)),
            "ncc_mismatch": (torch.randn(4, 6), torch.arange(4)),
            "nearest_class": (torch.randn(4, 6),),
            "self_duality": (torch.randn(4, 6),),
        }
        getattr(metrics, name)(s, *extra.get(name, ()))
    for key, value in before.items():
        assert torch.equal(s.state_dict()[key], value), key
