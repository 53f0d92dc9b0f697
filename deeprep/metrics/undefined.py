"""Where a statistic is not defined: an error for too few classes, else a warning and nan."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprep.base.validate import UndefinedStatisticError
from deeprep.base.warn import warn
from deeprep.state import ClassScatter
from deeprep.state.statistics import name_classes


def count_present(s: ClassScatter) -> int:
    """Return how many classes have samples."""
    return int(torch.count_nonzero(s.counts))


def require_classes(s: ClassScatter, statistic: str, at_least: int) -> None:
    """Raise unless that many classes have samples."""
    require_found(count_present(s), s.num_classes, statistic, at_least)


def require_found(found: int, num_classes: int, statistic: str, at_least: int) -> None:
    """Raise unless `found`, the classes with samples of K, are that many."""
    if found < at_least:
        wanted = {1: "one class", 2: "two classes", 4: "four classes"}[at_least]
        raise UndefinedStatisticError(
            f"{statistic} needs at least {wanted} with samples, found {found} of {num_classes}"
        )


def is_finite(
    s: ClassScatter, statistic: str, pooled: Tensor | None = None, *, value: object = "nan"
) -> bool:
    """Whether the state, and its pooled scatter where given, hold only finite numbers.

    If not, warn that the statistic is ``value`` and name the classes.
    """
    classes = s.nonfinite_classes
    if classes:
        warn_nonfinite(statistic, classes, value)
    elif pooled is not None:
        return products_are_finite(pooled, statistic, value)
    return not classes


def products_are_finite(pooled: Tensor, statistic: str, value: object = "nan") -> bool:
    """Whether the pooled scatter, of finite features, is finite; if not, warn."""
    finite = bool(pooled.isfinite().all())
    if not finite:
        reason = "products of the features overflow float64; scale them down"
        warn_undefined(statistic, reason, value)
    return finite


def warn_undefined(statistic: str, reason: str, value: object = "nan") -> None:
    """Warn that the statistic has no ordinary value, and why."""
    warn(f"{statistic} is {value}: {reason}")


def warn_nonfinite(statistic: str, classes: list[int], value: object = "nan") -> None:
    """Warn that the features of these classes leave the statistic without an ordinary value."""
    warn_undefined(statistic, f"the features of {name_classes(classes)} hold NaN or Inf", value)


def warn_zero_means(
    statistic: str, classes: list[int], value: object = "nan", *, centered: bool = False
) -> None:
    """Warn that the means of these classes, being zero, leave it without an ordinary value."""
    means = f"{'centred ' if centered else ''}means of {name_classes(classes)}"
    warn_undefined(statistic, f"the {means} are zero and have no direction", value)


def ratio(
    numerator: float, denominator: float, statistic: str, reason: str = "all class means coincide"
) -> float:
    """Divide; inf or nan, with a warning that says why, where the denominator is zero."""
    if denominator == 0.0:
        value = float("inf") if numerator > 0.0 else float("nan")
        warn_undefined(statistic, reason, value)
        return value
    return numerator / denominator
