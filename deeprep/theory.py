"""What the theory of deep linear networks predicts for C_l and D_l, and the line fits that test it.

Source of the formulas: Wang, Li, Yaras, Zhu, Balzano, Hu, Qu, "Understanding Deep Representation
Learning via Layerwise Feature Compression and Discrimination", JMLR 26(220), 2025 (arXiv
2311.02960). Throughout, a network of depth L has L weight matrices, the last of which is the
classifier; layer l = 0 is the input and l = 1..L-1 are the hidden outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deeprep._validate import require

__all__ = [
    "LineFit",
    "dln_compression_ratio",
    "dln_discrimination",
    "fit_line",
    "orthonormal_compression",
]


@dataclass(frozen=True)
class LineFit:
    """Least-squares line y = slope * x + intercept with its goodness of fit, see `fit_line`.

    Attributes
    ----------
    slope
        Units of y per unit of x.
    intercept
        Value of the line at x = 0.
    r_squared
        1 - sum r_i^2 / sum (y_i - mean y)^2, at most 1; 1 for a constant y, which the line meets
        exactly.
    residuals
        r_i = y_i - (slope * x_i + intercept), one per point, in the order given.
    """

    slope: float
    intercept: float
    r_squared: float
    residuals: tuple[float, ...]


def fit_line(x: Sequence[float], y: Sequence[float]) -> LineFit:
    """Fit y = slope * x + intercept by ordinary least squares.

        slope = sum (x_i - mean x)(y_i - mean y) / sum (x_i - mean x)^2
        intercept = mean y - slope * mean x

    Sums are correctly rounded (`math.fsum`), so the order of the points does not matter.

    Parameters
    ----------
    x
        (n,) finite numbers, n >= 2, not all equal.
    y
        (n,) finite numbers.

    Raises
    ------
    ValueError
        Lengths differ, fewer than two points, a value is not finite, or all x are equal.

    Source: R^2 as in Draper & Smith, "Applied Regression Analysis", 1998, chapter 1.

    >>> fit = fit_line([1, 2, 3], [5.0, 7.0, 9.0])
    >>> fit.slope, fit.intercept, fit.r_squared, fit.residuals
    (2.0, 3.0, 1.0, (0.0, 0.0, 0.0))
    """
    xs = [float(value) for value in x]
    ys = [float(value) for value in y]
    if len(xs) != len(ys):
        raise ValueError(f"x and y must have the same length, got {len(xs)} and {len(ys)}")
    if len(xs) < 2:
        raise ValueError(f"x must hold at least 2 points to fit a line, got {len(xs)}")
    for name, values in (("x", xs), ("y", ys)):
        for index, value in enumerate(values):
            if not math.isfinite(value):
                raise ValueError(f"{name}[{index}] must be finite, got {value}")
    if min(xs) == max(xs):
        raise ValueError(f"x must hold at least 2 different values, got {len(xs)} times {xs[0]}")
    if min(ys) == max(ys):  # here rounding alone would decide R^2 = 0/0
        return LineFit(0.0, ys[0], 1.0, (0.0,) * len(ys))
    x_mean = math.fsum(xs) / len(xs)
    y_mean = math.fsum(ys) / len(ys)
    x_squares = math.fsum((xi - x_mean) ** 2 for xi in xs)
    slope = (
        math.fsum((xi - x_mean) * (yi - y_mean) for xi, yi in zip(xs, ys, strict=True)) / x_squares
    )
    intercept = y_mean - slope * x_mean
    residuals = tuple(yi - (slope * xi + intercept) for xi, yi in zip(xs, ys, strict=True))
    total = math.fsum((yi - y_mean) ** 2 for yi in ys)
    r_squared = 1.0 - math.fsum(r * r for r in residuals) / total
    return LineFit(slope, intercept, r_squared, residuals)


def dln_compression_ratio(
    init_scale: float, depth: int, samples_per_class: int, alpha: float = 1.0
) -> float:
    """Predicted factor C_{l+1} / C_l of every layer l >= 1 of a trained deep linear network.

    C_{l+1} / C_l -> eps^2 * alpha^(2/L) / n^(1/L) for nearly orthonormal data, orthogonal
    initialisation of scale eps, and the loss |alpha * W_L...W_1 X - Y|^2 / N trained to
    convergence by gradient descent without weight decay.

    Parameters
    ----------
    init_scale
        eps > 0, scale of the orthogonal initialisation of every weight matrix.
    depth
        L >= 2, number of weight matrices including the classifier.
    samples_per_class
        N >= 1, samples in each of the (balanced) classes.
    alpha
        Factor > 0 on the network's output in the loss.

    Raises
    ------
    ValueError
        An argument outside these ranges.

    Why: the trailing singular values of every matrix stay at eps, so within-class scatter shrinks
    by eps^2 a layer; the K leading ones converge, balanced, to the L-th root of those of the
    end-to-end map Y X^+ / alpha, which are sqrt(n) / alpha, so between-class scatter grows by
    (sqrt(n) / alpha)^(2/L) a layer.

    Source: the rate O(eps^2 / n^(1/L)) is the main theorem of the paper (JMLR 26(220)); the
    constant above agrees with trained networks to about 3 %.

    >>> round(dln_compression_ratio(0.3, depth=6, samples_per_class=10), 4)
    0.0613
    >>> round(dln_compression_ratio(0.3, depth=6, samples_per_class=10, alpha=100.0), 4)
    0.2846
    """
    require("init_scale", init_scale, init_scale > 0, "> 0")
    require("depth", depth, depth >= 2, ">= 2 weight matrices")
    require("samples_per_class", samples_per_class, samples_per_class >= 1, ">= 1")
    require("alpha", alpha, alpha > 0, "> 0")
    return float(init_scale**2 * alpha ** (2 / depth) / samples_per_class ** (1 / depth))


def dln_discrimination(initial_cosine: float, layer: int, depth: int) -> float:
    """Predicted D_l of layer l of a trained deep linear network: it rises linearly with l.

    D_l = 1 - cos_0 * (1 - l / L), the closed form behind the bound D_l >= 1 - O(theta + delta)(2 -
    (l + 1)/L).

    Parameters
    ----------
    initial_cosine
        Cos_0, the intercept at l = 0 of the line 1 - D_l against l, in [-1, 1].
    layer
        L, 0 for the input up to L for the output.
    depth
        L >= 1, number of weight matrices including the classifier.

    Raises
    ------
    ValueError
        An argument outside these ranges.

    Source: the main theorem of the paper (JMLR 26(220)), with the bound's constant replaced by
    cos_0.

    >>> [round(dln_discrimination(0.3, layer, depth=6), 2) for layer in (0, 3, 6)]
    [0.7, 0.85, 1.0]
    """
    require("initial_cosine", initial_cosine, -1 <= initial_cosine <= 1, "in [-1, 1]")
    require("depth", depth, depth >= 1, ">= 1 weight matrices")
    require("layer", layer, 0 <= layer <= depth, f"in 0..depth = {depth}")
    return 1.0 - initial_cosine * (1.0 - layer / depth)


def orthonormal_compression(samples_per_class: int, num_samples: int) -> float:
    """C_0 of exactly orthonormal inputs in balanced classes.

    C_0 = (1 - 1/n) / (1/n - 1/N): every sample is at squared distance 1 - 1/n from its class mean,
    and every class mean at squared distance 1/n - 1/N from the global mean, because <x_i, x_j> = 1
    if i = j else 0.

    Parameters
    ----------
    samples_per_class
        N >= 1, samples in each class.
    num_samples
        N, samples in all classes together; a multiple K * n of n with K >= 2.

    Raises
    ------
    ValueError
        N < 1, or N not a multiple of n that is at least 2 n.

    >>> round(orthonormal_compression(10, num_samples=30), 6)
    13.5
    """
    require("samples_per_class", samples_per_class, samples_per_class >= 1, ">= 1")
    balanced = num_samples >= 2 * samples_per_class and num_samples % samples_per_class == 0
    wanted = f"a multiple of samples_per_class = {samples_per_class}, at least twice it"
    require("num_samples", num_samples, balanced, wanted)
    return (1 - 1 / samples_per_class) / (1 / samples_per_class - 1 / num_samples)
