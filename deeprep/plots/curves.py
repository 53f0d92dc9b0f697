"""C_l and D_l against the layer, with their fits, residuals and standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deeprep.plots.canvas import check_path, layer_axis, log_axis, new_figure, save
from deeprep.plots.rows import Rows, number
from deeprep.theory import LineFit

# A standard error of many times the value says "unknown"; so does a bar over six decades.
_LARGEST_FACTOR = 1e3
# `metrics.jackknife` says why three have no errors; reports of older versions hold some.
_LEAST_CLASSES_WITH_BARS = 4
_LEAST_POINTS_OF_A_FIT = 3  # a line meets two whatever they are
_MARKER_SIZE = 6.0  # points
_LEGEND_LINE = 0.11  # of the height of an axis


@dataclass(frozen=True)
class Curve:
    """How a metric is drawn against the layer's index."""

    metric: str  # of a LayerRow
    symbol: str
    title: str
    marker: str
    color: str
    is_log: bool
    gap: str  # what a layer without a value to draw has
    residual: str
    fit: Callable[[Rows], LineFit | None]
    rate: Callable[[float], str]

    def values(self, report: Rows) -> list[float]:
        """Value of every layer; nan where there is none to draw."""
        return [self._drawable(number(layer, self.metric)) for layer in report.layers]

    def _drawable(self, value: float | None) -> float:
        if value is None or not math.isfinite(value) or (self.is_log and value <= 0.0):
            return math.nan
        return value

    def line(self, report: Rows) -> LineFit | None:
        """Return the line fitted to the metric, if it is one through more than two points."""
        fit = self.fit(report)
        return fit if fit is not None and len(fit.residuals) >= _LEAST_POINTS_OF_A_FIT else None

    def draw(
        self,
        axes: Axes,
        report: Rows,
        x: Sequence[float],
        markersize: float = _MARKER_SIZE,
        **style: Any,
    ) -> list[float]:
        """Draw the values against `x`, a gap where there is none, with the standard errors.

        Returns
        -------
        The values and the ends of their error bars, for `scale`.
        """
        values = self.values(report)
        errors = [number(layer, f"{self.metric}_error") for layer in report.layers]
        bars = [self._bar(*pair) for pair in zip(values, errors, strict=True)]
        if report.num_classes < _LEAST_CLASSES_WITH_BARS or all(math.isnan(low) for low, _ in bars):
            bars = []
        # Markers of many layers do not run into each other; caps show on both sides of theirs.
        size = min(markersize, 120 / max(1, len(x)))
        axes.errorbar(
            x,
            values,
            yerr=list(zip(*bars, strict=True)) or None,
            capsize=0.7 * size,
            elinewidth=1.0,
            markersize=size,
            **style,
        )
        drawn = list(values)
        for value, (below, above) in zip(values, bars, strict=False):  # there may be no bars
            drawn += [value - below, value + above]
        return drawn

    def _bar(self, value: float, error: float | None) -> tuple[float, float]:
        """Lengths of the error bar below and above.

        On a log axis those of log C, whose standard error is error / C: equally long to the eye,
        and never below zero.
        """
        if error is None or not math.isfinite(error) or math.isnan(value):
            return math.nan, math.nan
        if not self.is_log:
            return error, error
        factor = math.exp(min(error / value, math.log(_LARGEST_FACTOR)))
        return value - value / factor, value * factor - value

    def scale(self, axes: Axes, values: Sequence[float]) -> None:
        """Set the y axis and its grid for the values that are drawn."""
        if self.is_log:
            log_axis(axes, [value for value in values if not math.isnan(value)])
        axes.grid(which="both" if self.is_log else "major", alpha=0.25)


COMPRESSION = Curve(
    metric="compression",
    symbol="$C_l$",
    title=r"compression  $C_l = \mathrm{Tr}\,\Sigma_W / \mathrm{Tr}\,\Sigma_B$",
    marker="o",
    color="#0072b2",
    is_log=True,
    gap="0, inf or not defined",
    residual=r"$\log_{10} C_l$ - fit",
    fit=lambda report: report.compression_fit,
    rate=lambda slope: rf"$\times${10**slope:.3g}",
)
DISCRIMINATION = Curve(
    metric="discrimination",
    symbol="$D_l$",
    title=r"discrimination  $D_l = 1 - \max_{k \neq k'}\,\cos(\mu_k, \mu_{k'})$",
    marker="s",
    color="#d55e00",
    is_log=False,
    gap="not defined",
    residual="$D_l$ - fit",
    fit=lambda report: report.discrimination_fit,
    rate=lambda slope: f"{slope:+.3g}",
)


# What a LayerRow calls an accuracy, its label, marker and colour.
_ACCURACIES = (
    ("probe_accuracy", "probe", "o", "#0072b2"),
    ("ncc_accuracy", "nearest class mean", "s", "#d55e00"),
)


def has_accuracies(report: Rows) -> bool:
    """Whether there is an accuracy to draw, of training or of test data."""
    layers = [*report.layers, *(report.test.layers if report.test is not None else ())]
    return any(number(layer, name) is not None for layer in layers for name, *_ in _ACCURACIES)


