"""LayerReport: fits, tables and files."""

from __future__ import annotations

import csv
import json
import math

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


def test_fits_leave_out_the_input_and_find_the_rate():
    report = make_report()
    report.layers[0] = LayerMetrics(0, "input", 8, compression=1e6, discrimination=-3.0)
    assert 10**report.compression_fit.slope == pytest.approx(0.1)
    assert report.discrimination_fit.slope == pytest.approx(0.1)
    assert report.compression_fit.r_squared == pytest.approx(1.0)
    assert "C_l is multiplied by 0.1 a layer" in report.summary()


def test_fits_skip_what_has_no_logarithm():
    report = make_report()
    for index, value in ((2, 0.0), (3, math.nan), (4, None)):
        report.layers[index] = LayerMetrics(index, "x", 8, compression=value)
    assert report.compression_fit is None
    assert "compression" not in report.summary()


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


def test_table_shows_every_layer_and_dashes_for_the_unknown():
    console = Console(width=120, record=True)
    console.print(make_report().table("digits"))
    text = console.export_text()
    assert "layer4" in text
    assert "0,2" in text
    assert "Sigma_B with uniform weights" in text
    assert "-" in text


def test_undefined_statistics_become_notes_not_errors():
    one_class = deeprep.class_scatter(
        torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), full=True
    )
    report = LayerReport.from_scatters({"input": one_class})
    assert report.layers[0].discrimination is None
    assert report.layers[0].compression is None
    assert any("layer 'input'" in line and "two classes" in line for line in report.warnings)


def test_weighting_is_carried_and_used():
    labels = torch.tensor([0] * 30 + [1] * 10 + [2] * 5)
    scatter = deeprep.class_scatter(torch.randn(45, 3) + labels.unsqueeze(1), labels)
    uniform = LayerReport.from_scatters({"input": scatter})
    prior = LayerReport.from_scatters({"input": scatter}, weighting="prior")
    assert prior.layers[0].compression == deeprep.compression(scatter, "prior")
    assert uniform.layers[0].compression == deeprep.compression(scatter, "uniform")
    assert prior.weighting == "prior"
