"""Several reports, of epochs or of models, in one figure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from deeprep.plots.canvas import (
    check_path,
    index_axis,
    layer_axis,
    legend_beside,
    new_figure,
    save,
    scale_colors,
    shorten,
)
from deeprep.plots.curves import COMPRESSION, DISCRIMINATION
from deeprep.plots.rows import Rows

# Okabe and Ito's colours, which the colour-blind tell apart too; yellow is too pale for a line.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LEGEND_ENTRIES = 14


def compare(
    reports: Mapping[str, Rows] | Sequence[tuple[str, Rows]],
    path: str | Path | None = None,
) -> Figure:
    """Draw C_l and D_l of several reports, a colour each, in one figure.

    Reports whose names are numbers, or differ in one number only ("epoch 1", "epoch 10"), are drawn
    in the order of these, from dark to bright. The x axis is the layer, by name if all reports have
    the same; it is the relative depth l/L, L the last layer of each report, if their numbers of
    layers differ.

    Parameters
    ----------
    reports
        Name -> report, or (name, report) pairs; at least one.
    path
        Where to write the figure, atomically; its suffix chooses the format. None: nowhere.

    Raises
    ------
    ValueError, FileNotFoundError
        For no reports, an unknown suffix, and a directory that does not exist.

    Examples
    --------
    >>> import torch, deeprep
    >>> def report(noise):
    ...     features = torch.eye(3).repeat(20, 1) + noise * torch.randn(60, 3)
    ...     scatter = deeprep.class_scatter(features, torch.arange(60) % 3)
    ...     return deeprep.LayerReport.from_scatters({"input": scatter})
    >>> figure = deeprep.plots.compare({"epoch 0": report(0.5), "epoch 9": report(0.1)})
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['epoch 0', 'epoch 9']
    """
    check_path(path)
    named = [(str(name), report) for name, report in _items(reports)]
    if not named:
        raise ValueError("reports is empty, expected at least one")
    numbers = _numbers([name for name, _ in named])
    if numbers is not None:
        named = [pair for _, pair in sorted(zip(numbers, named, strict=True), key=lambda p: p[0])]
    depths = sorted({len(report.layers) for _, report in named})
    figure = new_figure(11, 4.4)
    for axes, curve in zip(figure.subplots(1, 2), (COMPRESSION, DISCRIMINATION), strict=True):
        drawn: list[float] = []
        for index, (name, report) in enumerate(named):
            last = max(1, len(report.layers) - 1)
            x = [layer.index / (last if len(depths) > 1 else 1) for layer in report.layers]
            style = _style(index, len(named), ordered=numbers is not None)
            drawn += curve.draw(axes, report, x, label=shorten(name, 32), markersize=4, **style)
        curve.scale(axes, drawn)
        axes.set_title(curve.title, fontsize="medium", pad=10)
        if len(depths) > 1:
            listed = ", ".join(map(str, depths))
            axes.set_xlabel(f"relative depth $l/L$ (reports of {listed} layers)")
        elif len({tuple(layer.name for layer in report.layers) for _, report in named}) == 1:
            layer_axis(axes, named[0][1].layers)
        else:
            axes.set_xlabel("layer $l$")
            index_axis(axes.xaxis)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    # Of a scale of colours some tell the others; of unordered ones every name is needed.
    most = _LEGEND_ENTRIES if numbers is not None else len(labels)
    legend_beside(figure, handles, labels, most)
    return save(figure, path)


def _items(
    reports: Mapping[str, Rows] | Sequence[tuple[str, Rows]],
) -> list[tuple[str, Rows]]:
    return list(reports.items() if isinstance(reports, Mapping) else reports)


def _numbers(names: Sequence[str]) -> list[float] | None:
    """Return the numbers in the names, where these are the same but for one number; else None."""
    found = [re.fullmatch(r"(\D*)(\d+(?:\.\d+)?)(\D*)", name) for name in names]
    around = {(match[1], match[3]) for match in found if match}
    if len(around) != 1 or not all(found):
        return None
    return [float(match[2]) for match in found if match]


def _style(index: int, count: int, *, ordered: bool) -> dict[str, Any]:
    if ordered:
        return {"color": scale_colors(count)[index], "marker": "o"}
    return {
        "color": _COLORS[index % len(_COLORS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _LINES[index // len(_COLORS) % len(_LINES)],
    }
