"""Which classes lie close together: the cosines between class means as heat maps and as bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from deeprep.metrics import ClosestClasses
from deeprep.plots.canvas import LETTER_WIDTH, shorten, shorten_layer
from deeprep.plots.rows import LayerRow, Rows

_LEAST_FONT, _FONT = 6.0, 8.3  # points, of the classes' names
_MISSING = "0.85"  # grey, for a cosine that is not defined


@dataclass(frozen=True)
class Cosines:
    """One of the two kinds of cosines: of which vectors, and where a layer has them."""

    vectors: str
    formula: str
    pairs: Callable[[LayerRow], Sequence[ClosestClasses]]


RAW = Cosines(
    vectors="class means",
    formula=r"$\cos(\mu_k, \mu_{k'})$",
    pairs=lambda layer: layer.closest_pairs or (),
)
CENTERED = Cosines(
    vectors="centred class means",
    formula=r"$\cos(\mu_k - \mu_G, \mu_{k'} - \mu_G)$",
    pairs=lambda layer: layer.closest_pairs_centered or (),
)


def has_all_pairs(pairs: Sequence[ClosestClasses]) -> bool:
    """Say whether these are all pairs of their classes, as a heat map needs them."""
    classes = len(_classes_of(pairs))
    return len(pairs) == classes * (classes - 1) // 2


def _classes_of(pairs: Sequence[ClosestClasses]) -> list[int]:
    return sorted({pair.first for pair in pairs} | {pair.second for pair in pairs})


def draw_pairs(axes: Axes, report: Rows, layer: LayerRow, kind: Cosines, count: int) -> None:
    """Draw the `count` closest pairs of classes of a layer as bars, their names on top of these."""
    pairs = kind.pairs(layer)[:count]
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
    axes.set_xlabel(f"cosine between {kind.vectors}")
    axes.set_title(f"closest classes in {_title(layer, 16)}", fontsize="medium")


def draw_maps(
    figure: SubFigure,
    report: Rows,
    layers: Sequence[LayerRow],
    kinds: Sequence[Cosines],
    columns: int,
    side: float,
) -> None:
    """Draw heat maps of the cosines of every layer, with one scale for all.

    Parameters
    ----------
    figure
        To draw into.
    report, layers
        Layers of this report that have cosines.
    kinds
        One, over as many rows of maps as it takes, or two, a row each.
    columns
        Maps in a row.
    side
        Of a map, in points.
    """
    rows = max(len(kinds), math.ceil(len(layers) / columns))
    what = " and ".join(f"{kind.vectors}, {kind.formula}" for kind in kinds)
    figure.suptitle(f"cosines between {what}", fontsize="medium")
    drawn = []
    for row, kind in enumerate(kinds):
        for place, layer in enumerate(layers):
            is_left = place % columns == 0
            is_lowest = kind is kinds[-1] and place + columns >= len(layers)
            axes = figure.add_subplot(rows, columns, row * columns + place + 1)
            image = _draw_map(axes, kind.pairs(layer), _classes_of(RAW.pairs(layer)))
            _name_classes(axes, report, layer, side, rows=is_left, columns=is_lowest)
            axes.set_title(_title(layer, max(6, int(side / LETTER_WIDTH) - 8)), fontsize="small")
            if is_left and len(kinds) > 1:
                axes.set_ylabel(kind.vectors)
            drawn.append(axes)
    figure.colorbar(image, ax=drawn, shrink=0.8, aspect=25, ticks=[-1, -0.5, 0, 0.5, 1])


def _draw_map(axes: Axes, pairs: Sequence[ClosestClasses], classes: Sequence[int]) -> AxesImage:
    place = {index: position for position, index in enumerate(classes)}
    cosines = np.full((len(classes), len(classes)), np.nan)
    np.fill_diagonal(cosines, 1.0)
    for first, second, cosine in pairs:
        row, column = place[first], place[second]
        cosines[row, column] = cosines[column, row] = cosine
    colors = colormaps["RdBu_r"].with_extremes(bad=_MISSING)
    return axes.imshow(cosines, cmap=colors, vmin=-1.0, vmax=1.0, interpolation="nearest")


def _name_classes(
    axes: Axes, report: Rows, layer: LayerRow, side: float, *, rows: bool, columns: bool
) -> None:
    """Name the classes on the axes if their names can be read there; else number the ticks."""
    classes = _classes_of(RAW.pairs(layer))
    room = side / len(classes)
    if room < _LEAST_FONT:
        axes.tick_params(labelleft=rows, labelbottom=columns, labelsize="small")
        return
    names = [shorten(report.class_name(index), 12) for index in classes]
    size = min(_FONT, 0.9 * room)
    axes.set_xticks(range(len(classes)), names if columns else [], fontsize=size)
    axes.set_yticks(range(len(classes)), names if rows else [], fontsize=size)
    if max(map(len, names)) * LETTER_WIDTH > room:
        axes.tick_params(axis="x", rotation=90)


def _title(layer: LayerRow, length: int) -> str:
    return f"$l$ = {layer.index}: {shorten_layer(layer.name, length)}"
