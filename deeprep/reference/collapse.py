"""How small the spread within classes is, next to the spread between them."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike

from deeprep.reference.geometry import discrimination
from deeprep.reference.scatter import Array, ratio, scatter_of


def compression(
    features: ArrayLike,
    labels: ArrayLike,
    weighting: str = "uniform",
    corrected: bool = False,
    *,
    ignore_index: int = -100,
) -> float:
    """C = Tr Sigma_W / Tr Sigma_B (Wang et al. 2025); Sigma_B is weighted uniform or prior.

    ``corrected`` takes unbiased estimates of both; inf where that of Tr Sigma_B is not positive.

    >>> compression([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1])
    0.25
    """
    s = scatter_of(features, labels, ignore_index, "compression", classes=2)
    if corrected:
        within = float(s.counts[s.present] @ s.covariance_traces / s.num_samples)
        between = s.trace_between_corrected(weighting)
        return ratio(within, max(between, 0.0), "compression")
    between = {"uniform": s.trace_between, "prior": s.trace_between_prior}[weighting]
    return ratio(s.trace_within, between, "compression")


def nc1(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """NC1 = Tr(Sigma_W Sigma_B^+) / K (Papyan, Han, Donoho 2020), K the number of present classes.

    >>> nc1([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1])
    0.125
    """
    s = scatter_of(features, labels, ignore_index, "nc1", classes=2)
    if not s.between.any():
        return ratio(s.trace_within, 0.0, "nc1")
    tolerance = max(s.centered_means.shape) * np.finfo(np.float64).eps
    inverse = np.linalg.pinv(s.between, rcond=tolerance, hermitian=True)
    return float(np.trace(s.within @ inverse) / len(s.present))


def cdnv(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """Mean over pairs k != k' of (v_k + v_k') / (2 |mu_k - mu_k'|^2), v_k = sumsq_k / n_k.

    Class-distance normalised variance (Galanti, György, Hutter 2022).

    >>> cdnv([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1])
    0.0625
    """
    scatter_of(features, labels, ignore_index, "cdnv", classes=2)
    values = cdnv_per_class(features, labels, ignore_index=ignore_index)
    present = np.unique(np.asarray(labels)[np.asarray(labels) != ignore_index])
    return float(np.mean(values[present]))


def cdnv_per_class(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    *,
    ignore_index: int = -100,
) -> Array:
    """Mean over k' != k of (v_k + v_k') / (2 |mu_k - mu_k'|^2), (K,); nan for an empty class.

    >>> cdnv_per_class([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1]).tolist()
    [0.0625, 0.0625]
    """
    s = scatter_of(
        features, labels, ignore_index, "cdnv_per_class", classes=2, num_classes=num_classes
    )
    values = np.full(len(s.counts), np.nan)
    for k in s.present:
        terms = []
        for other in s.present[s.present != k]:
            spread = s.sumsq[k] / s.counts[k] + s.sumsq[other] / s.counts[other]
            with np.errstate(divide="ignore", invalid="ignore"):  # coinciding means: inf, 0/0 nan
                terms.append(spread / (2.0 * np.square(s.means[k] - s.means[other]).sum()))
        values[k] = np.mean(terms)
    return values


def directional_cdnv(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """Mean over pairs k != k' of E_i <z_ki - mu_k, mu_k - mu_k'>^2 / |mu_k - mu_k'|^4.

    Luthra, Yang, Galanti 2025. nan where means coincide.

    >>> directional_cdnv([[1.0, 9.0], [3.0, -9.0], [-1.0, 9.0], [-3.0, -9.0]], [0, 0, 1, 1])
    0.0625
    """
    s = scatter_of(features, labels, ignore_index, "directional_cdnv", classes=2)
    terms = []
    for k, other in itertools.permutations(s.present, 2):
        line = s.means[k] - s.means[other]
        length = np.linalg.norm(line)
        if length == 0.0:
            return float("nan")
        along = (s.features[s.labels == k] - s.means[k]) @ (line / length)
        terms.append(np.square(along).mean() / length**2)
    return float(np.mean(terms))


def jackknife(
    features: ArrayLike,
    labels: ArrayLike,
    weighting: str = "uniform",
    corrected: bool = False,
    *,
    ignore_index: int = -100,
) -> tuple[float, float]:
    """Standard errors of compression and discrimination by leaving out one class at a time.

    sqrt((K-1)/K sum_j (theta_j - mean theta)^2), theta_j the metric without the rows of class j, of
    four classes or more.

    >>> features = [[1.0], [3.0], [-1.0], [-3.0], [5.0], [7.0], [-5.0], [-7.0]]
    >>> round(jackknife(features, [0, 0, 1, 1, 2, 2, 3, 3])[0], 4)  # of 9/224 and 3/32, twice each
    0.0464
    """
    s = scatter_of(features, labels, ignore_index, "jackknife", classes=4)
    thetas = []
    for left_out in s.present:
        kept = s.labels != left_out
        rest = s.features[kept], s.labels[kept]
        thetas.append((compression(*rest, weighting, corrected), discrimination(*rest)))
    if np.isnan(discrimination(s.features, s.labels)):
        thetas[0] = thetas[0][0], np.nan
    with np.errstate(invalid="ignore"):
        deviations = np.array(thetas) - np.mean(thetas, axis=0)
    errors = np.sqrt(np.square(deviations).mean(axis=0) * (len(thetas) - 1))
    return float(errors[0]), float(errors[1])
