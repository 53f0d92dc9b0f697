"""Figures of one report or several: they are written, and show what was measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from figures import make_report, measured, names_on, overlap
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from deeprep import plots


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
