"""The report of what a probe has taken in, with that of the test data and the reasons for gaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from deeprep.probe.collapse import CollapseProbe
from deeprep.probe.hooks import INPUT
from deeprep.probe.scores import Scores
from deeprep.report import LayerReport, LayerScores, ReportOptions
from deeprep.state import ClassScatter


def report_of(
    scatters: Mapping[str, ClassScatter],
    scores: Scores | None,
    test_scores: Scores | None,
    collapse: CollapseProbe,
    options: ReportOptions,
    notes: Sequence[str],
) -> LayerReport:
    """See `LayerProbe.report`; `notes` come before all other warnings."""
    found = None if scores is None else scores.result()
    report = LayerReport.from_scatters(scatters, found, options)
    notes = list(notes)
    if found and all(each == LayerScores() for each in found.values()):
        notes.append("no accuracies: the loader of `score` gave no sample, or was used up")
    return dataclasses.replace(
        report,
        warnings=[*notes, *report.warnings],
        neural_collapse=collapse.measure(scores, options.min_count),
    ).with_test(_of_test_data(test_scores, collapse, options))


def _of_test_data(
    scores: Scores | None, collapse: CollapseProbe, options: ReportOptions
) -> LayerReport | None:
    if scores is None:
        return None
    if not any(s.num_samples for s in scores.scatters.values()):
        raise ValueError(
            "test_loader gave no sample: no batch, or every label was ignored; expected one at "
            "least"
        )
    report = LayerReport.from_scatters(scores.scatters, scores.result(), options)
    measured = collapse.measure(scores, options.min_count, test=True)
    return dataclasses.replace(report, neural_collapse=measured)


def why_silent(layer: str) -> str:
    """Say of a layer that was chosen why nothing was measured of it."""
    if layer == INPUT:
        return f"layer {layer!r}: the inputs hold no floating-point tensor and no embedding ran"
    return f"layer {layer!r}: did not run"
