"""One figure of a report: its two curves with their fits, and the cosines between class means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from deeprep.metrics import ClosestClasses
from deeprep.plots.canvas import check_path, evenly, new_figure, save, shorten
from deeprep.plots.curves import (
    COMPRESSION,
    DISCRIMINATION,
    Curve,
    draw_residuals,
    draw_with_fit,
)
from deeprep.plots.rows import LayerRow, Rows

_WIDTH = 12.0  # inches
_CURVES_HEIGHT = 4.4
_MAP_HEIGHT = 3.0
_BARS_HEIGHT = 3.6
_MAPS = 8  # layers at most, of which a row holds
_MAPS_A_ROW = 4
_NAMED_CLASSES = 20  # of more, the names on the axes could not be read
_BAR_CHARTS = 3


def plot_report(report: Rows, path: str | Path | None = None) -> Figure:
    """Draw a report: C_l and D_l with fits and residuals, and which classes lie close together.

    The cosines between the class means are heat maps of up to eight layers, evenly chosen, beside
    the five closest pairs of the last one; or, of more than 64 classes, of which a report keeps
    the closest pairs only, bars of the first ten in up to three layers. Error bars are standard
    errors, on the log axis those of log C_l.

    Parameters
    ----------
    report
        Of any number of layers and classes.
    path
        Where to write the figure, atomically; its suffix chooses the format. None: nowhere.

    Raises
    ------
    ValueError, FileNotFoundError
        For a suffix that is no format and a directory that there is not, before it is drawn.
    """
    check_path(path)
    with_pairs = [layer for layer in report.layers if layer.closest_pairs]
    has_maps = all(_has_all_pairs(layer.closest_pairs or ()) for layer in with_pairs)
    shown = evenly(len(with_pairs), _MAPS if has_maps else _BAR_CHARTS)
    layers = [with_pairs[index] for index in shown]
    rows = math.ceil(len(layers) / _MAPS_A_ROW)
    columns = _MAPS_A_ROW if rows < 2 else math.ceil(len(layers) / rows)
    below = rows * _MAP_HEIGHT if has_maps else _BARS_HEIGHT
    figure = new_figure(_WIDTH, _CURVES_HEIGHT + (below if layers else 0.0))
    figure.suptitle(report.caption, fontsize="medium")
    if not layers:
        _draw_curves(figure, report, None)
        return save(figure, path)
    above, under = figure.subfigures(
        2, 1, height_ratios=[_CURVES_HEIGHT, below], squeeze=False
    ).flat
    _draw_curves(above, report, layers[-1] if has_maps else None)
    if has_maps:
        _draw_maps(under, report, layers, (rows, columns))
    else:
        for column, layer in enumerate(layers):
            _draw_pairs(under.add_subplot(1, len(layers), column + 1), report, layer, count=10)
    return save(figure, path)


def _has_all_pairs(pairs: Sequence[ClosestClasses]) -> bool:
    classes = len(_classes_of(pairs))
    return len(pairs) == classes * (classes - 1) // 2


def _classes_of(pairs: Sequence[ClosestClasses]) -> list[int]:
    return sorted({pair.first for pair in pairs} | {pair.second for pair in pairs})


def _draw_curves(figure: Figure | SubFigure, report: Rows, closest: LayerRow | None) -> None:
    """Draw both metrics over their residuals, and the closest pairs of a layer beside them."""
    grid = figure.add_gridspec(2, 2 if closest is None else 3, height_ratios=[3, 1])
    for column, curve in enumerate((COMPRESSION, DISCRIMINATION)):
        _draw_curve(figure, grid, column, curve, report)
    if closest is not None:
        _draw_pairs(figure.add_subplot(grid[:, 2]), report, closest, count=5)


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
    axes.set_xlabel("layer $l$")


def _draw_pairs(axes: Axes, report: Rows, layer: LayerRow, count: int) -> None:
    """Draw the `count` closest pairs of classes of a layer as bars, their names on top of these."""
    pairs = (layer.closest_pairs or ())[:count]
    cosines = [pair.cosine for pair in pairs]
    axes.barh(range(len(pairs)), cosines, height=0.8, color="#9ecae1")
    axes.set_xlim(min(0.0, *cosines), 1.0)
    for row, (first, second, cosine) in enumerate(pairs):
        names = " / ".join(shorten(report.class_name(index), 16) for index in (first, second))
        beside: dict[str, Any] = {
            "va": "center",
            "transform": axes.get_yaxis_transform(),
            "fontsize": "small",
        }
        axes.text(0.02, row, names, ha="left", **beside)
        axes.text(0.98, row, f"{cosine:.4f}", ha="right", **beside)
    axes.set_ylim(max(count, len(pairs)) - 0.5, -0.5)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("cosine between class means")
    axes.set_title(f"closest classes in {_title(layer, 20)}", fontsize="medium")


def _draw_maps(
    figure: Figure | SubFigure,
    report: Rows,
    layers: Sequence[LayerRow],
    shape: tuple[int, int],
) -> None:
    """Draw the cosines of every layer as a heat map, with one scale for all."""
    columns = shape[1]
    figure.suptitle(r"cosines between class means, $\cos(\mu_k, \mu_{k'})$", fontsize="medium")
    drawn = [figure.add_subplot(*shape, place + 1) for place in range(len(layers))]
    for place, (axes, layer) in enumerate(zip(drawn, layers, strict=True)):
        is_left, is_lowest = place % columns == 0, place + columns >= len(layers)
        image = _draw_map(axes, report, layer, name_rows=is_left, name_columns=is_lowest)
    figure.colorbar(image, ax=drawn, shrink=0.8, aspect=25, ticks=[-1, -0.5, 0, 0.5, 1])


def _draw_map(
    axes: Axes, report: Rows, layer: LayerRow, *, name_rows: bool, name_columns: bool
) -> AxesImage:
    pairs = layer.closest_pairs or ()
    classes = _classes_of(pairs)
    place = {index: position for position, index in enumerate(classes)}
    cosines = np.eye(len(classes))
    for first, second, cosine in pairs:
        row, column = place[first], place[second]
        cosines[row, column] = cosines[column, row] = cosine
    image = axes.imshow(cosines, cmap="RdBu_r", vmin=-1.0, vmax=1.0, interpolation="nearest")
    axes.set_title(_title(layer, 24), fontsize="small")
    if len(classes) <= _NAMED_CLASSES:
        names = [shorten(report.class_name(index), 12) for index in classes]
        size = "small" if len(classes) <= 10 else "xx-small"
        axes.set_xticks(range(len(classes)), names if name_columns else [], fontsize=size)
        axes.set_yticks(range(len(classes)), names if name_rows else [], fontsize=size)
        if max(map(len, names)) > 2:
            axes.tick_params(axis="x", rotation=90)
    else:
        axes.tick_params(labelleft=name_rows, labelbottom=name_columns, labelsize="small")
    return image


def _title(layer: LayerRow, length: int) -> str:
    return f"$l$ = {layer.index}: {shorten(layer.name, length)}"
