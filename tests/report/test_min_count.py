"""Reports that leave out small classes."""

from __future__ import annotations

import pytest
import torch

import deeprep
from deeprep import LayerReport


def test_small_classes_are_left_out_of_every_metric():
    labels = torch.arange(60) % 6
    labels[labels == 4] = torch.tensor([0, 1, 2, 3, 5, 4, 4, 0, 1, 2])
    features = 3.0 * torch.eye(6)[labels] + torch.randn(60, 6)
    s = deeprep.class_scatter(features, labels, num_classes=7)
    kept = deeprep.class_scatter(features, labels.where(labels != 4, -100), num_classes=7)
    options = {"jackknife": True, "corrected": True}
    report = LayerReport.from_scatters({"a": s}, min_count=3, **options)
    expected = LayerReport.from_scatters({"a": kept}, **options)
    assert report.layers == expected.layers
    assert (report.min_count, report.num_measured_classes) == (3, 5)
    assert report.num_samples == 60
    assert "60 samples, 7 classes, the 5 with 3 samples or more measured" in report.caption
    wanted = "layer 'a': 2 of 7 classes have fewer than 3 samples and are left out"
    assert report.warnings == [wanted]
    assert LayerReport.from_dict(report.to_dict()) == report
    only_empty = LayerReport.from_scatters({"a": kept}, min_count=3)
    assert only_empty.warnings == ["layer 'a': 2 of 7 classes have no samples and are left out"]
    usual = LayerReport.from_scatters({"a": s})
    assert (usual.min_count, usual.num_measured_classes) == (1, 6)
    assert "measured" not in usual.caption
    older = {k: v for k, v in usual.to_dict().items() if "min_count" not in k and "meas" not in k}
    assert LayerReport.from_dict(older).num_measured_classes is None


def test_min_count_and_the_scatter_of_full_states():
    labels = torch.tensor([0] * 20 + [1] * 20 + [2] * 3)
    features = torch.randn(43, 4) + labels.unsqueeze(1)
    s = deeprep.class_scatter(features, labels, full=True)
    report = LayerReport.from_scatters({"a": s, "b": s}, min_count=5)
    assert report.layers[0].nc1 is report.layers[0].vci is report.layers[0].rankme is None
    note = report.warnings[1]
    assert note.startswith("all layers: nc1, separation_fuzziness, ")
    assert note.endswith("the part of the classes left out in the (d, d) scatter is not known")
    single = deeprep.class_scatter(features[:41], labels[:41], full=True)
    two = deeprep.class_scatter(features[:40], labels[:40], full=True)
    assert LayerReport.from_scatters({"a": single}, min_count=2).layers[0].nc1 == pytest.approx(
        deeprep.metrics.nc1(two), rel=1e-12
    )


def test_min_count_that_leaves_one_class_or_none():
    s = deeprep.class_scatter(torch.randn(10, 3), torch.tensor([0] * 7 + [1] * 3))
    one = LayerReport.from_scatters({"a": s}, min_count=5)
    none = LayerReport.from_scatters({"a": s}, min_count=50)
    wanted = "one class with 5 samples or more: nothing that compares two classes is defined"
    assert one.warnings == [f"layer 'a': {wanted}"]
    assert wanted in one.summary()
    assert none.num_measured_classes == 0
    assert none.warnings == ["layer 'a': no class with 50 samples or more: nothing is defined"]
    assert "no class with 50 samples or more" in none.summary()
    for wrong, error in ((0, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="min_count is"):
            LayerReport.from_scatters({"a": s}, min_count=wrong)
