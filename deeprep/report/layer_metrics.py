"""LayerMetrics: one row of a LayerReport, and how it is measured from a ClassScatter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from deeprep import metrics
from deeprep.metrics import ClosestClasses, class_means, undefined
from deeprep.metrics.cosines import search_pairs
from deeprep.report.full_metrics import OF_FULL, measure_full
from deeprep.report.notes import are, defined, merged, too_few
from deeprep.state import ClassScatter, Weighting
from deeprep.state.statistics import left_out

Metrics = Literal["auto"] | Sequence[str]

ALWAYS = ("compression", "discrimination")
_OF_MEANS = ("equinorm",)
_OF_PAIRS = ("cdnv", "equiangularity", "etf_error", "gnc2")
CHOOSABLE = (*_OF_PAIRS, *_OF_MEANS, *OF_FULL)

# K^2 d up to which "auto" compares all pairs of classes anew for these metrics: it then takes some
# seconds a layer at most. At K = 10^4 and d = 4096 it would be minutes.
PAIR_WORK = 2e10

# All pairs of up to 64 classes are kept, 2016 numbers; of more classes, the closest 50.
CLASSES_WITH_ALL_PAIRS = 64
CLOSEST_PAIRS = 50


@dataclass(frozen=True)
class LayerMetrics:
    """The metrics of one layer; None where a metric was not asked for or is not defined.

    Every metric is the function of `deeprep.metrics` of its name; the `_error`s are the standard
    errors of `metrics.jackknife`. Accuracies are fractions in [0, 1]: of the samples measured,
    which the means and the probe were fitted to, or, in the `test` of a report, of samples that
    they were not fitted to. `probe_ridge` is the ridge of the probe, None for plain least squares.

    `closest_classes` is the pair of classes whose means have the largest cosine, the one that
    `discrimination` is about. `closest_pairs` holds the pairs k < k' by falling cosine, rounded to
    six digits: all of them where at most 64 classes have samples, else the first 50.
    `closest_pairs_centered` holds as many by the cosines of mu_k - mu_G: in a network that is not
    trained yet, the means themselves lie all in one direction. Of more than 64 classes it is
    measured with ``metrics="auto"`` alone.
    """

    index: int
    name: str
    num_features: int
    compression: float | None = None
    compression_error: float | None = None
    discrimination: float | None = None
    discrimination_error: float | None = None
    closest_classes: tuple[int, int] | None = None
    cdnv: float | None = None
    directional_cdnv: float | None = None
    equinorm: float | None = None
    equiangularity: float | None = None
    etf_error: float | None = None
    gnc2: float | None = None
    nc1: float | None = None
    separation_fuzziness: float | None = None
    h_score: float | None = None
    vci: float | None = None
    lidar: float | None = None
    numerical_rank: int | None = None
    effective_rank: float | None = None
    stable_rank: float | None = None
    rankme: float | None = None
    participation_ratio: float | None = None
    alpha_req: float | None = None
    probe_accuracy: float | None = None
    probe_ridge: float | None = None
    ncc_accuracy: float | None = None
    closest_pairs: tuple[ClosestClasses, ...] | None = field(default=None, repr=False)
    closest_pairs_centered: tuple[ClosestClasses, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class LayerScores:
    """Scores of one layer on the data of the second pass; None where one is not defined.

    Accuracies, of the probe and of the nearest class mean, are fractions in [0, 1]. `probe_ridge`
    is the ridge of the probe, None for plain least squares.
    """

    probe_accuracy: float | None = None
    ncc_accuracy: float | None = None
    directional_cdnv: float | None = None
    probe_ridge: float | None = None


def choose_metrics(asked: Metrics, *, full: bool) -> frozenset[str] | None:
    """Return the names asked for, checked; None for "auto".

    Raises
    ------
    TypeError, ValueError
        For a string other than "auto", a name that is no metric of a report, and one that needs
        states with ``full=True`` unless there are some, as `full` says.
    """
    if isinstance(asked, str):
        if asked == "auto":
            return None
        raise TypeError(f"metrics is {asked!r}, expected 'auto' or a list of names")
    chosen = frozenset(asked)
    for name in asked:
        if name not in (*ALWAYS, *CHOOSABLE):
            raise ValueError(f"metrics holds {name!r}, expected some of {', '.join(CHOOSABLE)}")
        if name in OF_FULL and not full:
            raise ValueError(
                f"metrics holds {name!r}, which needs states with full=True; all have full=False"
            )
    return chosen


def measure_layer(
    index: int,
    name: str,
    scatter: ClassScatter,
    scores: LayerScores | None,
    *,
    weighting: Weighting,
    corrected: bool,
    jackknife: bool,
    chosen: frozenset[str] | None,
    min_count: int = 1,
) -> tuple[LayerMetrics, list[str]]:
    """Measure one layer; what is undefined becomes None or nan, and a note that says why."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        left = scatter.with_min_count(min_count)
        # Classes that have no samples at all are not left out for having few.
        fewest = min_count if left is not scatter else 1
        values = _of_classes(left, weighting, corrected, jackknife, chosen, notes, fewest)
        values |= measure_full(left, chosen, notes, was_full=scatter.full)
    if scores is not None:
        values |= vars(scores)
        if left is not scatter:
            notes.append("accuracies and directional_cdnv are of all classes, whatever min_count")
    notes += [str(warning.message) for warning in caught]
    return LayerMetrics(index, name, scatter.num_features, **values), merged(notes)


