"""What a report says of all layers at once: warnings, and the law of equi-separation."""

from __future__ import annotations

import math

import pytest
import torch

import deeprep
from deeprep import LayerReport
from deeprep.report import layer_metrics


def test_what_holds_for_all_layers_is_said_once():
    labels = torch.arange(40) % 4
    states = {
        name: deeprep.class_scatter(torch.randn(40, 3), labels, num_classes=6) for name in "abc"
    }
    report = LayerReport.from_scatters(states)
    assert report.warnings == ["all layers: 2 of 6 classes have no samples and are left out"]
    zero = torch.randn(40, 3)
    zero[labels == 1] = 0.0
    states["b"] = deeprep.class_scatter(zero, labels, num_classes=6)
    first, second = LayerReport.from_scatters(states).warnings
    assert first == "all layers: 2 of 6 classes have no samples and are left out"
    assert second.startswith("layer 'b': discrimination is nan: the means of 1 class (1) are zero")


def test_the_law_of_equi_separation_is_fitted():
    labels = torch.arange(200) % 4
    rows = torch.randn(200, 4)
    means = 3.0 * torch.eye(4)[labels]
    for k in range(4):  # the spread around the mean of each class is all that shrinks
        rows[labels == k] -= rows[labels == k].mean(dim=0)
    states = {
        f"layer{index}": deeprep.class_scatter(means + 0.5**index * rows, labels, full=True)
        for index in range(6)
    }
    report = LayerReport.from_scatters(states)
    fit = report.separation_fit
    assert fit.slope == pytest.approx(2 * math.log10(0.5), rel=1e-4)
    assert fit.correlation == pytest.approx(-1.0, abs=1e-6)
    assert len(fit.residuals) == 5
    line = report.summary().splitlines()[2]
    assert line.startswith("fuzziness      Tr(SS_W SS_B^+) is multiplied by 0.25 a layer")
    assert line.endswith("correlation = -1.000)")
    assert LayerReport.from_dict(report.to_dict()) == report
    assert len(LayerReport.from_scatters(states, metrics=()).summary().splitlines()) == 2
    for name in ("fuzziness", "VCI", "LiDAR", "H-score", "part. ratio"):
        assert name in report._repr_html_()


def test_what_holds_for_several_layers_is_said_once(monkeypatch):
    monkeypatch.setattr(layer_metrics, "PAIR_WORK", 100.0)
    labels = torch.arange(40) % 4
    states = {
        f"l{width}": deeprep.class_scatter(torch.randn(40, width), labels) for width in range(3, 14)
    }
    warnings = LayerReport.from_scatters(states).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith("layers 'l7', 'l8', 'l9', 'l10', 'l11' and 2 more: cdnv, ")
    wide = {name: states[name] for name in ("l7", "l8")}
    assert LayerReport.from_scatters(wide).warnings[0].startswith("all layers: cdnv, ")
    some = {name: states[name] for name in ("l3", "l7", "l8")}
    assert LayerReport.from_scatters(some).warnings[0].startswith("layers 'l7', 'l8': cdnv, ")
