"""The least-squares line that tests a predicted rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


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

    @property
    def correlation(self) -> float:
        """Pearson's correlation of x and y, the root of R^2 with the sign of the slope.

        nan for a constant y, of which it is not defined.

        >>> fit_line([1, 2, 3], [9.0, 7.0, 5.0]).correlation
        -1.0
        """
        if self.slope == 0.0 and self.r_squared == 1.0:
            return math.nan
        return math.copysign(math.sqrt(max(self.r_squared, 0.0)), self.slope)


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

    Notes
    -----
    R^2 as in Draper, Smith, Applied regression analysis, 1998, chapter 1.

    Examples
    --------
    >>> fit = fit_line([1, 2, 3], [5.0, 7.0, 9.0])
    >>> fit.slope, fit.intercept, fit.r_squared, fit.residuals
    (2.0, 3.0, 1.0, (0.0, 0.0, 0.0))
    """
    xs = [float(value) for value in x]
    ys = [float(value) for value in y]
    if len(xs) != len(ys):
        raise ValueError(f"x and y have lengths {len(xs)} and {len(ys)}, expected the same")
    if len(xs) < 2:
        raise ValueError(f"x holds {len(xs)} points, expected at least 2 to fit a line")
    for name, values in (("x", xs), ("y", ys)):
        for index, value in enumerate(values):
            if not math.isfinite(value):
                raise ValueError(f"{name}[{index}] is {value}, expected a finite number")
    if min(xs) == max(xs):
        raise ValueError(f"x holds {len(xs)} times {xs[0]}, expected at least 2 different values")
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
