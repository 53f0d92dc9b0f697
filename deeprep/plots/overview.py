"""One figure of a report: its two curves with their fits, and the cosines between class means."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec

from deeprep.plots.canvas import check_path, evenly, layer_axis, new_figure, save
from deeprep.plots.class_cosines import CENTERED, RAW, draw_maps, draw_pairs, has_all_pairs
from deeprep.plots.curves import (
    COMPRESSION,
    DISCRIMINATION,
    Curve,
    draw_accuracies,
    draw_residuals,
    draw_with_fit,
    has_accuracies,
)
from deeprep.plots.rows import LayerRow, Rows

_WIDTH = 12.0  # inches
_ACCURACIES_WIDTH = 3.5  # more, where there are accuracies
_CURVES_HEIGHT = 4.8
_BARS_HEIGHT = 3.6
_BESIDE_MAPS = 1.6  # of the width: the classes' names and the scale of colours
_LARGEST_MAP = 2.3
_ABOVE_A_MAP, _AROUND_MAPS = 0.35, 1.0  # of the height: a title each, and what stands once
_MAPS = 8  # layers at most
_MAPS_A_ROW = 4  # of one kind of cosines; two kinds take a row each
_BAR_CHARTS = 3


def plot_report(report: Rows, path: str | Path | None = None) -> Figure:
    """Draw a report: C_l and D_l with fits and residuals, and which classes lie close together.

    The cosines between the class means are heat maps of up to eight layers, evenly chosen, beside
    the five closest pairs of the last one; or, of more than 64 classes, of which a report keeps
    the closest pairs only, bars of the first ten in up to three layers. Below them are those of
    the centred means mu_k - mu_G, where the report has them: means that share a large part, as
    those of an untrained network do, all have a cosine near 1. Accuracies, where there are some,
    have a panel of their own; hollow markers are of test data. Error bars are standard errors, on
    the log axis those of log C_l.

    Parameters
    ----------
    report
        Of any number of layers and classes.
    path
        Where to write the figure, atomically; its suffix chooses the format. None: nowhere.

    Raises
    ------
    ValueError, FileNotFoundError
        For an unknown suffix and a directory that does not exist, before anything is drawn.
    """
    check_path(path)
    with_pairs = [layer for layer in report.layers if RAW.pairs(layer)]
    has_maps = all(has_all_pairs(RAW.pairs(layer)) for layer in with_pairs)
    shown = evenly(len(with_pairs), _MAPS if has_maps else _BAR_CHARTS)
    layers = [with_pairs[index] for index in shown]
    kinds = [RAW, CENTERED] if any(map(CENTERED.pairs, layers)) else [RAW]
    columns, rows = len(layers), len(kinds)
    if has_maps and rows == 1 and columns > _MAPS_A_ROW:
        columns, rows = math.ceil(columns / 2), 2
    side = min(_LARGEST_MAP, (_WIDTH - _BESIDE_MAPS) / max(columns, _MAPS_A_ROW))
    below = rows * (side + _ABOVE_A_MAP) + _AROUND_MAPS if has_maps else rows * _BARS_HEIGHT
    width = _WIDTH + _ACCURACIES_WIDTH * has_accuracies(report)
    figure = new_figure(width, _CURVES_HEIGHT + (below if layers else 0.0))
    figure.suptitle(report.caption, fontsize="medium")
    if not layers:
        _draw_curves(figure, report, None)
        return save(figure, path)
    above, under = figure.subfigures(
        2, 1, height_ratios=[_CURVES_HEIGHT, below], squeeze=False
    ).flat
    _draw_curves(above, report, layers[-1] if has_maps else None)
    if has_maps:
        draw_maps(under, report, layers, kinds, max(columns, _MAPS_A_ROW), 72 * side)
        return save(figure, path)
    for place, (kind, layer) in enumerate((kind, layer) for kind in kinds for layer in layers):
        draw_pairs(under.add_subplot(rows, columns, place + 1), report, layer, kind, count=10)
    return save(figure, path)


def _draw_curves(figure: Figure | SubFigure, report: Rows, closest: LayerRow | None) -> None:
    """Draw both metrics over their residuals; beside them closest pairs of a layer, accuracies."""
    others = (closest is not None) + has_accuracies(report)
    grid = figure.add_gridspec(2, 2 + others, height_ratios=[3, 1])
    for column, curve in enumerate((COMPRESSION, DISCRIMINATION)):
        _draw_curve(figure, grid, column, curve, report)
    if closest is not None:
        draw_pairs(figure.add_subplot(grid[:, 2]), report, closest, RAW, count=5)
    if has_accuracies(report):
        axes = figure.add_subplot(grid[:, -1])
        draw_accuracies(axes, report)
        axes.set_title("accuracy", fontsize="medium", pad=10)
        layer_axis(axes, report.layers)


def _draw_curve(
    figure: Figure | SubFigure, grid: GridSpec, column: int, curve: Curve, report: Rows
) -> None:
    has_fit = curve.line(report) is not None
    axes = figure.add_subplot(grid[0 if has_fit else slice(None), column])
    draw_with_fit(axes, curve, report)
    axes.set_title(curve.title, fontsize="medium", pad=10)
    if has_fit:
        axes.tick_params(labelbottom=False)
        axes = figure.add_subplot(grid[1, column], sharex=axes)
        draw_residuals(axes, curve, report)
    layer_axis(axes, report.layers)
