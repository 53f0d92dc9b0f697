"""The statistics of a layer by definition, and what the metrics of this package share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deeprep.base.validate import UndefinedStatisticError
from deeprep.base.warn import warn

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ReferenceScatter:
    """Class-scatter statistics of labelled features; see :func:`class_scatter`.

    ``features`` (N, d) and ``labels`` (N,) are the samples that count (those not ignored);
    ``counts`` (K,) int64; ``means`` (K, d), zero for a class without samples; ``sumsq`` (K,) is
    sum_i |z_ki - mu_k|^2. The traces and matrices are properties, computed when first asked for.
    """

    features: Array
    labels: Integers
    counts: Integers
    means: Array
    sumsq: Array

    @property
    def num_samples(self) -> int:
        """N, the number of samples that count."""
        return int(self.counts.sum())

    @cached_property
    def present(self) -> Integers:
        """Indices (P,) of the classes with at least one sample."""
        if self.num_samples == 0:
            raise UndefinedStatisticError("class statistics need at least one sample, found none")
        return np.flatnonzero(self.counts)

    @cached_property
    def global_mean(self) -> Array:
        """mu_G (d,), the mean of all samples: sum_k (n_k/N) mu_k."""
        return np.asarray(self.counts[self.present] @ self.means[self.present] / self.num_samples)

    @cached_property
    def centered_means(self) -> Array:
        """mu_k - mu_G (P, d) of the present classes; exactly zero where only rounding is left."""
        means = self.means[self.present]
        centered = np.asarray(means - self.global_mean)
        rounding = 16 * np.finfo(np.float64).eps * np.linalg.norm(means, axis=1).max()
        centered[np.linalg.norm(centered, axis=1) <= rounding] = 0.0
        return centered

    @cached_property
    def trace_within(self) -> float:
        """Tr Sigma_W = sum_k sumsq_k / N."""
        return float(self.sumsq[self.present].sum() / self.num_samples)

    @cached_property
    def trace_between(self) -> float:
        """Tr Sigma_B = (1/K) sum_k |mu_k - mu_G|^2, every present class with the same weight."""
        return float(np.square(self.centered_means).sum(axis=1).mean())

    @cached_property
    def trace_between_prior(self) -> float:
        """Tr Sigma_B with weights n_k / N: sum_k (n_k/N) |mu_k - mu_G|^2."""
        weights = self.counts[self.present] / self.num_samples
        return float(weights @ np.square(self.centered_means).sum(axis=1))

    @cached_property
    def covariance_traces(self) -> Array:
        """tau_k (P,) = sumsq_k / (n_k - 1), unbiased."""
        counts = self.counts[self.present]
        if (counts == 1).any():
            classes = self.present[counts == 1].tolist()
            raise UndefinedStatisticError(
                f"the correction needs two samples a class, found one in {classes}"
            )
        return np.asarray(self.sumsq[self.present] / (counts - 1))

    def trace_between_corrected(self, weighting: str = "uniform") -> float:
        """Tr Sigma_B without the bias of finite samples, as a U-statistic.

        m_k - m_G = sum_j a_kj m_j with a_kj = [j = k] - n_j/N, so its squared length is
        sum_jl a_kj a_kl <m_j, m_l>. <m_j, m_l> is unbiased for j != l; for j = l take the mean
        of <z, z'> over pairs of different samples of the class instead.
        """
        shares = self.counts[self.present] / self.num_samples
        weights = {"uniform": np.full_like(shares, 1 / len(shares)), "prior": shares}[weighting]
        # The a_kj sum to zero over j, so the origin may lie anywhere.
        origin = self.global_mean
        products = np.asarray((self.means - origin) @ (self.means - origin).T)
        for k in self.present:
            gram = (own := self.features[self.labels == k] - origin) @ own.T
            pairs = len(own) * (len(own) - 1)
            products[k, k] = (gram.sum() - np.trace(gram)) / pairs if pairs else np.nan
        products = products[np.ix_(self.present, self.present)]
        combination = np.eye(len(shares)) - shares
        return float(weights @ np.diag(combination @ products @ combination.T))

    @cached_property
    def within(self) -> Array:
        """Sigma_W (d, d) = (1/N) sum_k sum_i (z_ki - mu_k)(z_ki - mu_k)'."""
        deviations = self.features - self.means[self.labels]
        return np.asarray(deviations.T @ deviations / self.num_samples)

    @cached_property
    def between(self) -> Array:
        """Sigma_B (d, d) = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)' over the present classes."""
        return np.asarray(self.centered_means.T @ self.centered_means / len(self.present))


