"""ReportOptions: what a report is to say of the states of a model's layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from deeprep.base.validate import check_positive
from deeprep.report.layer_metrics import Metrics, choose_metrics
from deeprep.state import Weighting

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """How the states of a model's layers become a `LayerReport`.

    Parameters
    ----------
    weighting
        Weights of the classes in Sigma_B: "uniform" (the paper's) or "prior", see
        `ClassScatter.trace_between`.
    corrected
        Correct Tr Sigma_B for few samples a class, see `metrics.compression`.
    jackknife
        Also standard errors over classes, see `metrics.jackknife`.
    metrics
        Names of `LayerMetrics` to have besides compression and discrimination. "auto" is all that
        the states allow: nc1, separation_fuzziness, h_score, vci, lidar, participation_ratio,
        alpha_req and the ranks need ``full=True``, alpha_req also 13 features; what visits all
        pairs of classes anew (cdnv, equiangularity, etf_error, gnc2) is left out, with a note in
        the report's `warnings`, where K^2 d is above 2e10.
    class_names
        (K,) names to show in place of numbers.
    min_count
        Leave out classes with fewer samples than that, see `ClassScatter.with_min_count`. Scores
        of a second pass are of all classes.

    Raises
    ------
    ValueError, TypeError
        For an unknown weighting or metric, for names that are not strings and for a min_count
        below 1.

    Examples
    --------
    >>> import torch, deeprep
    >>> options = deeprep.ReportOptions(weighting="prior", metrics=["cdnv"])
    >>> scatter = deeprep.class_scatter(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    >>> deeprep.LayerReport.from_scatters({"fc": scatter}, options=options).weighting
    'prior'
    """

    weighting: Weighting = "uniform"
    corrected: bool = False
    jackknife: bool = False
    metrics: Metrics = "auto"
    class_names: Sequence[str] | None = None
    min_count: int = 1

    def __post_init__(self) -> None:
        if self.weighting not in ("uniform", "prior"):
            raise ValueError(f"weighting is {self.weighting!r}, expected 'uniform' or 'prior'")
        for field in ("metrics", "class_names"):  # tuples, which cannot change and have a hash
            value = getattr(self, field)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, field, tuple(value))
        choose_metrics(self.metrics, full=True)
        names = self.class_names
        if names is not None and (
            isinstance(names, str) or not all(isinstance(name, str) for name in names)
        ):
            raise TypeError(f"class_names is {names!r}, expected K strings")
        object.__setattr__(self, "min_count", check_positive("min_count", self.min_count))


class ReportKeywords(TypedDict, total=False):
    """The fields of ReportOptions, as keyword arguments."""

    weighting: Weighting
    corrected: bool
    jackknife: bool
    metrics: Metrics
    class_names: Sequence[str] | None
    min_count: int


def report_options(
    options: ReportOptions | None, **changes: Unpack[ReportKeywords]
) -> ReportOptions:
    """Return `options`, by default those of ReportOptions(), with some fields changed.

    >>> report_options(ReportOptions(corrected=True), weighting="prior")
    ReportOptions(weighting='prior', corrected=True, jackknife=False, metrics='auto', ...)
    """
    options = ReportOptions() if options is None else options
    if not isinstance(options, ReportOptions):
        raise TypeError(f"options is a {type(options).__name__}, expected ReportOptions")
    known = [field.name for field in dataclasses.fields(ReportOptions)]
    for name in changes:
        if name not in known:
            raise TypeError(f"{name} is no argument of a report, expected {', '.join(known)}")
    return dataclasses.replace(options, **changes)
