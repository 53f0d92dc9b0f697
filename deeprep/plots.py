"""Figures of reports, in the manner of the paper's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deeprep._files import atomic_path
from deeprep.report import LayerMetrics, LayerReport

_RESOLUTION = 150  # dots per inch


def plot_compression(report: LayerReport, path: str | Path) -> None:
    """C_l against l on a log axis, with the line through log C_l, l >= 1; written to `path`."""
    fit = report.compression_fit
    _plot_metric(
        report,
        path,
        lambda layer: layer.compression,
        label=r"$C_l$",
        title=r"compression  $C_l = \mathrm{Tr}\,\Sigma_W / \mathrm{Tr}\,\Sigma_B$",
        style={"marker": "o", "color": "#1f5fa8"},
        log_axis=True,
        line=fit and (lambda depth: 10 ** (fit.intercept + fit.slope * depth)),
        line_label=fit and rf"$\times${10**fit.slope:.3g} a layer, $R^2$ = {fit.r_squared:.3f}",
    )


def plot_discrimination(report: LayerReport, path: str | Path) -> None:
    """D_l against l, with the line through D_l, l >= 1; written to `path`."""
    fit = report.discrimination_fit
    _plot_metric(
        report,
        path,
        lambda layer: layer.discrimination,
        label=r"$D_l$",
        title=r"discrimination  $D_l = 1 - \max_{k \neq k'} \cos(\mu_k, \mu_{k'})$",
        style={"marker": "s", "color": "#b3421f"},
        log_axis=False,
        line=fit and (lambda depth: fit.intercept + fit.slope * depth),
        line_label=fit and rf"{fit.slope:+.3g} a layer, $R^2$ = {fit.r_squared:.3f}",
    )


def plot_evolution(reports: Sequence[tuple[int, LayerReport]], path: str | Path) -> None:
    """Four metrics of every layer against the epoch; written to `path`.

    Parameters
    ----------
    reports : (epoch, report) of the same layers, in order of epochs.
    path : of the figure; its suffix chooses the format.
    """
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels: tuple[tuple[str, bool, Callable[[LayerMetrics], float | None]], ...] = (
        (r"compression $C_l$", True, lambda layer: layer.compression),
        (r"discrimination $D_l$", False, lambda layer: layer.discrimination),
        ("numerical rank", False, lambda layer: layer.numerical_rank),
        ("nearest-class-mean accuracy", False, lambda layer: layer.ncc_accuracy),
    )
    names = [layer.name for layer in reports[-1][1].layers]
    colors = colormaps["viridis"].resampled(max(2, len(names)))
    for axes, (title, is_log, metric) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for index, name in enumerate(names):
            curve = [(epoch, metric(report.layers[index])) for epoch, report in reports]
            curve = [(e, v) for e, v in curve if v is not None and math.isfinite(v)]
            if curve:
                axes.plot(*zip(*curve, strict=True), ".-", color=colors(index), label=name)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(0, None)
        axes.xaxis.set_major_formatter("{x:g}")
        if is_log:
            axes.set_yscale("log")
        axes.grid(alpha=0.25)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    _save(figure, path)


def _plot_metric(
    report: LayerReport,
    path: str | Path,
    metric: Callable[[LayerMetrics], float | None],
    *,
    label: str,
    title: str,
    style: dict[str, str],
    log_axis: bool,
    line: Callable[[int], float] | None,
    line_label: str | None,
) -> None:
    """One metric against the layer's index, and the line fitted to the layers l >= 1."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*_finite(report, metric), label=label, **style)
    if line is not None:
        depths = [layer.index for layer in report.layers[1:]]
        fitted = [line(depth) for depth in depths]
        axes.plot(depths, fitted, "--", color="0.35", label=f"fit: {line_label}")
    if log_axis:
        axes.set_yscale("log")
    axes.set_xlabel("layer $l$")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(title)
    axes.grid(which="both" if log_axis else "major", alpha=0.25)
    axes.legend(frameon=False)
    _save(figure, path)


def _finite(
    report: LayerReport, metric: Callable[[LayerMetrics], float | None]
) -> tuple[list[int], list[float]]:
    """Indices and values of the layers on which the metric is a finite number."""
    points = [(layer.index, metric(layer)) for layer in report.layers]
    kept = [(index, value) for index, value in points if value is not None and math.isfinite(value)]
    return [index for index, _ in kept], [value for _, value in kept]


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, dpi=_RESOLUTION)