def class_scatter(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    *,
    ignore_index: int = -100,
) -> ReferenceScatter:
    """Return the count, mean and within-class sum of squares of every class.

    mu_k = (1/n_k) sum_i z_ki and sumsq_k = sum_i |z_ki - mu_k|^2.

    ``features`` (N, d) of any real dtype, widened to float64; ``labels`` (N,) integers, those
    equal to ``ignore_index`` left out; ``num_classes`` K, by default the largest label + 1.

    >>> s = class_scatter([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]], [0, 0, 1])
    >>> s.counts.tolist(), s.means.tolist(), s.sumsq.tolist()
    ([2, 1], [[2.0, 0.0], [0.0, 5.0]], [2.0, 0.0])
    """
    rows = np.asarray(features, dtype=np.float64)
    classes = np.asarray(labels, dtype=np.int64)
    counted = classes != ignore_index
    rows, classes = rows[counted], classes[counted]
    if num_classes is None:
        num_classes = int(classes.max()) + 1
    wrong = classes[(classes < 0) | (classes >= num_classes)]
    if wrong.size:
        raise ValueError(f"labels holds {wrong[0]}, expected classes in [0, {num_classes})")
    counts = np.zeros(num_classes, dtype=np.int64)
    means = np.zeros((num_classes, rows.shape[1]))
    sumsq = np.zeros(num_classes)
    for k in range(num_classes):
        own = rows[classes == k]
        if len(own) == 0:
            continue
        counts[k] = len(own)
        with np.errstate(invalid="ignore"):  # Inf - Inf: the class becomes NaN, which is its value
            # Averaging differences from one row keeps the digits of data far from the origin, and
            # makes the mean of identical rows exactly that row.
            means[k] = own[0] + (own - own[0]).mean(axis=0)
            sumsq[k] = np.square(own - means[k]).sum()
    return ReferenceScatter(rows, classes, counts, means, sumsq)


def scatter_of(
    features: ArrayLike,
    labels: ArrayLike,
    ignore_index: int,
    statistic: str,
    *,
    classes: int,
    num_classes: int | None = None,
) -> ReferenceScatter:
    """Return the statistics, once it is sure that enough classes have samples."""
    if num_classes is None:
        num_classes = max(int(np.max(np.asarray(labels), initial=0)) + 1, 1)
    s = class_scatter(features, labels, num_classes, ignore_index=ignore_index)
    found = int(np.count_nonzero(s.counts))
    if found < classes:
        wanted = {1: "one class", 2: "two classes", 4: "four classes"}[classes]
        raise UndefinedStatisticError(
            f"{statistic} needs at least {wanted} with samples, found {found} of {num_classes}"
        )
    return s


def ratio(numerator: float, denominator: float, statistic: str) -> float:
    """Divide; x/0 = inf and 0/0 = nan are announced by a warning."""
    if denominator != 0.0:
        return numerator / denominator
    value = float("inf") if numerator > 0 else float("nan")
    warn(f"{statistic} is {value}: all class means coincide")
    return value


def cosines_of(s: ReferenceScatter, centered: bool, statistic: str) -> Array | None:
    """Return cos(mu_k, mu_k') (P, P); None, with a warning, where a mean has no direction."""
    means = s.centered_means if centered else s.means[s.present]
    norms = np.linalg.norm(means, axis=1)
    zero = norms == 0.0
    if zero.any():
        classes = s.present[zero].tolist()
        warn(f"{statistic} is nan: the class means {classes} are zero and have no direction")
        return None
    unit = means / norms[:, None]
    return np.asarray(unit @ unit.T)
