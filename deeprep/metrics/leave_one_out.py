"""How much compression and discrimination depend on which classes happened to be measured."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deeprep import ops
from deeprep.metrics import class_means, undefined
from deeprep.metrics.cosines import largest_cosines
from deeprep.state import ClassScatter, Weighting
from deeprep.state.statistics import name_classes


class Jackknife(NamedTuple):
    """Standard errors over classes, in the units of the metrics; nan where undefined."""

    compression: float
    discrimination: float


def jackknife(
    s: ClassScatter, weighting: Weighting = "uniform", corrected: bool = False
) -> Jackknife:
    """Estimate the standard errors of compression and discrimination by leaving out one class.

    sqrt((K-1)/K sum_j (theta_j - mean_j theta_j)^2) with theta_j the metric without class j, over
    the K classes with samples: how much the metric would move with other classes of the same kind.
    Discrimination is the smallest of many, which no jackknife is consistent for: only the two
    classes of the closest pair move it, so read its error as how much D depends on those two.

    Of three classes there are no errors, for without one of them two are left. Tr Sigma_B is then
    a single squared distance, and the error of compression comes out too large: 1.2 to 2.3 times
    the spread over draws of normal classes, in the median and from d = 50 to d = 2, where four
    classes give 1.1 to 1.3. And discrimination is then that of the only pair, no longer the
    smallest of several: the spread of three such values is no error of D.

    No metric is computed K times: leaving out a class moves mu_G along mu_j - mu_G, which leaves
    O(K d) for compression; discrimination takes one round over the pairs of classes.

    Parameters
    ----------
    s
        At least four classes with samples.
    weighting, corrected
        As for `deeprep.compression`.

    Raises
    ------
    UndefinedStatisticError
        Below four classes with samples; and, if ``corrected``, where a class has a single one.
    ValueError
        For another weighting.

    Notes
    -----
    Efron, Stein, The jackknife estimate of variance, 1981. nan with a warning where the metric is
    undefined, for all classes or without one of them, or where features hold NaN or Inf.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0], [5.0], [7.0], [-5.0], [-7.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    >>> round(deeprep.metrics.jackknife(s).compression, 4)  # 9/224 or 3/32 without one class
    0.0464
    """
    present = class_means.present_classes(s, "jackknife", at_least=4)
    # Sigma_B's weights are these, divided by their sum over the classes that are left.
    weights = s.class_weights(weighting, present) * len(present)
    if not undefined.is_finite(s, "jackknife"):
        return Jackknife(math.nan, math.nan)
    compressions = _compressions_without_each(s, present, weights, corrected)
    indispensable = present[~compressions.isfinite()].tolist()
    spread = math.nan
    if indispensable:
        reason = f"compression is undefined without any one of {name_classes(indispensable)}"
        undefined.warn_undefined("the jackknife error of compression", reason)
    else:
        spread = _standard_error(compressions)
    unit = class_means.directions(s, "the jackknife error of discrimination", centered=False)
    if unit is None:
        return Jackknife(spread, math.nan)
    return Jackknife(spread, _standard_error(_discriminations_without_each(unit)))


def _standard_error(thetas: Tensor) -> float:
    """Jackknife standard error of a statistic from its values (P,) without each class."""
    deviations = thetas - thetas.mean()
    return math.sqrt(float(deviations.square().mean()) * (len(thetas) - 1))


def _compressions_without_each(
    s: ClassScatter, present: Tensor, weights: Tensor, corrected: bool
) -> Tensor:
    """Compression (P,) of the state without class j, for each; not finite where means coincide."""
    counts = s.counts[present].double()
    rest = _sum_of_others(counts)
    between = _between_without_each(s, present, weights)
    if not corrected:
        return _sum_of_others(s.sumsq[present]) / rest / between
    traces = s.covariance_traces(present)
    within = _sum_of_others(counts * traces) / rest
    inflation = (
        _sum_of_others(weights * traces / counts) - 2.0 * _sum_of_others(weights * traces) / rest
    )
    between = between - inflation / _sum_of_others(weights) - within / rest
    return torch.where(between > 16.0 * class_means.EPS * within, within / between, torch.inf)


def _between_without_each(s: ClassScatter, present: Tensor, weights: Tensor) -> Tensor:
    """Tr Sigma_B (P,) without class j, for each; exactly zero where only rounding is left.

    Without class j the global mean is mu_G - a_j c_j, c_j = mu_j - mu_G and a_j = n_j / (N - n_j),
    and so  sum_{k != j} w_k |c_k + a_j c_j|^2  is, with W_j the sum of the other weights,
    sum_{k != j} w_k |c_k|^2 + 2 a_j (<sum_k w_k c_k, c_j> - w_j |c_j|^2) + a_j^2 W_j |c_j|^2.
    """
    counts = s.counts[present].double()
    centered = class_means.centered_means(s, present)
    lengths = torch.linalg.vector_norm(centered, dim=1).square_()
    leverage = counts / _sum_of_others(counts)
    others, rest = _sum_of_others(weights * lengths), _sum_of_others(weights)
    mixed = centered @ (weights @ centered)
    crossed = 2.0 * leverage * (mixed - weights * lengths)
    pulled = leverage.square() * rest * lengths
    between: Tensor = (others + crossed + pulled) / rest
    # Class j may hold nearly all of the scatter: then the terms cancel. That takes nearly all pairs
    # of classes to involve j, so it happens to two at most, and these are summed anew.
    size = others + 2.0 * leverage * (mixed.abs() + weights * lengths) + pulled
    own = ops.squared_distances(s.means)[present]
    for j in torch.nonzero(between * rest < 1e-3 * size).flatten().tolist():
        kept = torch.ones_like(counts)
        kept[j] = 0.0
        shares = torch.zeros_like(s.sumsq).index_copy_(0, present, kept * counts)
        distances = ops.squared_distances(s.means, (shares / shares.sum()) @ s.means)[present]
        between[j] = (kept * weights) @ distances / rest[j]
    # Where the subtraction of a mean from the others leaves its rounding, see rounding_of_means.
    longest, at = own.topk(2)
    largest = torch.full_like(own, float(longest[0])).index_fill_(0, at[:1], float(longest[1]))
    rounding = (16.0 * class_means.EPS) ** 2 * largest
    return between.masked_fill_(between <= rounding, 0.0)


def _discriminations_without_each(unit: Tensor) -> Tensor:
    """Discrimination (P,) without each class; ``unit`` (P, d) means of length one.

    It changes only without one of the two classes of the closest pair. These are in P - 1 pairs
    each, so that one of the P closest is without it: the first such pair is the closest then.
    """
    first, second, cosines = largest_cosines(unit, len(unit))
    largest = torch.full_like(unit[:, 0], float(cosines[0]))
    for left_out in (int(first[0]), int(second[0])):
        largest[left_out] = cosines[(first != left_out) & (second != left_out)][0]
    return 1.0 - largest


def _sum_of_others(values: Tensor) -> Tensor:
    """Sum of all values (P,) but the j-th, for each j.

    Of those before and those after: none is taken back out of a sum that it may be nearly all of.
    """
    padded = torch.nn.functional.pad(values, (1, 1))
    return padded[:-2].cumsum(0) + padded.flip(0)[:-2].cumsum(0).flip(0)
