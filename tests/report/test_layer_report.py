"""LayerReport: fits, tables and files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import sys

import pytest
import torch
from rich.console import Console

import deeprep
from deeprep import LayerMetrics, LayerReport


def make_report(**changes):
    layers = [
        LayerMetrics(
            index=depth,
            name=f"layer{depth}" if depth else "input",
            num_features=8,
            compression=2.0 * 0.1**depth,
            discrimination=0.2 + 0.1 * depth,
            closest_classes=(0, 2),
            numerical_rank=5,
        )
        for depth in range(5)
    ]
    return LayerReport(layers, num_samples=40, num_classes=3, **changes)


def make_scatters(classes=3, **options):
    """Three layers of ten samples a class in eight dimensions."""
    labels = torch.arange(10 * classes) % classes
    noise = torch.randn(10 * classes, 8)
    means = torch.randn(classes, 8)
    return {
        f"layer{depth}": deeprep.class_scatter(
            means[labels] + 0.5**depth * noise, labels, **options
        )
        for depth in range(3)
    }


def test_fits_leave_out_the_input_and_find_the_rate():
    report = make_report()
    report.layers[0] = LayerMetrics(0, "input", 8, compression=1e6, discrimination=-3.0)
    assert 10**report.compression_fit.slope == pytest.approx(0.1)
    assert report.discrimination_fit.slope == pytest.approx(0.1)
    assert report.compression_fit.r_squared == pytest.approx(1.0)
    assert "C_l is multiplied by 0.1 a layer" in report.summary()


def test_fits_skip_what_has_no_logarithm():
    report = make_report()
    for index, value in ((2, 0.0), (3, math.nan)):
        report.layers[index] = dataclasses.replace(report.layers[index], compression=value)
    assert report.compression_fit is None
    assert report.discrimination_fit.slope == pytest.approx(0.1)
    no_rate, rate = report.summary().splitlines()
    assert no_rate == "no rate of C_l: it is positive and finite in fewer than three hidden layers"
    assert rate.startswith("discrimination D_l changes by +0.1 a layer")
    report.layers[1:4] = [
        LayerMetrics(i, "x", 8, math.nan, discrimination=math.nan) for i in range(1, 4)
    ]
    assert report.summary() == (
        "no rate of C_l or D_l: they are finite in fewer than three hidden layers"
    )


@pytest.mark.parametrize(
    ("hidden", "why"),
    [(0, "no hidden layer"), (1, "one hidden layer"), (2, "two hidden layers"), (3, None)],
)
def test_two_points_are_no_line(hidden, why):
    report = make_report()
    del report.layers[hidden + 1 :]
    if why is None:
        assert report.compression_fit.slope == pytest.approx(-1.0)
        assert "R^2 = 1.000" in report.summary()
        return
    assert report.compression_fit is report.discrimination_fit is None
    assert report.summary() == f"no rate of C_l or D_l: {why}, and a line needs three"
    assert why in str(report)


def test_the_summary_says_what_is_wrong_with_the_labels():
    features = torch.randn(12, 3)
    for label, why in (
        (0, "one class with samples: nothing that compares two classes is defined"),
        (-100, "no samples: there was no batch, or every label was ignored"),
    ):
        labels = torch.full((12,), label)
        scatters = {
            f"layer{layer}": deeprep.class_scatter(features, labels, 3) for layer in range(5)
        }
        report = LayerReport.from_scatters(scatters)
        assert report.summary() == f"no rate of C_l or D_l: {why}"


def test_json_is_strict_and_round_trips(tmp_path):
    report = make_report(warnings=["layer 'input': something"])
    report.layers[1] = LayerMetrics(1, "inf", 8, compression=math.inf, nc1=-math.inf)
    path = tmp_path / "report.json"
    report.to_json(path)

    def refuse(constant):
        raise AssertionError(constant)

    data = json.loads(path.read_text(), parse_constant=refuse)
    assert LayerReport.from_dict(data) == report
    report.layers[1] = LayerMetrics(1, "nan", 8, compression=math.nan)
    again = LayerReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert math.isnan(again.layers[1].compression)


def test_csv_has_a_row_a_layer(tmp_path):
    path = tmp_path / "layers.csv"
    make_report().to_csv(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["input", "layer1", "layer2", "layer3", "layer4"]
    assert float(rows[2]["compression"]) == pytest.approx(0.02)
    assert rows[2]["closest_classes"] == "0 2"
    assert rows[2]["nc1"] == ""


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "layers.csv"
    make_report().to_csv(path)
    before = path.read_text()
    broken = make_report()
    broken.layers.append("not a layer")
    with pytest.raises(TypeError):
        broken.to_csv(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def rendered(table, width):
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=False)
    console.print(table)
    return console.export_text()


def test_table_shows_every_layer_and_the_columns_with_a_value():
    report = make_report()
    report.layers[1] = LayerMetrics(1, "[odd] name", 8, compression=0.5)
    text = rendered(report.table("digits", width=120), 120)
    assert "layer4" in text
    assert "[odd] name" in text
    assert "0,2" in text
    assert "Sigma_B with uniform weights" in " ".join(text.split())
    assert text.splitlines()[2].split() == ["l", "layer", "d", "C_l", "D_l", "closest", "rank"]
    assert next(line for line in text.splitlines() if "odd" in line).split()[-3:] == ["-"] * 3


def test_table_names_the_columns_that_a_terminal_has_no_room_for():
    report = LayerReport.from_scatters(make_scatters(4, full=True), jackknife=True)
    for width in (60, 80, 200):
        text = rendered(report.table(width=width), width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert "C_l" in text
        assert ("no room for" in text) == (width < 200)
    assert "RankMe" in rendered(report.table(width=60), 60).split("no room for")[1]


def test_columns_that_were_asked_for_stay_in_a_table_below():
    report = LayerReport.from_scatters(make_scatters(full=True), jackknife=True)
    asked = ("numerical_rank", "rankme", "gnc2", "effective_rank", "etf_error", "cdnv")
    for width in (50, 80, 200):
        text = rendered(report.table("digits", width=width, keep=asked), width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        shown, _, left_out = text.partition("no room for")
        headings = {word for line in shown.splitlines() for word in line.split()}
        assert {"C_l", "D_l", "rank", "RankMe", "GNC2", "eff.", "ETF", "CDNV"} <= headings
        assert ("equiangular" in left_out) == (width < 200)
        assert shown.count("layer0") == shown.count("layer2")
        assert (shown.count("layer0") > 1) == (width == 50)
        assert shown.count("digits") == shown.count("30 samples") == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_nothing_is_left_out_where_stdout_is_no_terminal(monkeypatch):
    report = LayerReport.from_scatters(make_scatters(full=True), jackknife=True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    for text in (str(report), rendered(report, 80), rendered(report.table(), 10_000)):
        assert "GNC2" in text
        assert "no room for" not in text
        assert "…" not in text
    monkeypatch.setattr("sys.stdout", Terminal())
    for text in (str(report), rendered(report.table(), 80)):
        assert "no room for" in text
        assert max(map(len, text.splitlines())) <= 80


def test_table_shows_names_of_classes_and_standard_errors():
    names = ["cat", "dog", "[eel]", "owl"]
    report = LayerReport.from_scatters(
        make_scatters(4), jackknife=True, corrected=True, class_names=names
    )
    layer = report.layers[0]
    text = rendered(report.table(width=200), 200)
    names = [report.class_names[index] for index in layer.closest_classes]
    assert ", ".join(names) in text
    assert f"{layer.compression:.3g} ±{layer.compression_error:.1g}" in text
    assert "corrected for few samples" in text
    assert "standard error" in text


def test_print_gives_table_rates_and_the_first_warnings():
    report = make_report(warnings=[f"layer 'x': reason [{number}]" for number in range(7)])
    text = str(report)
    assert "layer4" in text
    assert "C_l is multiplied by 0.1 a layer" in text
    assert "warning: layer 'x': reason [4]" in text
    assert "reason [5]" not in text
    assert "2 more in report.warnings" in text
    assert rendered(report, 100).split() == text.split()


def test_notebooks_get_an_escaped_table():
    report = make_report(warnings=["<b>bold</b>"])
    report.layers[0] = LayerMetrics(0, "<script>", 8, compression=1.0)
    html = report._repr_html_()
    assert html.count("<tr>") == 1 + len(report.layers)
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;bold" in html
    assert "<script>" not in html


def test_most_confused_pairs_come_by_name():
    report = LayerReport.from_scatters(make_scatters(), class_names=["cat", "dog", "eel"])
    pairs = report.most_confused()
    assert len(pairs) == 3
    assert [cosine for *_, cosine in pairs] == sorted((c for *_, c in pairs), reverse=True)
    assert pairs[0][2] == pytest.approx(1.0 - report.layers[-1].discrimination, abs=1e-6)
    assert report.most_confused(count=1) == pairs[:1]
    assert report.most_confused(1) == report.most_confused(-2)
    assert make_report().most_confused() == []
    without = LayerReport.from_scatters(make_scatters()).most_confused()
    assert {name for pair in without for name in pair[:2]} == {"0", "1", "2"}
    with pytest.raises(ValueError, match="layer is 3, expected one of 3 layers"):
        report.most_confused(3)
    with pytest.raises(ValueError, match="count is -1"):
        report.most_confused(count=-1)


def test_names_of_classes_must_be_one_for_each():
    with pytest.raises(ValueError, match="class_names has 2 names, expected 3"):
        LayerReport.from_scatters(make_scatters(), class_names=["cat", "dog"])
    with pytest.raises(TypeError, match="class_names is 'abc', expected K strings"):
        LayerReport.from_scatters(make_scatters(), class_names="abc")
    with pytest.raises(ValueError, match="scatters is empty"):
        LayerReport.from_scatters({})


def test_a_report_with_everything_survives_json(tmp_path):
    report = LayerReport.from_scatters(
        make_scatters(4, full=True),
        jackknife=True,
        corrected=True,
        weighting="prior",
        class_names=["cat", "dog", "eel", "owl"],
    )
    path = tmp_path / "report.json"
    report.to_json(path)
    again = LayerReport.from_dict(json.loads(path.read_text()))
    assert again == report
    assert again.most_confused() == report.most_confused()
    pairs = again.layers[0].closest_pairs_centered
    assert [type(pair).__name__ for pair in pairs] == ["ClosestClasses"] * 6
    assert len(path.read_text().splitlines()) < 30  # pairs of classes do not get a line each


def test_reports_of_older_versions_load():
    old = {
        "layers": [
            {
                "index": 0,
                "name": "input",
                "num_features": 2,
                "compression": "inf",
                "discrimination": 0.5,
                "closest_classes": [0, 1],
                "nc1": None,
                "numerical_rank": 2,
                "effective_rank": 1.5,
                "probe_accuracy": 1.0,
                "ncc_accuracy": None,
            }
        ],
        "num_samples": 4,
        "num_classes": 2,
        "weighting": "uniform",
        "warnings": [],
    }
    report = LayerReport.from_dict(old)
    assert report.layers[0].compression == math.inf
    assert report.layers[0].closest_classes == (0, 1)
    assert report.layers[0].cdnv is report.class_names is None
    assert report.most_confused() == []
    assert not report.corrected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 1}, "report holds layer, expected fields of LayerReport only"),
        ({"layers": [{"index": 0}]}, r"report\['layers'\]\[0\] lacks name, num_features"),
        ({"layers": [{"index": 0, "name": "x", "num_features": 1, "nc9": 1}]}, "holds nc9"),
    ],
)
def test_a_dictionary_that_is_no_report_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LayerReport.from_dict({**make_report().to_dict(), **change})
    with pytest.raises(ValueError, match="report lacks num_samples"):
        LayerReport.from_dict({"layers": [], "num_classes": 2})
    with pytest.raises(TypeError, match="report is a list"):
        LayerReport.from_dict([])


def test_pandas_has_a_row_a_layer_and_numbers_in_its_columns():
    pandas = pytest.importorskip("pandas")
    report = make_report()
    report.layers[1] = LayerMetrics(1, "empty", 8)
    frame = report.to_pandas()
    assert list(frame["name"]) == [layer.name for layer in report.layers]
    assert frame["compression"][2] == report.layers[2].compression
    assert math.isnan(frame["compression"][1])
    assert frame["numerical_rank"][1] is pandas.NA
    assert frame["closest_classes"][0] == (0, 2)
    assert frame["nc1"].dtype == "float64"
    assert frame["nc1"].isna().all()
    assert frame.attrs["num_samples"] == 40
    assert (frame.attrs["min_count"], frame.attrs["num_measured_classes"]) == (1, None)
    assert "closest_pairs" not in frame


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        make_report().to_pandas()


def test_undefined_statistics_become_notes_not_errors():
    one_class = deeprep.class_scatter(
        torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), full=True
    )
    report = LayerReport.from_scatters({"input": one_class})
    assert report.layers[0].discrimination is None
    assert report.layers[0].compression is None
    assert any("layer 'input'" in line and "two classes" in line for line in report.warnings)


def test_every_report_of_a_state_is_whole_and_of_what_it_has_seen_by_then():
    features, labels = torch.randn(40, 6), torch.arange(40) % 4
    scatter = deeprep.class_scatter(features[:20], labels[:20], num_classes=5)
    first = LayerReport.from_scatters({"layer": scatter})
    assert first.warnings == ["layer 'layer': 1 of 5 classes have no samples and are left out"]
    assert LayerReport.from_scatters({"layer": scatter}) == first
    scatter.update(features[20:], labels[20:])
    both = LayerReport.from_scatters({"layer": scatter})
    assert both.num_samples == 40
    at_once = deeprep.class_scatter(features, labels, num_classes=5)
    assert both.layers[0].cdnv == pytest.approx(deeprep.metrics.cdnv(at_once), rel=1e-6)


def test_weighting_is_carried_and_used():
    labels = torch.tensor([0] * 30 + [1] * 10 + [2] * 5)
    scatter = deeprep.class_scatter(torch.randn(45, 3) + labels.unsqueeze(1), labels)
    uniform = LayerReport.from_scatters({"input": scatter})
    prior = LayerReport.from_scatters({"input": scatter}, weighting="prior")
    assert prior.layers[0].compression == deeprep.compression(scatter, "prior")
    assert uniform.layers[0].compression == deeprep.compression(scatter, "uniform")
    assert prior.weighting == "prior"
