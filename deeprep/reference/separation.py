"""How far the classes can be told apart along the directions of their means."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deeprep.base.validate import UndefinedStatisticError
from deeprep.reference.scatter import Array, ReferenceScatter, ratio, scatter_of


def separation_fuzziness(
    features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100
) -> float:
    """Tr(SS_W SS_B^+), SS_B with weights n_k/N (He, Su 2023).

    >>> round(separation_fuzziness([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1]), 12)
    0.25
    """
    s = scatter_of(features, labels, ignore_index, "separation_fuzziness", classes=2)
    between = _between(s)
    if not between.any():
        return ratio(s.trace_within, 0.0, "separation_fuzziness")
    tolerance = max(s.centered_means.shape) * np.finfo(np.float64).eps
    inverse = np.linalg.pinv(between, rcond=tolerance, hermitian=True)
    return float(np.trace(s.within @ inverse))


def h_score(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """Tr(cov(z)^+ cov(E[z|y])), each sample in the place of its class mean (Bao et al. 2019).

    >>> round(h_score([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1]), 12)
    0.8
    """
    s = scatter_of(features, labels, ignore_index, "h_score", classes=2)
    means = np.zeros_like(s.features)
    means[:] = s.centered_means[np.searchsorted(s.present, s.labels)]
    centered = s.features - s.global_mean
    total = centered.T @ centered / (s.num_samples - 1)
    between = means.T @ means / (s.num_samples - 1)
    return float(np.trace(np.linalg.pinv(total, rcond=1e-12, hermitian=True) @ between))


def vci(features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100) -> float:
    """1 - Tr(Sigma_T^+ Sigma_B) / rank(Sigma_B), Sigma_B with weights n_k/N (Xu, Liu 2023).

    >>> round(vci([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1]), 12)
    0.2
    """
    s = scatter_of(features, labels, ignore_index, "vci", classes=2)
    between = _between(s)
    if not between.any():
        return ratio(0.0, 0.0, "vci")
    centered = s.features - s.global_mean
    total = centered.T @ centered / s.num_samples
    explained = np.trace(np.linalg.pinv(total, rcond=1e-12, hermitian=True) @ between)
    return float(1.0 - explained / np.linalg.matrix_rank(between, hermitian=True))


def lidar(
    features: ArrayLike, labels: ArrayLike, delta: float = 1e-4, *, ignore_index: int = -100
) -> float:
    """Effective rank of Sigma_w^(-1/2) Sigma_b Sigma_w^(-1/2) (Thilak et al. 2024).

    Of unbiased Sigma_b and Sigma_w + delta I, see :func:`deeprep.metrics.lidar`; with RankMe's
    1e-7. 0 where all class means coincide.

    >>> round(lidar([[3.1, 0.1], [2.9, -0.1], [0.1, 3.1], [-0.1, 2.9]], [0, 0, 1, 1]), 5)
    1.0
    """
    s = scatter_of(features, labels, ignore_index, "lidar", classes=2)
    classes, width = len(s.present), s.features.shape[1]
    if s.num_samples == classes:
        raise UndefinedStatisticError(
            "lidar needs at least two samples in one class, found one in each"
        )
    means = s.means[s.present]
    offsets = means - means.mean(axis=0)
    rounding = 16 * np.finfo(np.float64).eps * np.linalg.norm(means, axis=1).max()
    offsets[np.linalg.norm(offsets, axis=1) <= rounding] = 0.0
    if not offsets.any():
        return 0.0
    between = offsets.T @ offsets / (classes - 1)
    within = s.within * s.num_samples / (s.num_samples - classes) + delta * np.eye(width)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.clip(np.linalg.eigvalsh(root @ between @ root), 0.0, None)
    shares = eigenvalues / eigenvalues.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _between(s: ReferenceScatter) -> Array:
    """Sum (n_k/N) (mu_k - mu_G)(mu_k - mu_G)', (d, d)."""
    weights = s.counts[s.present] / s.num_samples
    return np.asarray((s.centered_means.T * weights) @ s.centered_means)
