"""Figures of reports with test data and accuracies."""

import pytest
import torch

import deeprep
from deeprep import LayerReport, plots
from deeprep.report import LayerScores


def make_report(test=True, accuracies=True):
    labels = torch.arange(40) % 4
    scatters = {
        f"layer{index}": deeprep.class_scatter(torch.randn(40, 6), labels) for index in range(4)
    }
    scores = dict.fromkeys(scatters, LayerScores(0.9, 0.8)) if accuracies else None
    report = LayerReport.from_scatters(scatters, scores)
    return report.with_test(LayerReport.from_scatters(scatters, scores)) if test else report


def labels_of(figure):
    legends = [axes.get_legend() for axes in figure.axes]
    return [text.get_text() for legend in legends if legend for text in legend.get_texts()]


def test_test_data_have_curves_of_their_own(tmp_path):
    labels = labels_of(plots.plot_report(make_report(), tmp_path / "report.png"))
    for label in ("$C_l$, test", "$D_l$, test", "probe, test", "nearest class mean, test"):
        assert label in labels
    assert (tmp_path / "report.png").is_file()
    labels = labels_of(plots.plot_report(make_report(test=False)))
    assert "probe" in labels
    assert not any("test" in label for label in labels)


def test_accuracies_alone():
    figure = plots.plot_accuracies(make_report())
    assert labels_of(figure) == [
        "probe",
        "probe, test",
        "nearest class mean",
        "nearest class mean, test",
    ]
    with pytest.raises(ValueError, match="report holds no accuracies"):
        plots.plot_accuracies(make_report(accuracies=False))
