"""Reports to draw, and what a figure shows, read back from it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch

import deeprep
from deeprep import LayerMetrics, LayerReport


def make_report(values, num_classes=4, **changes):
    """Return a report of layers with these C_l, and D_l that rise by 0.1."""
    layers = [
        LayerMetrics(
            index, f"layer{index}", 8, compression=value, discrimination=0.1 * index, **changes
        )
        for index, value in enumerate(values)
    ]
    return LayerReport(layers, num_samples=40, num_classes=num_classes)


def measured(classes, depth, *, features=16, names="blocks.{}.very_long_name", **options):
    """Return a report of layers in which the classes move apart, without centred cosines."""
    labels = torch.arange(3 * classes) % classes
    means, noise = torch.randn(classes, features), torch.randn(len(labels), features)
    scatters = {
        names.format(level): deeprep.class_scatter(means[labels] + 0.7**level * noise, labels)
        for level in range(depth)
    }
    report = LayerReport.from_scatters(scatters, metrics=(), **options)
    for layer in report.layers:  # as reports of older versions are
        object.__setattr__(layer, "closest_pairs_centered", None)
    return report


def drawn(axes) -> dict[str, list[float]]:
    """Return the values of every line that has a name in the legend."""
    return {
        line.get_label(): list(line.get_ydata())
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def names_on(axes):
    """Return what stands at the ticks of the x axis, once the figure is drawn."""
    return [label.get_text() for label in labels_on(axes)]


def labels_on(axes):
    axes.get_figure(root=True).draw_without_rendering()
    low, high = axes.get_xlim()
    labels = axes.get_xticklabels()
    return [label for label in labels if low <= label.get_position()[0] <= high]


def overlap(axes):
    """Whether a name on the x axis runs into the next one."""
    labels = labels_on(axes)
    boxes = [label.get_window_extent() for label in labels]
    if rotation := labels[0].get_rotation():
        # The boxes of slanted lines overlap: what counts is how far the lines are apart.
        apart = np.diff([box.x1 for box in boxes]) * math.sin(math.radians(rotation))
        return apart.min() < labels[0].get_fontsize() * axes.figure.dpi / 72
    return any(left.x1 > right.x0 for left, right in pairwise(boxes))
