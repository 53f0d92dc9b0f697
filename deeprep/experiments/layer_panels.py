"""The layout of the paper's figures of layers: C_l on a log axis beside D_l."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["Curve", "layer_panels"]

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


def layer_panels(title: str, curves: Sequence[Curve]) -> Figure:
    """Draw the mean of every curve over its seeds, with a band from the least to the largest."""
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
    left.set_yscale("log")
    left.set_title(r"compression $C_l$")
    right.set_title(r"discrimination $D_l$")
    for axes in (left, right):
        axes.set_xlabel("layer $l$")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    left.legend(frameon=False)
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
    color = style["color"]
    axes.fill_between(depths, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
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
