"""The layout of the paper's figures of layers: C_l on a log axis beside D_l."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from deeprep.plots.canvas import index_axis, log_axis

__all__ = ["Curve", "band_entry", "draw_band", "layer_panels"]

_COLORS = ("#1f5fa8", "#c2571a", "#3a8f5c", "#7d4ba0")  # told apart by the colour-blind too
_MARKERS = "osD^"


@dataclass(frozen=True)
class Curve:
    """A network's layers, seen over some seeds.

    Attributes
    ----------
    label
        In the legend.
    compression, discrimination
        For every seed, C_l and D_l of l = 0, 1, ...
    paper_compression, paper_discrimination
        l -> the paper's value.
    predicted_compression, predicted_discrimination
        l -> the closed form's value.
    """

    label: str
    compression: Sequence[Sequence[float]]
    discrimination: Sequence[Sequence[float]]
    paper_compression: Mapping[int, float] = field(default_factory=dict)
    paper_discrimination: Mapping[int, float] = field(default_factory=dict)
    predicted_compression: Mapping[int, float] = field(default_factory=dict)
    predicted_discrimination: Mapping[int, float] = field(default_factory=dict)

    def all_compressions(self) -> list[float]:
        """Every C_l that is drawn."""
        ours = [value for seed in self.compression for value in seed]
        return [*ours, *self.paper_compression.values(), *self.predicted_compression.values()]


def draw_band(axes: Axes, x: Any, seeds: Sequence[Sequence[float]], color: str) -> None:
    """Draw a band from the least to the largest of the seeds (S, L) against `x` (L,)."""
    values = np.array(seeds)
    axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)


def band_entry(count: int, what: str = "seeds") -> list[Patch]:
    """Return what a legend says of the bands: one entry, or none where one seed leaves no band."""
    label = f"band: least to largest of {count} {what}"
    return [Patch(color="0.5", alpha=0.3, linewidth=0, label=label)] if count > 1 else []


def layer_panels(title: str, curves: Sequence[Curve], seeds: str = "seeds") -> Figure:
    """Draw the mean of every curve over its seeds, with a band from the least to the largest.

    Parameters
    ----------
    title
        Above both panels.
    curves
        Of as many seeds each.
    seeds
        What the legend calls them.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for index, curve in enumerate(curves):
        style = {"color": _COLORS[index % 4], "marker": _MARKERS[index % 4]}
        _draw(
            left,
            curve.label,
            curve.compression,
            curve.paper_compression,
            curve.predicted_compression,
            style,
        )
        _draw(
            right,
            curve.label,
            curve.discrimination,
            curve.paper_discrimination,
            curve.predicted_discrimination,
            style,
        )
    log_axis(left, [value for curve in curves for value in curve.all_compressions()])
    left.set_title(r"compression $C_l$")
    right.set_title(r"discrimination $D_l$")
    for axes in (left, right):
        axes.set_xlabel("layer $l$")
        index_axis(axes.xaxis)
        axes.grid(alpha=0.25)
    handles, _ = left.get_legend_handles_labels()
    handles += band_entry(len(curves[0].compression), seeds)
    left.legend(handles=handles, frameon=False, fontsize="small")
    return figure


def _draw(
    axes: Axes,
    label: str,
    seeds: Sequence[Sequence[float]],
    paper: Mapping[int, float],
    predicted: Mapping[int, float],
    style: Mapping[str, Any],
) -> None:
    values = np.array(seeds)
    depths = np.arange(values.shape[1])
    draw_band(axes, depths, seeds, style["color"])
    axes.plot(depths, values.mean(0), label=f"{label}, ours", markersize=4, **style)
    if paper:
        axes.plot(
            *zip(*paper.items(), strict=True),
            linestyle="none",
            markerfacecolor="none",
            markersize=10,
            label=f"{label}, paper",
            **style,
        )
    if predicted:
        name = f"{label}, closed form"
        axes.plot(*zip(*predicted.items(), strict=True), "--", color="0.3", linewidth=1, label=name)
