"""The metrics of a report that need the (d, d) scatter, each decomposition computed once."""

from __future__ import annotations

import math
from typing import Any

from deeprep import metrics
from deeprep.metrics import undefined
from deeprep.report.notes import are, defined
from deeprep.state import ClassScatter

# Those that a Cholesky factor or the eigenvectors serve come before those of eigenvalues alone.
_OF_CLASSES = ("nc1", "separation_fuzziness", "h_score", "vci", "lidar")
_OF_COVARIANCE = ("participation_ratio", "alpha_req")
_OF_SPECTRUM = ("numerical_rank", "effective_rank", "stable_rank", "rankme")
OF_FULL = (*_OF_CLASSES, *_OF_COVARIANCE, *_OF_SPECTRUM)

# Below, no line can be fitted to the eigenvalues from number 11 on.
_FEWEST_FOR_ALPHA = 13


def measure_full(
    s: ClassScatter, chosen: frozenset[str] | None, notes: list[str], *, was_full: bool
) -> dict[str, Any]:
    """Measure what was chosen of a full state; of others nothing, with a note if it was named.

    `was_full` says whether the state was full before classes were left out of it.
    """
    found = undefined.count_present(s)
    names = [name for name in OF_FULL if chosen is None or name in chosen]
    if not s.full:
        if was_full and names and found:
            notes.append(
                f"{are(names)} left out: the part of the classes left out in the (d, d) scatter is "
                "not known"
            )
        elif not was_full and chosen is not None and names:
            notes.append(f"{are(names)} left out: this state has full=False")
        return {}
    if not found:  # of which there is a note already
        return {}
    if chosen is None and min(s.num_samples - 1, s.num_features) < _FEWEST_FOR_ALPHA:
        names.remove("alpha_req")
    if found < 2:
        names = [name for name in names if name not in _OF_CLASSES]
    if s.nonfinite_classes:
        for name in names if found < 2 else ():  # of more classes there is a note already
            undefined.is_finite(s, name)
        return {name: None if name == "numerical_rank" else math.nan for name in names}
    parts = metrics.Decompositions(s)
    values: dict[str, Any] = {
        name: defined(notes, getattr(metrics, name), parts)
        for name in names
        if name not in _OF_SPECTRUM
    }
    ranks = [name for name in names if name in _OF_SPECTRUM]
    if ranks:
        spectrum = metrics.singular_values(s)
        values |= {name: getattr(metrics, name)(spectrum) for name in ranks}
        if values.get("numerical_rank", 0) < 0:  # products that overflowed
            values["numerical_rank"] = None
    return values
