"""What a LayerReport says in words: the rates of its layers, how it was measured, the collapse.

Its class imports this module, so it is not named here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from deeprep.report import notes
from deeprep.report.layer_metrics import LayerMetrics
from deeprep.theory import LineFit, fit_line

_FITTED = 3  # points at least: a line meets two of them exactly, whatever they are


def fit(
    layers: Sequence[LayerMetrics], name: str, scale: Callable[[float], float], above: float
) -> LineFit | None:
    """Line through a metric of the hidden layers, where it is finite and above a bound."""
    values = [(layer.index, getattr(layer, name)) for layer in layers[1:]]
    points = [(index, scale(v)) for index, v in values if v is not None and above < v < math.inf]
    return fit_line(*zip(*points, strict=True)) if len(points) >= _FITTED else None


def of_rates(report: Any) -> str:
    """See `LayerReport.summary`."""
    compression, discrimination = report.compression_fit, report.discrimination_fit
    if compression is None and discrimination is None:
        return f"no rate of C_l or D_l: {_why_no_fit(report)}"
    few = "in fewer than three hidden layers"
    lines = [f"no rate of C_l: it is positive and finite {few}"]
    if compression is not None:
        lines = [
            f"compression    C_l is multiplied by {10**compression.slope:.3g} a layer "
            f"(log C_l against l, l >= 1: R^2 = {compression.r_squared:.3f})"
        ]
    if discrimination is not None:
        lines.append(
            f"discrimination D_l changes by {discrimination.slope:+.3g} a layer "
            f"(D_l against l, l >= 1: R^2 = {discrimination.r_squared:.3f})"
        )
    else:
        lines.append(f"no rate of D_l: it is finite {few}")
    separation = report.separation_fit
    if separation is not None:
        lines.append(
            "fuzziness      Tr(SS_W SS_B^+) is multiplied by "
            f"{10**separation.slope:.3g} a layer "
            f"(its log against l, l >= 1: correlation = {separation.correlation:+.3f})"
        )
    return "\n".join(lines)


def _why_no_fit(report: Any) -> str:
    if report.num_samples == 0:
        return notes.NO_SAMPLES
    if all(layer.compression is layer.discrimination is None for layer in report.layers):
        return notes.too_few(0 if report.num_measured_classes == 0 else 1, report.min_count)
    hidden = len(report.layers) - 1
    if hidden < _FITTED:
        found = ("no hidden layer", "one hidden layer", "two hidden layers")[hidden]
        return f"{found}, and a line needs three"
    return "they are finite in fewer than three hidden layers"


def caption(report: Any) -> str:
    """See `LayerReport.caption`."""
    measured = (
        f", the {report.num_measured_classes} with {report.min_count} samples or more measured"
    )
    parts = [
        f"{report.num_samples} samples, {report.num_classes} classes"
        + (measured if report.min_count > 1 else ""),
        f"Sigma_B with {report.weighting} weights"
        + (", corrected for few samples" if report.corrected else ""),
    ]
    if any(layer.compression_error is not None for layer in report.layers):
        parts.append("± standard error, jackknife over classes")
    if any(layer.ncc_accuracy is not None for layer in report.layers):
        parts.append("training accuracies: of the samples fitted to")
    if report.test is not None:
        ridge = any(layer.probe_ridge is not None for layer in report.test.layers)
        parts.append(
            f"test: {report.test.num_samples} other samples, by the same means and probes"
            + ", whose ridge is chosen without them" * ridge
        )
    return "; ".join(parts)


def of_collapse(report: Any) -> str:
    """See `LayerReport.collapse_summary`."""
    found = report.neural_collapse
    if found is None:
        return ""
    if found.classifier is None:
        return f"no NC1 to NC4: {found.reasons.get('classifier', 'no classifier')}"
    lines = [
        f"neural collapse at the input of {found.classifier!r} (d = {found.num_features})",
        *found.lines(),
    ]
    on_test = None if report.test is None else report.test.neural_collapse
    if on_test is not None:
        lines += on_test.lines("test: ")
    return "\n".join(lines)
