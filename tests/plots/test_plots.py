"""Figures: they are written, whatever the report lacks, and show what was measured."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

import deeprep
from deeprep import LayerMetrics, LayerReport, plots


def make_report(values, num_classes=4, **changes):
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


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def names_on(axes):
    """Return what stands at the ticks of the x axis, once the figure is drawn."""
    return [label.get_text() for label in labels_on(axes)]


def labels_on(axes):
    axes.get_figure(root=True).draw_without_rendering()
    low, high = axes.get_xlim()
    labels = axes.get_xticklabels()
    return [label for label in labels if low <= label.get_position()[0] <= high]


def titled(figure, begin):
    return [axes for axes in figure.axes if axes.get_title().startswith(begin)]


@pytest.mark.parametrize(
    "values", [[9.0, 1.0, 0.1, 0.01], [2.0], [1.0, math.nan, math.inf, None], [None, None]]
)
def test_a_curve_holds_the_values_that_can_be_drawn(values):
    report = make_report(values)
    for curve, expected in (
        (plots.plot_compression, [value or math.nan for value in values]),
        (plots.plot_discrimination, [0.1 * index for index in range(len(values))]),
    ):
        x, y = curve(report).axes[0].lines[0].get_data()
        assert list(x) == list(range(len(values)))
        wanted = [value if math.isfinite(value) else math.nan for value in expected]
        assert list(y) == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize(
    ("draw", "width"),
    [
        (lambda report, path: report.plot(path), 1800),
        (plots.plot_compression, 825),
        (plots.plot_discrimination, 825),
        (lambda report, path: plots.plot_evolution([(0, report)], path), 1500),
        (lambda report, path: plots.compare({"a": report}, path), 1650),
    ],
)
def test_every_figure_is_written_in_full(tmp_path, draw, width):
    draw(make_report([9.0, 1.0, 0.1]), tmp_path / "figure.png")
    assert imread(tmp_path / "figure.png").shape[1] == width


def test_figures_of_another_format(tmp_path):
    path = tmp_path / "figure.svg"
    plots.plot_compression(make_report([9.0, 1.0, 0.1]), path)
    assert path.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: make_report([1.0]).plot(path),
        lambda path: plots.plot_compression(make_report([1.0]), path),
        lambda path: plots.plot_discrimination(make_report([1.0]), path),
        lambda path: plots.plot_evolution([(0, make_report([1.0]))], path),
        lambda path: plots.compare({"a": make_report([1.0])}, path),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_drawing(tmp_path, monkeypatch, draw):
    monkeypatch.setattr("matplotlib.figure.Figure.add_subplot", None)
    with pytest.raises(ValueError, match=r"figure.xyz, expected one of the suffixes .*\.png"):
        draw(tmp_path / "figure.xyz")
    with pytest.raises(ValueError, match="figure, expected one of the suffixes"):
        draw(tmp_path / "figure")
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        draw(tmp_path / "nowhere" / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_without_a_value_is_a_gap_that_the_legend_explains():
    (axes,) = plots.plot_compression(make_report([9.0, 1.0, math.nan, 0.0, None, 0.1])).axes
    drawn = np.asarray(axes.lines[0].get_ydata(), dtype=float)
    assert np.isnan(drawn).tolist() == [False, False, True, True, True, False]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels.count("0, inf or not defined") == 1


@pytest.mark.parametrize("values", [[3.0, 2.9], [1.0, 0.3], [7.0]])
def test_a_log_axis_has_readable_ticks_within_a_decade_too(values):
    (axes,) = plots.plot_compression(make_report(values)).axes
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert low < min(values)
    assert high > max(values)
    assert len(ticks) >= 2


def test_error_bars_on_the_log_axis_are_those_of_the_logarithm():
    report = make_report([1.0, 0.1], compression_error=0.2, discrimination_error=0.25)
    (axes,) = plots.plot_compression(report).axes
    lower, upper = axes.collections[0].get_segments()[1][:, 1]
    assert upper / 0.1 == pytest.approx(math.exp(2.0))  # an error of twice the value
    assert 0.1 / lower == pytest.approx(math.exp(2.0))
    (axes,) = plots.plot_discrimination(report).axes
    assert axes.collections[0].get_segments()[1][:, 1].tolist() == pytest.approx([-0.15, 0.35])


def test_error_bars_are_not_cut_off():
    report = make_report([1.0, 0.8, 0.9], compression_error=0.6, discrimination_error=0.3)
    for figure in (report.plot(), plots.compare({"a": report})):
        for axes in figure.axes:
            low, high = axes.get_ylim()
            ends = np.concatenate(axes.collections[0].get_segments())[:, 1]
            assert low < ends.min()
            assert ends.max() < high


def test_caps_of_error_bars_reach_beyond_the_markers():
    for depth in (2, 8, 60):
        report = make_report([0.5**index for index in range(depth)], compression_error=1e-6)
        (bars,) = plots.plot_compression(report).axes[0].containers
        line, caps, _ = bars.lines
        assert len(caps) == 2
        assert all(cap.get_markersize() > line.get_markersize() for cap in caps)


@pytest.mark.parametrize(("classes", "bars"), [(3, 0), (4, 1)])
def test_three_classes_have_no_error_bars(classes, bars):
    report = make_report([1.0, 0.5], classes, compression_error=0.1, discrimination_error=0.1)
    for figure in (
        plots.plot_compression(report),
        plots.plot_discrimination(report),
        plots.compare({"a": report}),
    ):
        assert len(figure.axes[0].collections) == bars


def test_a_line_through_two_points_is_not_drawn():
    figure = make_report([9.0, 1.0, 0.1]).plot()
    assert len(figure.axes) == 2  # no residuals
    for axes in figure.axes:
        assert len(axes.lines) == 1
        assert len(axes.get_legend().get_texts()) == 1
    figure = make_report([9.0, 1.0, 0.1, 0.02]).plot()
    assert len(figure.axes) == 4
    assert "fit: " in figure.axes[0].get_legend().get_texts()[0].get_text()


def test_error_bars_stay_finite_and_are_left_out_where_unknown():
    report = make_report([1.0, 1e-9, 0.1], compression_error=math.nan)
    (axes,) = plots.plot_compression(report).axes
    assert not axes.collections
    (axes,) = plots.plot_compression(make_report([1.0, 1e-9], compression_error=0.5)).axes
    assert np.concatenate(axes.collections[0].get_segments()).max() == pytest.approx(math.exp(0.5))


def overlap(axes):
    """Whether a name on the x axis runs into the next one."""
    labels = labels_on(axes)
    boxes = [label.get_window_extent() for label in labels]
    if rotation := labels[0].get_rotation():
        # The boxes of slanted lines overlap: what counts is how far the lines are apart.
        apart = np.diff([box.x1 for box in boxes]) * math.sin(math.radians(rotation))
        return apart.min() < labels[0].get_fontsize() * axes.figure.dpi / 72
    return any(left.x1 > right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize("depth", [3, 16])
@pytest.mark.parametrize("names", ["l{}", "encoder.layer.{}.output"])
def test_layers_are_named_on_their_axis_where_they_fit(depth, names):
    report = measured(4, depth, names=names)
    for figure in (plots.plot_compression(report), plots.compare({"a": report, "b": report})):
        (axes, *_) = [axes for axes in figure.axes if axes.get_xlabel() == "layer $l$"]
        shown = names_on(axes)
        assert [name.split(": ")[0] for name in shown] == list(map(str, range(depth)))
        assert all(str(index) in name.split(": ")[1] for index, name in enumerate(shown))
        assert not overlap(axes)


def test_many_layers_and_different_ones_are_numbered():
    report = measured(4, 60)
    axes = plots.plot_compression(report).axes[0]
    assert names_on(axes)[1].isdigit()
    assert not overlap(axes)
    other = measured(4, 4, names="other{}")
    axes = plots.compare({"a": measured(4, 4), "b": other}).axes[0]
    assert names_on(axes) == ["0", "1", "2", "3"]


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


def test_evolution_follows_the_epochs():
    reports = [(epoch, make_report([9.0, 1.0 / epoch, 0.1])) for epoch in (1, 2, 10, 100)]
    figure = plots.plot_evolution(reports)
    assert [axes.get_title() for axes in figure.axes] == [
        "compression $C_l$",
        "discrimination $D_l$",
    ]
    second = figure.axes[0].lines[1]
    assert second.get_xdata().tolist() == [1, 2, 10, 100]
    assert second.get_ydata().tolist() == [1.0, 0.5, 0.1, 0.01]


def test_evolution_draws_what_was_measured_of_up_to_four_metrics():
    reports = [(0, make_report([1.0], numerical_rank=3, nc1=0.5, cdnv=0.0))]
    titles = [axes.get_title() for axes in plots.plot_evolution(reports).axes]
    assert titles == ["compression $C_l$", "discrimination $D_l$", "numerical rank", "NC1"]


def test_evolution_of_many_layers_names_some_of_them():
    figure = plots.plot_evolution([(epoch, make_report([1.0] * 60)) for epoch in range(2)])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 16
    assert (names[0], names[-1]) == ("layer0", "layer59")


def test_evolution_needs_reports_of_the_same_layers():
    with pytest.raises(ValueError, match="reports is empty"):
        plots.plot_evolution([])
    with pytest.raises(ValueError, match="report of epoch 0 has 2 layers, expected 1"):
        plots.plot_evolution([(0, make_report([1.0, 2.0])), (1, make_report([1.0]))])


def test_compare_orders_epochs_and_draws_against_the_layer():
    reports = {f"epoch {epoch}": make_report([9.0, 1.0 / epoch]) for epoch in (10, 2, 1)}
    figure = plots.compare(reports)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["epoch 1", "epoch 2", "epoch 10"]
    assert [line.get_ydata()[1] for line in figure.axes[0].lines] == [1.0, 0.5, 0.1]
    assert figure.axes[0].get_xlabel() == "layer $l$"
    assert len({line.get_color() for line in figure.axes[0].lines}) == 3


def test_compare_uses_relative_depth_where_depths_differ():
    reports = [("deep", make_report([9.0, 1.0, 0.1, 0.01, 0.001])), ("flat", make_report([2.0]))]
    figure = plots.compare([*reports, ("deep", make_report([9.0, 1.0, 0.1]))])
    assert "relative depth" in figure.axes[0].get_xlabel()
    assert "1, 3, 5 layers" in figure.axes[0].get_xlabel()
    x = [list(line.get_xdata()) for line in figure.axes[1].lines]
    assert x == [[0.0, 0.25, 0.5, 0.75, 1.0], [0.0], [0.0, 0.5, 1.0]]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["deep", "flat", "deep"]


def contrast_to_white(color):
    """WCAG's ratio of luminances, 1 for white itself."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 1.05 / (0.05 + np.dot((0.2126, 0.7152, 0.0722), channels))


@pytest.mark.parametrize("count", [2, 7, 20])
@pytest.mark.parametrize("name", ["model {}", "epoch {}"])
def test_no_line_is_pale_on_white(count, name):
    names = [name.format(index if "epoch" in name else chr(97 + index)) for index in range(count)]
    reports = [(name, make_report([1.0, 0.5])) for name in names]
    lines = [*plots.compare(reports).axes[0].lines]
    lines += plots.plot_evolution([(0, make_report([1.0] * count))]).axes[0].lines
    assert len(lines) == 2 * count
    assert min(contrast_to_white(line.get_color()) for line in lines) > 2


def test_compare_tells_many_models_apart_and_needs_one():
    reports = [(name, make_report([1.0, 0.5])) for name in "abcdefghijklmnopqrst"]
    lines = plots.compare(reports).axes[0].lines
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == len(reports)
    with pytest.raises(ValueError, match="reports is empty"):
        plots.compare({})
