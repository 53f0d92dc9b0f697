"""Define every statistic in NumPy float64, in two passes: the oracle and the baseline.

Each function takes raw ``(features, labels)`` and follows the formula of its docstring literally:
the class means first, then the deviations from them, full matrices wherever the formula has one.
Nothing is streamed, tiled or factorised, so memory grows with N x d, d x d and K x K. That is the
point: the compiled core and :mod:`deeprep.metrics` are tested and timed against these. Features
are expected finite.

Notation: ``features`` z_i (N, d), ``labels`` y_i in [0, K) or ``ignore_index``; class k has n_k
samples with mean mu_k; mu_G is the mean of all N samples. Classes without samples take part in
nothing; where fewer classes have samples than a statistic needs, UndefinedStatisticError.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deeprep._validate import UndefinedStatisticError

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

__all__ = [
    "ReferenceScatter",
    "cdnv",
    "class_scatter",
    "closest_classes",
    "compression",
    "discrimination",
    "effective_rank",
    "equiangularity",
    "equinorm",
    "etf_error",
    "nc1",
    "ncc_accuracy",
    "nearest_class",
    "numerical_rank",
    "probe",
    "self_duality",
    "singular_values",
]


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
        raise ValueError(f"labels must lie in [0, {num_classes}), found {wrong[0]}")
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


def compression(
    features: ArrayLike, labels: ArrayLike, weighting: str = "uniform", *, ignore_index: int = -100
) -> float:
    """C = Tr Sigma_W / Tr Sigma_B (Wang et al. 2025); Sigma_B is weighted uniform or prior.

    >>> compression([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1])
    0.25
    """
    s = _scatter(features, labels, ignore_index, "compression", classes=2)
    between = {"uniform": s.trace_between, "prior": s.trace_between_prior}[weighting]
    return _ratio(s.trace_within, between, "compression")


def closest_classes(
    features: ArrayLike, labels: ArrayLike, *, centered: bool = False, ignore_index: int = -100
) -> tuple[int, int, float]:
    """(k, k', cosine) of the pair k < k' with the largest cos(mu_k, mu_k').

    ``centered`` takes mu_k - mu_G instead of mu_k. The first pair wins a tie. A zero mean has no
    direction: then (-1, -1, nan), with a warning.

    >>> closest_classes([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]], [0, 1, 2])
    (1, 2, 0.8)
    """
    s = _scatter(features, labels, ignore_index, "closest_classes", classes=2)
    cosines = _cosines(s, centered, "closest_classes")
    if cosines is None:
        return -1, -1, float("nan")
    pairs = np.where(np.triu(np.ones_like(cosines), k=1) > 0, cosines, -np.inf)
    first, second = np.unravel_index(np.argmax(pairs), pairs.shape)
    return int(s.present[first]), int(s.present[second]), float(pairs[first, second])


def discrimination(
    features: ArrayLike, labels: ArrayLike, *, centered: bool = False, ignore_index: int = -100
) -> float:
    """D = 1 - max_{k != k'} cos(mu_k, mu_k') (Wang et al. 2025); nan where a mean is zero.

    >>> round(discrimination([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]], [0, 1, 2]), 12)
    0.2
    """
    s = _scatter(features, labels, ignore_index, "discrimination", classes=2)
    cosines = _cosines(s, centered, "discrimination")
    if cosines is None:
        return float("nan")
    return 1.0 - float(cosines[np.triu_indices_from(cosines, k=1)].max())


def nc1(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """NC1 = Tr(Sigma_W Sigma_B^+) / K (Papyan, Han, Donoho 2020), K the number of present classes.

    >>> nc1([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1])
    0.125
    """
    s = _scatter(features, labels, ignore_index, "nc1", classes=2)
    if not s.between.any():
        return _ratio(s.trace_within, 0.0, "nc1")
    tolerance = max(s.centered_means.shape) * np.finfo(np.float64).eps
    inverse = np.linalg.pinv(s.between, rcond=tolerance, hermitian=True)
    return float(np.trace(s.within @ inverse) / len(s.present))


def cdnv(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """Mean over pairs k != k' of (v_k + v_k') / (2 |mu_k - mu_k'|^2), v_k = sumsq_k / n_k.

    Class-distance normalised variance (Galanti, György, Hutter 2022).

    >>> cdnv([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1])
    0.0625
    """
    s = _scatter(features, labels, ignore_index, "cdnv", classes=2)
    variances = s.sumsq[s.present] / s.counts[s.present]
    means = s.means[s.present]
    terms = []
    for k, other in itertools.combinations(range(len(s.present)), 2):
        distance = np.square(means[k] - means[other]).sum()
        with np.errstate(divide="ignore", invalid="ignore"):  # coinciding means: inf, 0/0 is nan
            terms.append((variances[k] + variances[other]) / (2.0 * distance))
    return float(np.mean(terms))


def equinorm(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """Take the population std of |mu_k - mu_G| over its mean (Papyan, Han, Donoho 2020).

    >>> equinorm([[1.0, 0.0], [-1.0, 0.0]], [0, 1])
    0.0
    """
    s = _scatter(features, labels, ignore_index, "equinorm", classes=2)
    norms = np.linalg.norm(s.centered_means, axis=1)
    return _ratio(float(norms.std()), float(norms.mean()), "equinorm")


def equiangularity(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """Take the population std over pairs k < k' of cos(mu_k - mu_G, mu_k' - mu_G).

    Papyan, Han, Donoho 2020.

    >>> equiangularity([[1.0, 0.0], [-1.0, 0.0]], [0, 1])
    0.0
    """
    s = _scatter(features, labels, ignore_index, "equiangularity", classes=2)
    cosines = _cosines(s, True, "equiangularity")
    if cosines is None:
        return float("nan")
    return float(cosines[np.triu_indices_from(cosines, k=1)].std())


def etf_error(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """| MM'/|MM'|_F - (I - 11'/K)/sqrt(K-1) |_F, M the centred class means (Zhu et al. 2021).

    >>> round(etf_error([[1.0, 0.0], [-1.0, 0.0]], [0, 1]), 12)
    0.0
    """
    s = _scatter(features, labels, ignore_index, "etf_error", classes=2)
    num_classes = len(s.present)
    gram = s.centered_means @ s.centered_means.T
    if not gram.any():
        return _ratio(0.0, 0.0, "etf_error")
    simplex = (np.eye(num_classes) - 1.0 / num_classes) / np.sqrt(num_classes - 1)
    return float(np.linalg.norm(gram / np.linalg.norm(gram) - simplex))


def self_duality(
    features: ArrayLike, labels: ArrayLike, weight: ArrayLike, *, ignore_index: int = -100
) -> float:
    """| W/|W|_F - M/|M|_F |_F (NC3, Papyan, Han, Donoho 2020), M the centred class means.

    ``weight`` W (K, d) of the classifier; its rows of classes without samples are left out.

    >>> self_duality([[1.0, 0.0], [-1.0, 0.0]], [0, 1], [[2.0, 0.0], [-2.0, 0.0]])
    0.0
    """
    s = _scatter(features, labels, ignore_index, "self_duality", classes=2)
    rows = np.asarray(weight, dtype=np.float64)[s.present]
    norms = np.linalg.norm(rows), np.linalg.norm(s.centered_means)
    if 0.0 in norms:
        return _ratio(0.0, 0.0, "self_duality")
    return float(np.linalg.norm(rows / norms[0] - s.centered_means / norms[1]))


def singular_values(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> Array:
    """Singular values (min(N, d),) of the N x d features, not centred, largest first.

    >>> singular_values([[3.0, 0.0], [0.0, 4.0]], [0, 1]).tolist()
    [4.0, 3.0]
    """
    s = _scatter(features, labels, ignore_index, "singular_values", classes=1)
    return np.asarray(np.linalg.svd(s.features, compute_uv=False))


def numerical_rank(
    features: ArrayLike, labels: ArrayLike, threshold: float = 0.95, *, ignore_index: int = -100
) -> int:
    """Least r whose r largest singular values sum to >= threshold of the sum of all.

    Wang et al. 2025. 0 for features that are all zero.

    >>> numerical_rank([[3.0, 0.0], [0.0, 4.0]], [0, 1])
    2
    """
    cumulative = np.cumsum(singular_values(features, labels, ignore_index=ignore_index))
    if cumulative[-1] == 0.0:
        return 0
    return int(np.argmax(cumulative >= threshold * cumulative[-1])) + 1


def effective_rank(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """Exponential of the entropy of sigma / sum(sigma), sigma the singular values.

    Roy, Vetterli 2007. 0 for features that are all zero.

    >>> round(effective_rank([[2.0, 0.0], [0.0, 2.0]], [0, 1]), 12)
    2.0
    """
    sigma = singular_values(features, labels, ignore_index=ignore_index)
    if not sigma.any():
        return 0.0
    shares = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def probe(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    ridge: float = 0.0,
    *,
    ignore_index: int = -100,
) -> tuple[Array, Array]:
    """Weight W (K, d) and bias b (K,) of the linear least-squares classifier.

    They minimise (1/N) sum_i |W z_i + b - onehot(y_i)|^2 + ridge |W|_F^2. The bias is not
    penalised. Of all minimisers, the one with the smallest |W|_F. Row k of a class without
    samples is zero.

    >>> weight, bias = probe([[1.0], [-1.0]], [0, 1])
    >>> weight.round(12).tolist(), bias.round(12).tolist()
    ([[0.5], [-0.5]], [0.5, 0.5])
    """
    s = _scatter(features, labels, ignore_index, "probe", classes=1, num_classes=num_classes)
    targets = np.eye(len(s.counts))[s.labels]
    target_mean = s.counts / s.num_samples
    # The penalty is d further rows sqrt(ridge N) I, wanted 0, of an ordinary least-squares problem.
    width = s.features.shape[1]
    rows = np.vstack([s.features - s.global_mean, np.sqrt(ridge * s.num_samples) * np.eye(width)])
    wanted = np.vstack([targets - target_mean, np.zeros((width, len(s.counts)))])
    # Below 1e-10 of the largest, singular values are rounding errors of the centring.
    weight = np.linalg.lstsq(rows, wanted, rcond=1e-10)[0].T
    return np.asarray(weight), np.asarray(target_mean - weight @ s.global_mean)


def nearest_class(
    features: ArrayLike, labels: ArrayLike, queries: ArrayLike, *, ignore_index: int = -100
) -> Integers:
    """Class argmin_k |z - mu_k| (M,) of each row z of ``queries`` (M, d), by the features' means.

    >>> nearest_class([[1.0], [-1.0]], [0, 1], [[0.2], [-5.0]]).tolist()
    [0, 1]
    """
    s = _scatter(features, labels, ignore_index, "nearest_class", classes=1)
    offsets = np.asarray(queries, dtype=np.float64)[:, None, :] - s.means[s.present]
    return np.asarray(s.present[np.argmin(np.square(offsets).sum(axis=2), axis=1)])


def ncc_accuracy(
    features: ArrayLike,
    labels: ArrayLike,
    queries: ArrayLike | None = None,
    query_labels: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
) -> float:
    """Share of ``queries`` (default: the features) whose nearest class mean is their own (NC4).

    Papyan, Han, Donoho 2020. Queries labelled ``ignore_index`` do not count.

    >>> ncc_accuracy([[1.0], [-1.0], [-3.0], [5.0]], [0, 1, 1, 1])
    0.75
    """
    predicted = nearest_class(
        features, labels, features if queries is None else queries, ignore_index=ignore_index
    )
    wanted = np.asarray(labels if query_labels is None else query_labels)
    counted = wanted != ignore_index
    return float(np.mean(predicted[counted] == wanted[counted]))


def _scatter(
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
        num_classes = max(int(np.max(labels, initial=0)) + 1, 1)
    s = class_scatter(features, labels, num_classes, ignore_index=ignore_index)
    found = int(np.count_nonzero(s.counts))
    if found < classes:
        wanted = {1: "one class", 2: "two classes"}[classes]
        raise UndefinedStatisticError(
            f"{statistic} needs at least {wanted} with samples, found {found} of {num_classes}"
        )
    return s


def _ratio(numerator: float, denominator: float, statistic: str) -> float:
    """Divide; x/0 = inf and 0/0 = nan are announced by a warning."""
    if denominator != 0.0:
        return numerator / denominator
    value = float("inf") if numerator > 0 else float("nan")
    warnings.warn(f"{statistic} is {value}: all class means coincide", UserWarning, stacklevel=3)
    return value


def _cosines(s: ReferenceScatter, centered: bool, statistic: str) -> Array | None:
    """Return cos(mu_k, mu_k') (P, P); None, with a warning, where a mean has no direction."""
    means = s.centered_means if centered else s.means[s.present]
    norms = np.linalg.norm(means, axis=1)
    zero = norms == 0.0
    if zero.any():
        classes = s.present[zero].tolist()
        warnings.warn(
            f"{statistic} is nan: the class means {classes} are zero and have no direction",
            UserWarning,
            stacklevel=3,
        )
        return None
    unit = means / norms[:, None]
    return np.asarray(unit @ unit.T)
