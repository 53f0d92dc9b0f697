"""How many dimensions the features use."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deeprep.reference.scatter import Array, Integers, scatter_of


def singular_values(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> Array:
    """Singular values (min(N, d),) of the N x d features, not centred, largest first.

    >>> singular_values([[3.0, 0.0], [0.0, 4.0]], [0, 1]).tolist()
    [4.0, 3.0]
    """
    s = scatter_of(features, labels, ignore_index, "singular_values", classes=1)
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


def stable_rank(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """|Z|_F^2 / |Z|_2^2 = sum sigma^2 / sigma_max^2 (Rudelson, Vershynin 2007); 0 for zeros.

    >>> stable_rank([[2.0, 0.0], [0.0, 1.0]], [0, 1])
    1.25
    """
    sigma = singular_values(features, labels, ignore_index=ignore_index)
    return float(np.square(sigma).sum() / sigma[0] ** 2) if sigma.any() else 0.0


def rankme(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """exp(-sum p log p), p = sigma / sum(sigma) + 1e-7 (Garrido et al. 2023); 0 for zeros.

    >>> round(rankme([[2.0, 0.0], [0.0, 2.0]], [0, 1]), 5)
    2.0
    """
    sigma = singular_values(features, labels, ignore_index=ignore_index)
    if not sigma.any():
        return 0.0
    shares = sigma / sigma.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def class_ranks(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    *,
    centered: bool = False,
    threshold: float = 0.95,
    ignore_index: int = -100,
) -> tuple[Integers, Array, Array, Array]:
    """Numerical, effective, stable rank and RankMe (K,) of the rows of each class.

    ``centered`` takes z_ki - mu_k for z_ki. An empty class has -1 and nan.

    >>> class_ranks([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [0, 0, 1])[0].tolist()
    [2, 1]
    """
    s = scatter_of(
        features, labels, ignore_index, "class_ranks", classes=1, num_classes=num_classes
    )
    ranks = np.full((4, len(s.counts)), np.nan)
    ranks[0] = -1
    for k in s.present:
        own = s.features[s.labels == k] - (s.means[k] if centered else 0.0)
        same = np.zeros(len(own), dtype=np.int64)
        ranks[:, k] = (
            numerical_rank(own, same, threshold),
            effective_rank(own, same),
            stable_rank(own, same),
            rankme(own, same),
        )
    return ranks[0].astype(np.int64), ranks[1], ranks[2], ranks[3]
