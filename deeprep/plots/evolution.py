"""The layers of a network while it trains: metrics against the epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from deeprep.plots.canvas import (
    check_path,
    legend_beside,
    log_axis,
    new_figure,
    save,
    scale_colors,
    shorten_layer,
)
from deeprep.plots.rows import LayerRow, Rows, number

_PANELS = 4
_LEGEND_ENTRIES = 16


class _Metric(NamedTuple):
    title: str
    field: str  # of a LayerRow
    is_log: bool

    def values(self, layers: Sequence[LayerRow]) -> dict[int, float]:
        """Position -> value of the layers that have one to draw."""
        found = {position: number(layer, self.field) for position, layer in enumerate(layers)}
        return {
            position: value
            for position, value in found.items()
            if value is not None and math.isfinite(value) and (value > 0 or not self.is_log)
        }


# The first four that were measured are drawn.
_METRICS = (
    _Metric("compression $C_l$", "compression", True),
    _Metric("discrimination $D_l$", "discrimination", False),
    _Metric("numerical rank", "numerical_rank", False),
    _Metric("nearest-class-mean accuracy", "ncc_accuracy", False),
    _Metric("NC1", "nc1", True),
    _Metric("CDNV", "cdnv", True),
)


def plot_evolution(reports: Sequence[tuple[int, Rows]], path: str | Path | None = None) -> Figure:
    """Up to four metrics of every layer against the epoch; written to `path`.

    Parameters
    ----------
    reports
        (epoch, report) of the same layers, in order of epochs.
    path
        Of the figure; its suffix chooses the format.

    Raises
    ------
    ValueError, FileNotFoundError
        For an unknown suffix and a directory that does not exist, before anything is drawn.
    """
    check_path(path)
    if not reports:
        raise ValueError("reports is empty, expected at least one")
    names = [layer.name for layer in reports[-1][1].layers]
    for epoch, report in reports:
        if len(report.layers) != len(names):
            raise ValueError(
                f"the report of epoch {epoch} has {len(report.layers)} layers, expected "
                f"{len(names)} as in the last"
            )
    panels = [p for p in _METRICS if any(p.values(report.layers) for _, report in reports)]
    panels = panels[:_PANELS] or list(_METRICS[:1])
    rows = 1 if len(panels) < 3 else 2
    columns = math.ceil(len(panels) / rows)
    figure = new_figure(10, 3.5 * rows)
    colors = scale_colors(len(names))
    lines: dict[int, Line2D] = {}
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        curves = [panel.values(report.layers) for _, report in reports]
        for index in range(len(names)):
            points = [
                (epoch, values[index])
                for (epoch, _), values in zip(reports, curves, strict=True)
                if index in values
            ]
            if points:
                (lines[index],) = axes.plot(
                    *zip(*points, strict=True), ".-", color=colors[index], clip_on=False
                )
        axes.set_title(panel.title)
        axes.set_xlabel("epoch")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(0, None)
        axes.xaxis.set_major_formatter("{x:g}")
        if panel.is_log:
            log_axis(axes, [value for values in curves for value in values.values()])
        axes.grid(alpha=0.25)
    drawn = sorted(lines)
    legend_beside(
        figure,
        [lines[index] for index in drawn],
        [shorten_layer(names[index], 24) for index in drawn],
        _LEGEND_ENTRIES,
    )
    return save(figure, path)
