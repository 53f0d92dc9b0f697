"""Closed forms and the line fit, against NumPy and against identities they must satisfy."""

import math

import numpy as np
import pytest

from deeprep.theory import (
    dln_compression_ratio,
    dln_discrimination,
    fit_line,
    orthonormal_compression,
)


def test_correlation_of_a_line_is_pearsons():
    rng = np.random.default_rng(0)
    for slope in (-2.0, 0.3):
        x = rng.standard_normal(20)
        y = slope * x + rng.standard_normal(20)
        expected = np.corrcoef(x, y)[0, 1]
        assert fit_line(x, y).correlation == pytest.approx(expected, rel=1e-9)
    assert math.isnan(fit_line([1, 2, 3], [4.0, 4.0, 4.0]).correlation)
    assert fit_line([-1, 0, 1], [1.0, 0.0, 1.0]).correlation == 0.0


def test_fit_line_agrees_with_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20)
    y = 3 * x - 1 + rng.normal(size=20)
    fit = fit_line(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    assert fit.slope == pytest.approx(slope, rel=1e-12)
    assert fit.intercept == pytest.approx(intercept, rel=1e-12)
    assert fit.r_squared == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-12)
    np.testing.assert_allclose(fit.residuals, y - slope * x - intercept, atol=1e-12)


def test_a_constant_is_fitted_exactly():
    fit = fit_line([1, 2, 3], [0.1, 0.1, 0.1])
    assert (fit.slope, fit.intercept, fit.r_squared) == (0.0, 0.1, 1.0)


def test_the_fit_does_not_depend_on_the_order_of_the_points():
    x, y = [0.1, 0.7, 2.3, 9.1], [4.0, 1e8, -3.0, 0.2]
    forward, backward = fit_line(x, y), fit_line(x[::-1], y[::-1])
    assert (forward.slope, forward.r_squared) == (backward.slope, backward.r_squared)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1], [1], "expected at least 2 to fit a line"),
        ([1, 2], [1, 2, 3], "lengths 2 and 3, expected the same"),
        ([2, 2], [1, 3], "2 different values"),
        ([1, 2], [1, math.nan], r"y\[1\] is nan, expected a finite number"),
        ([1, math.inf], [1, 2], r"x\[1\] is inf, expected a finite number"),
    ],
)
def test_fit_line_refuses_what_has_no_line(x, y, message):
    with pytest.raises(ValueError, match=message):
        fit_line(x, y)


def test_orthonormal_compression_is_that_of_the_identity():
    features = np.eye(12)
    labels = np.repeat(np.arange(3), 4)
    means = np.stack([features[labels == k].mean(0) for k in range(3)])
    within = np.square(features - means[labels]).sum() / 12
    between = np.square(means - features.mean(0)).sum() / 3
    assert orthonormal_compression(4, 12) == pytest.approx(within / between, rel=1e-12)


def test_discrimination_rises_linearly_to_one():
    values = [dln_discrimination(0.3, layer, depth=6) for layer in range(7)]
    assert np.diff(values) == pytest.approx([0.05] * 6)
    assert values[-1] == 1.0


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: dln_compression_ratio(0.0, 6, 10), "init_scale"),
        (lambda: dln_compression_ratio(0.3, 1, 10), "depth"),
        (lambda: dln_compression_ratio(0.3, 6, 0), "samples_per_class"),
        (lambda: dln_compression_ratio(0.3, 6, 10, alpha=-1), "alpha"),
        (lambda: dln_discrimination(1.5, 1, 6), "initial_cosine"),
        (lambda: dln_discrimination(0.5, 7, 6), "layer"),
        (lambda: orthonormal_compression(10, 35), "num_samples"),
        (lambda: orthonormal_compression(10, 10), "num_samples"),
    ],
)
def test_errors_name_the_argument(call, name):
    with pytest.raises(ValueError, match=f"^{name} is "):
        call()
