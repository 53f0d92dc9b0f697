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
from deeprep.theory import LineFit

_RESOLUTION = 150  # dots per inch


def plot_compression(report: LayerReport, path: str | Path) -> None:
    """C_l against l on a log axis, with the line through log C_l, l >= 1; written to `path`."""
    _plot_metric(
        report,
        path,
        lambda layer: layer.compression,
        label=r"$C_l$",
        title=r"compression  $C_l = \mathrm{Tr}\,\Sigma_W / \mathrm{Tr}\,\Sigma_B$",
        marker="o",
        color="#1f5fa8",
        fit=report.compression_fit,
        log_axis=True,
        rate=lambda slope: rf"$\times${10**slope:.3g}",
    )


def plot_discrimination(report: LayerReport, path: str | Path) -> None:
    """D_l against l, with the line through D_l, l >= 1; written to `path`."""
    _plot_metric(
        report,
        path,
        lambda layer: layer.discrimination,
        label=r"$D_l$",
        title=r"discrimination  $D_l = 1 - \max_{k \neq k'} \cos(\mu_k, \mu_{k'})$",
        marker="s",
        color="#b3421f",
        fit=report.discrimination_fit,
        log_axis=False,
        rate=lambda slope: f"{slope:+.3g}",
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
    marker: str,
    color: str,
    fit: LineFit | None,
    log_axis: bool,
    rate: Callable[[float], str],
) -> None:
    """One metric against the layer's index, and the line fitted to it (its log10) for l >= 1."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*_finite(report, metric), label=label, marker=marker, color=color)
    if fit is not None:
        depths = [layer.index for layer in report.layers[1:]]
        fitted = [fit.intercept + fit.slope * depth for depth in depths]
        fit_label = rf"fit: {rate(fit.slope)} a layer, $R^2$ = {fit.r_squared:.3f}"
        line = [10**value for value in fitted] if log_axis else fitted
        axes.plot(depths, line, "--", color="0.35", label=fit_label)
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
