"""How the class means lie to one another."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike

from deeprep.reference.scatter import ReferenceScatter, cosines_of, ratio, scatter_of


def closest_classes(
    features: ArrayLike, labels: ArrayLike, *, centered: bool = False, ignore_index: int = -100
) -> tuple[int, int, float]:
    """(k, k', cosine) of the pair k < k' with the largest cos(mu_k, mu_k').

    ``centered`` takes mu_k - mu_G instead of mu_k. The first pair wins a tie. A zero mean has no
    direction: then (-1, -1, nan), with a warning.

    >>> closest_classes([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]], [0, 1, 2])
    (1, 2, 0.8)
    """
    s = scatter_of(features, labels, ignore_index, "closest_classes", classes=2)
    pairs = _pairs(s, centered, "closest_classes")
    return pairs[0] if pairs else (-1, -1, float("nan"))


def closest_pairs(
    features: ArrayLike,
    labels: ArrayLike,
    count: int,
    *,
    centered: bool = False,
    ignore_index: int = -100,
) -> list[tuple[int, int, float]]:
    """(k, k', cosine) of the ``count`` pairs k < k' with the largest cos(mu_k, mu_k'), falling.

    cos(mu_k, mu_k') = <mu_k, mu_k'> / (|mu_k| |mu_k'|); ``centered`` takes mu_k - mu_G instead of
    mu_k. All pairs where there are fewer; equal cosines in the order of their pairs. A zero mean
    has no direction: then none, with a warning.

    >>> closest_pairs([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]], [0, 1, 2], 2)
    [(1, 2, 0.8), (0, 2, 0.6)]
    """
    s = scatter_of(features, labels, ignore_index, "closest_pairs", classes=2)
    return _pairs(s, centered, "closest_pairs")[:count]


def discrimination(
    features: ArrayLike, labels: ArrayLike, *, centered: bool = False, ignore_index: int = -100
) -> float:
    """D = 1 - max_{k != k'} cos(mu_k, mu_k') (Wang et al. 2025); nan where a mean is zero.

    >>> round(discrimination([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]], [0, 1, 2]), 12)
    0.2
    """
    s = scatter_of(features, labels, ignore_index, "discrimination", classes=2)
    pairs = _pairs(s, centered, "discrimination")
    return 1.0 - pairs[0][2] if pairs else float("nan")


def equinorm(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """Take the population std of |mu_k - mu_G| over its mean (Papyan, Han, Donoho 2020).

    >>> equinorm([[1.0, 0.0], [-1.0, 0.0]], [0, 1])
    0.0
    """
    s = scatter_of(features, labels, ignore_index, "equinorm", classes=2)
    norms = np.linalg.norm(s.centered_means, axis=1)
    return ratio(float(norms.std()), float(norms.mean()), "equinorm")


def equiangularity(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """Take the population std over pairs k < k' of cos(mu_k - mu_G, mu_k' - mu_G).

    Papyan, Han, Donoho 2020.

    >>> equiangularity([[1.0, 0.0], [-1.0, 0.0]], [0, 1])
    0.0
    """
    s = scatter_of(features, labels, ignore_index, "equiangularity", classes=2)
    cosines = cosines_of(s, True, "equiangularity")
    if cosines is None:
        return float("nan")
    return float(cosines[np.triu_indices_from(cosines, k=1)].std())


def etf_error(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """| MM'/|MM'|_F - (I - 11'/K)/sqrt(K-1) |_F, M the centred class means (Zhu et al. 2021).

    >>> round(etf_error([[1.0, 0.0], [-1.0, 0.0]], [0, 1]), 12)
    0.0
    """
    s = scatter_of(features, labels, ignore_index, "etf_error", classes=2)
    num_classes = len(s.present)
    gram = s.centered_means @ s.centered_means.T
    if not gram.any():
        return ratio(0.0, 0.0, "etf_error")
    simplex = (np.eye(num_classes) - 1.0 / num_classes) / np.sqrt(num_classes - 1)
    return float(np.linalg.norm(gram / np.linalg.norm(gram) - simplex))


def gnc2(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """Take the population std over |mean| of log(1 / |u_k - u_k'|) over pairs k < k'.

    u_k = (mu_k - mu_G) / |mu_k - mu_G|; GNC2 of Wu, Papyan 2024. nan where two u_k coincide.

    >>> gnc2([[1.0, 0.0], [-1.0, 0.0]], [0, 1])
    0.0
    """
    s = scatter_of(features, labels, ignore_index, "gnc2", classes=2)
    norms = np.linalg.norm(s.centered_means, axis=1, keepdims=True)
    if not norms.all():
        return float("nan")
    directions = s.centered_means / norms
    kernels = []
    for one, other in itertools.combinations(directions, 2):
        distance = np.linalg.norm(one - other)
        if distance <= 16 * np.finfo(np.float64).eps:
            return float("nan")
        kernels.append(-np.log(distance))
    return ratio(float(np.std(kernels)), float(abs(np.mean(kernels))), "gnc2")


def _pairs(s: ReferenceScatter, centered: bool, statistic: str) -> list[tuple[int, int, float]]:
    """All pairs k < k' by falling cosine; none, with a warning, where a mean has no direction."""
    cosines = cosines_of(s, centered, statistic)
    if cosines is None:
        return []
    pairs = [
        (int(s.present[i]), int(s.present[j]), float(cosines[i, j]))
        for i, j in itertools.combinations(range(len(cosines)), 2)
    ]
    return sorted(pairs, key=lambda pair: -pair[2])  # stable