def _of_classes(
    s: ClassScatter,
    weighting: Weighting,
    corrected: bool,
    jackknife: bool,
    chosen: frozenset[str] | None,
    notes: list[str],
    min_count: int,
) -> dict[str, Any]:
    """Metrics that compare classes; one note where too few have samples, one where some are NaN."""
    found = undefined.count_present(s)
    if found < 2:
        notes.append(too_few(found, min_count))
        return {}
    present = s.present
    if found < s.num_classes:  # the state warns of them but once
        notes.append(left_out(s.num_classes - found, s.num_classes, min_count))
    affordable = found**2 * s.num_features <= PAIR_WORK
    names = _chosen_of_classes(affordable, chosen, notes)
    if not undefined.is_finite(s, "every metric"):
        return dict.fromkeys((*ALWAYS, *names), math.nan)
    spanned = _in_span_of_means(s, present) if names else s
    values: dict[str, Any] = {
        "compression": defined(notes, metrics.compression, s, weighting, corrected),
        **_of_cosines(s, found),
        **{name: getattr(metrics, name)(spanned) for name in names},
    }
    if found <= CLASSES_WITH_ALL_PAIRS or (chosen is None and affordable):
        values["closest_pairs_centered"] = _centered_pairs(spanned, found)
    if jackknife:
        errors = defined(notes, metrics.jackknife, s, weighting, corrected)
        if errors is not None:
            values["compression_error"] = errors.compression
            values["discrimination_error"] = errors.discrimination
    return values


def _chosen_of_classes(
    affordable: bool, chosen: frozenset[str] | None, notes: list[str]
) -> list[str]:
    if chosen is not None:
        return [name for name in (*_OF_PAIRS, *_OF_MEANS) if name in chosen]
    if affordable:
        return [*_OF_PAIRS, *_OF_MEANS]
    notes.append(
        f"{are(_OF_PAIRS)} left out: to compare all pairs of classes takes K^2 d products, here "
        f"more than {PAIR_WORK:.0e}; metrics=[...] with their names has them"
    )
    return list(_OF_MEANS)


def _in_span_of_means(s: ClassScatter, present: Tensor) -> ClassScatter:
    """Return a state with the same centred means, in a basis of the space that they span.

    All but compression and discrimination depend on lengths and angles of mu_k - mu_G alone, which
    R' of M' = Q R keeps, M (P, d) of these rows. In a layer that is much wider than there are
    classes this spares every metric its passes over the K x d means.
    """
    if s.num_features <= 2 * len(present):
        return s
    rows = torch.linalg.qr(class_means.centered_means(s, present).T, mode="r").R.T
    means = rows.new_zeros(s.num_classes, rows.shape[1]).index_copy_(0, present, rows)
    return s.with_means(means)


def _of_cosines(s: ClassScatter, classes: int) -> dict[str, Any]:
    """Discrimination and the pairs of classes that are closest to one another, by one search."""
    pairs = search_pairs(s, _pairs_kept(classes), "discrimination", centered=False)
    if not pairs:
        return {"discrimination": math.nan}
    return {
        "discrimination": 1.0 - pairs[0].cosine,
        "closest_classes": pairs[0][:2],
        "closest_pairs": _rounded(pairs),
    }


def _centered_pairs(s: ClassScatter, classes: int) -> tuple[ClosestClasses, ...] | None:
    pairs = search_pairs(s, _pairs_kept(classes), "closest_pairs_centered", centered=True)
    return _rounded(pairs) or None


def _pairs_kept(classes: int) -> int:
    return math.comb(classes, 2) if classes <= CLASSES_WITH_ALL_PAIRS else CLOSEST_PAIRS


def _rounded(pairs: tuple[ClosestClasses, ...]) -> tuple[ClosestClasses, ...]:
    return tuple(pair._replace(cosine=round(pair.cosine, 6)) for pair in pairs)
