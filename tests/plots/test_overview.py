"""The figure of a whole report: its curves, and the cosines between the means of classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from figures import measured, names_on, overlap
from matplotlib.colors import to_rgb

import deeprep
from deeprep import LayerMetrics, LayerReport


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def titled(figure, begin):
    return [axes for axes in figure.axes if axes.get_title().startswith(begin)]


def with_centered_pairs(report):
    """Return the report with cosines of centred means, which here are the raw ones less 1."""
    for layer in report.layers:
        pairs = tuple(pair._replace(cosine=pair.cosine - 1) for pair in layer.closest_pairs)
        object.__setattr__(layer, "closest_pairs_centered", pairs)
    return report


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_cosines_of_centred_means_stand_below_the_raw_ones(depth):
    report = with_centered_pairs(measured(4, depth))
    figure = report.plot()
    maps = [axes for axes in figure.axes if axes.images and axes.get_title()]
    raw, centered = maps[:depth], maps[depth:]
    figure.draw_without_rendering()
    for layer, above, below in zip(report.layers, raw, centered, strict=True):
        assert above.get_title() == below.get_title()
        assert above.get_window_extent().x0 == below.get_window_extent().x0
        assert above.get_window_extent().y0 > below.get_window_extent().y1
        first, second, cosine = layer.closest_pairs[0]
        assert above.images[0].get_array()[first, second] == cosine
        assert below.images[0].get_array()[first, second] == cosine - 1
    assert (raw[0].get_ylabel(), centered[0].get_ylabel()) == (
        "class means",
        "centred class means",
    )


def test_a_centred_cosine_that_is_not_defined_is_grey():
    report = measured(4, 1)
    # The mean of a class may be the global mean, which has no direction.
    pairs = tuple(pair for pair in report.layers[0].closest_pairs if 3 not in pair[:2])
    object.__setattr__(report.layers[0], "closest_pairs_centered", pairs)
    image = titled(report.plot(), "$l$ = 0")[1].images[0]
    assert np.isnan(image.get_array().filled(math.nan)[3]).tolist() == [True, True, True, False]
    assert to_rgb(image.cmap.get_bad()) == pytest.approx((0.85, 0.85, 0.85))


def test_closest_centred_pairs_of_many_classes_are_bars_too():
    report = with_centered_pairs(measured(70, 2))
    charts = titled(report.plot(), "closest classes")
    assert [axes.get_xlabel() for axes in charts] == [
        *["cosine between class means"] * 2,
        *["cosine between centred class means"] * 2,
    ]
    expected = [pair.cosine for pair in report.layers[1].closest_pairs_centered[:10]]
    assert [bar.get_width() for bar in charts[3].patches] == pytest.approx(expected)


def test_overview_shows_fits_residuals_maps_and_closest_pairs():
    names = ["cat", "dog", "eel", "$fox$"]
    report = measured(4, 12, class_names=names, jackknife=True)
    figure = report.plot()
    maps = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert len(maps) == 8
    assert maps[0].get_title().startswith("$l$ = 0: blocks.0")
    assert maps[-1].get_title().startswith("$l$ = 11: ")
    for axes in maps:
        cosines = axes.images[0].get_array()
        assert axes.images[0].get_clim() == (-1.0, 1.0)
        assert np.array_equal(cosines, cosines.T)
        assert np.array_equal(np.diag(cosines), np.ones(4))
    first, second, cosine = report.layers[-1].closest_pairs[0]
    assert maps[-1].images[0].get_array()[first, second] == cosine
    escaped = [name.replace("$", r"\$") for name in names]
    assert [label.get_text() for label in maps[-1].get_xticklabels()] == escaped
    shown = texts(figure)
    assert f"{escaped[first]} / {escaped[second]}" in shown
    assert f"{cosine:.4f}" in shown
    residuals = [axes for axes in figure.axes if axes.get_ylabel() == "$D_l$ - fit"]
    assert names_on(residuals[0])[1] == "1: b.1.very…ng_name"
    drawn = residuals[0].lines[-1].get_ydata()
    assert tuple(drawn) == report.discrimination_fit.residuals


def test_overview_of_many_classes_draws_the_closest_pairs_as_bars():
    report = measured(70, 5)
    figure = report.plot()
    charts = titled(figure, "closest classes")
    assert [axes.get_title().split(": ")[0] for axes in charts] == [
        f"closest classes in $l$ = {level}" for level in (0, 2, 4)
    ]
    for axes, level in zip(charts, (0, 2, 4), strict=True):
        expected = [cosine for *_, cosine in report.most_confused(level, 10)]
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(expected)
    assert not any(axes.images for axes in figure.axes)


@pytest.mark.parametrize("classes", [2, 25, 64])
def test_overview_of_other_numbers_of_classes_and_one_layer(classes):
    figure = measured(classes, 1).plot()
    (axes,) = titled(figure, "$l$ = 0")
    assert axes.images[0].get_array().shape == (classes, classes)
    # Of more than some 25 classes every few are numbered.
    assert len(names_on(axes)) == classes if classes < 30 else len(names_on(axes)) < 20
    assert not overlap(axes)


def test_overview_leaves_empty_classes_and_undefined_layers_out_of_the_maps():
    labels = torch.tensor([0, 0, 2, 2, 5, 5])
    s = deeprep.class_scatter(torch.randn(6, 4), labels, num_classes=6)
    broken = deeprep.class_scatter(torch.full((6, 4), math.nan), labels, num_classes=6)
    report = LayerReport.from_scatters({"input": s, "broken": broken, "output": s})
    figure = report.plot()
    shown = {axes.get_title() for axes in titled(figure, "$l$ = ")}
    assert shown == {"$l$ = 0: input", "$l$ = 2: output"}
    axes = titled(figure, "$l$ = 2")[-1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2", "5"]


def test_overview_of_a_report_without_any_value_says_so():
    layers = [LayerMetrics(index, f"layer{index}", 8) for index in range(2)]
    for axes in LayerReport(layers, num_samples=40, num_classes=4).plot().axes:
        assert "not defined" in axes.get_legend().get_texts()[0].get_text()
        assert np.isnan(np.asarray(axes.lines[0].get_ydata(), dtype=float)).all()
