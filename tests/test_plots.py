"""Figures: they are written, whatever the report lacks, and show what was measured."""

from __future__ import annotations

import math

import pytest
from matplotlib.image import imread

from deeprep import LayerMetrics, LayerReport, plots


def make_report(values):
    layers = [
        LayerMetrics(index, f"layer{index}", 8, compression=value, discrimination=0.1 * index)
        for index, value in enumerate(values)
    ]
    return LayerReport(layers, num_samples=40, num_classes=3)


@pytest.mark.parametrize(
    "values", [[9.0, 1.0, 0.1, 0.01], [2.0], [1.0, math.nan, math.inf, None], [None, None]]
)
def test_layer_figures_can_be_read_back(tmp_path, values):
    for plot in (plots.plot_compression, plots.plot_discrimination):
        path = tmp_path / f"{plot.__name__}.png"
        plot(make_report(values), path)
        assert imread(path).min() < 0.5  # something dark was drawn


def test_evolution_follows_the_epochs(tmp_path):
    path = tmp_path / "evolution.png"
    reports = [(epoch, make_report([9.0, 1.0 / epoch, 0.1])) for epoch in (1, 2, 10, 100)]
    plots.plot_evolution(reports, path)
    assert imread(path).shape[0] > 100
    plots.plot_evolution([(0, make_report([None]))], path)


def test_figures_of_another_format(tmp_path):
    path = tmp_path / "figure.svg"
    plots.plot_compression(make_report([9.0, 1.0, 0.1]), path)
    assert path.read_text().lstrip().startswith("<?xml")