def draw_accuracies(axes: Axes, report: Rows) -> None:
    """Draw the accuracies of probe and nearest mean against the layer; hollow: on test data."""
    for name, label, marker, color in _ACCURACIES:
        plain: dict[str, Any] = {"label": label}
        hollow = {"label": f"{label}, test", "linestyle": ":", "markerfacecolor": "none"}
        for rows, look in ((report, plain), (report.test, hollow)):
            found = [] if rows is None else [(r.index, number(r, name)) for r in rows.layers]
            if any(value is not None for _, value in found):
                values = [math.nan if value is None else value for _, value in found]
                depths = [depth for depth, _ in found]
                axes.plot(depths, values, marker=marker, color=color, **look)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize="small", framealpha=0.8, edgecolor="none")


def plot_accuracies(report: Rows, path: str | Path | None = None) -> Figure:
    """Draw the accuracies of probe and nearest mean, training and test; written to `path`.

    Raises
    ------
    ValueError
        For a report that holds none.
    """
    check_path(path)
    if not has_accuracies(report):
        raise ValueError("report holds no accuracies, expected one made with accuracy=True")
    figure = new_figure(5.5, 4)
    axes = figure.add_subplot()
    draw_accuracies(axes, report)
    layer_axis(axes, report.layers)
    axes.set_ylabel("accuracy")
    return save(figure, path)


def plot_compression(report: Rows, path: str | Path | None = None) -> Figure:
    """C_l against l on a log axis, with the line through log C_l, l >= 1; written to `path`."""
    return _plot_curve(COMPRESSION, report, path)


def plot_discrimination(report: Rows, path: str | Path | None = None) -> Figure:
    """D_l against l, with the line through D_l, l >= 1; written to `path`."""
    return _plot_curve(DISCRIMINATION, report, path)


def _plot_curve(curve: Curve, report: Rows, path: str | Path | None) -> Figure:
    check_path(path)
    figure = new_figure(5.5, 4)
    axes = figure.add_subplot()
    draw_with_fit(axes, curve, report)
    layer_axis(axes, report.layers)
    axes.set_ylabel(curve.title)
    return save(figure, path)


def draw_with_fit(axes: Axes, curve: Curve, report: Rows) -> None:
    """Draw one metric against the layer's index, and the line fitted to it for l >= 1.

    On test data, where the report has some, it is drawn with hollow markers and no line of its own.
    """
    depths = [layer.index for layer in report.layers]
    values = curve.values(report)
    look: dict[str, Any] = {"label": curve.symbol, "marker": curve.marker, "color": curve.color}
    drawn = curve.draw(axes, report, depths, **look)
    if report.test is not None:
        look |= {"label": f"{curve.symbol}, test", "linestyle": ":", "markerfacecolor": "none"}
        drawn += curve.draw(axes, report.test, depths, **look)
    fit = curve.line(report)
    if fit is not None:
        fitted = [fit.intercept + fit.slope * depth for depth in depths[1:]]
        line = [10**value for value in fitted] if curve.is_log else fitted
        label = rf"fit: {curve.rate(fit.slope)} a layer, $R^2$ = {fit.r_squared:.3f}"
        axes.plot(depths[1:], line, "--", color="0.35", label=label)
        drawn += line
    missing = [depth for depth, value in zip(depths, values, strict=True) if math.isnan(value)]
    for depth in missing:
        # A label with an underscore is not listed: one entry speaks for all.
        label = curve.gap if depth == missing[0] else "_"
        axes.axvspan(depth - 0.5, depth + 0.5, color="0.8", alpha=0.6, linewidth=0, label=label)
    curve.scale(axes, drawn)
    if depths:
        axes.set_xlim(min(depths) - 0.5, max(depths) + 0.5)
    if not curve.is_log:
        # By itself a legend finds no place between error bars.
        low, high = axes.get_ylim()
        entries = len(axes.get_legend_handles_labels()[1])
        axes.set_ylim(low, high + _LEGEND_LINE * entries * (high - low))
    ground: dict[str, Any] = {"fontsize": "small", "framealpha": 0.8, "edgecolor": "none"}
    axes.legend(loc="best" if curve.is_log else "upper right", **ground)


def draw_residuals(axes: Axes, curve: Curve, report: Rows) -> None:
    """Draw what the line leaves over, layer by layer; the report has a fit."""
    fit = curve.line(report)
    assert fit is not None
    fitted = [
        layer.index
        for layer, value in zip(report.layers[1:], curve.values(report)[1:], strict=True)
        if not math.isnan(value)
    ]
    axes.axhline(0.0, color="0.35", linestyle="--", linewidth=1.0)
    axes.vlines(fitted, 0.0, fit.residuals, color=curve.color, linewidth=1.5)
    axes.plot(fitted, fit.residuals, marker=curve.marker, linestyle="", color=curve.color, ms=4)
    # Values on a line leave nothing over but rounding, which is not to be blown up.
    largest = max(1e-3, *map(abs, fit.residuals))
    axes.set_ylim(-1.3 * largest, 1.3 * largest)
    axes.grid(alpha=0.25)
    axes.set_ylabel(curve.residual, fontsize="small")
