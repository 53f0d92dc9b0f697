"""The pooled within-class scatter keeps its digits at any scale of the features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deeprep
from deeprep import ClassScatter, class_scatter, reference
from deeprep.state import pooled

WIDTH, NUM_CLASSES = 8, 3
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def make_data(scale, dtype=torch.float32, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, WIDTH, dtype=torch.float64, generator=generator) + offset
    return (scale * features).to(dtype), torch.arange(200) % NUM_CLASSES


@pytest.mark.parametrize("block_rows", [64, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-18, 1e-10, 1e10, 1e18, 1e25, 1e30])
def test_small_and_large_features(monkeypatch, scale, dtype, block_rows):
    monkeypatch.setattr(pooled, "_BLOCK_ROWS", block_rows)
    features, labels = make_data(scale, dtype)
    s = class_scatter(features, labels, full=True)
    expected = reference.class_scatter(features.double().numpy(), labels.numpy(), NUM_CLASSES)
    assert float(s.pooled_scatter.trace()) == pytest.approx(float(s.sumsq.sum()), rel=1e-6)
    error = np.abs(s.within.numpy() - expected.within).max()
    assert error <= 1e-6 * np.abs(expected.within).max()
    assert deeprep.metrics.nc1(s) == pytest.approx(
        deeprep.metrics.nc1(class_scatter(*make_data(1.0, dtype), full=True)), rel=0.02
    )


# Rows are scaled here, and the core, which sums rows of no ordinary size otherwise, does as ever.
@pytest.mark.parametrize("exponent", [-40, -35, 46, 50])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_power_of_two_changes_no_digit(exponent, offset):
    features, labels = make_data(1.0, offset=offset)
    expected = class_scatter(features, labels, full=True).pooled_scatter
    found = class_scatter(features * 2.0**exponent, labels, full=True).pooled_scatter
    assert torch.equal(found, expected * 2.0 ** (2 * exponent))


def test_half_precision_from_its_smallest_to_its_largest_number():
    for scale in (6e-8, 6e4):
        features, labels = make_data(1.0)
        features = (features.sign() * scale).half()
        s = class_scatter(features, labels, full=True)
        assert float(s.pooled_scatter.trace()) == pytest.approx(float(s.sumsq.sum()), rel=1e-6)


def test_batches_of_unlike_scale():
    s = ClassScatter(NUM_CLASSES, WIDTH, full=True)
    for scale in (1e-25, 1.0, 1e25):
        s.update(*make_data(scale))
    assert float(s.pooled_scatter.trace()) == pytest.approx(float(s.sumsq.sum()), rel=1e-6)


def test_what_is_not_a_number_stays_in_its_column():
    for bad in (float("nan"), float("inf")):
        features, labels = make_data(1.0)
        expected = class_scatter(features, labels, full=True).pooled_scatter
        features[5, 2] = bad
        found = class_scatter(features, labels, full=True).pooled_scatter
        others = [column for column in range(WIDTH) if column != 2]
        assert found[2].isnan().all()
        torch.testing.assert_close(
            found[others][:, others], expected[others][:, others], rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e13, 1e14, 1e17, 1e18, 1e25, 1e30])
def test_ordinary_columns_keep_their_digits_beside_a_large_one(scale, dtype):
    features, labels = make_data(1.0, dtype)
    features[:, 0] *= scale
    s = class_scatter(features, labels, full=True)
    expected = reference.class_scatter(features.double().numpy(), labels.numpy(), NUM_CLASSES)
    found, wanted = s.within.diagonal().numpy(), np.diag(expected.within)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_the_default_device_is_not_where_scales_are_made():
    features, labels = make_data(1e25)
    expected = class_scatter(features, labels, full=True).pooled_scatter
    s = ClassScatter(NUM_CLASSES, WIDTH, full=True, device="cpu")
    torch.set_default_device("meta")
    try:
        s.update(features, labels)
    finally:
        torch.set_default_device(None)
    assert torch.equal(s.pooled_scatter, expected)


def test_the_device_scales_as_the_host_does():
    traces = [0.0, 2.0**-400, 2.0**-60, 2.0**-50, 1.0, 2.0**100, 2.0**126, 2.0**127, 2.0**300]
    for trace in (*traces, float("inf"), float("nan")):
        scales = pooled._scales_on_device(torch.tensor(trace, dtype=torch.float64))
        exponent = pooled._exponent(trace)
        assert (float(scales.there), float(scales.back)) == (2.0**exponent, 2.0 ** (-2 * exponent))
