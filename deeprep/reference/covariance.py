"""How the variance of the features, centred, is spread over their dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deeprep.base.warn import warn
from deeprep.reference.scatter import Array, scatter_of


def covariance_eigenvalues(
    features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100
) -> Array:
    """Eigenvalues (min(N, d),) of (1/N) sum_i (z_i - mu_G)(z_i - mu_G)', largest first.

    By the singular values of the centred features; 0 where those are rounding.

    >>> covariance_eigenvalues([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [0, 0, 1, 1])
    array([4.5, 0.5])
    """
    s = scatter_of(features, labels, ignore_index, "covariance_eigenvalues", classes=1)
    sigma = np.linalg.svd(s.features - s.global_mean, compute_uv=False)
    rounding = max(s.features.shape) * np.finfo(np.float64).eps * np.abs(s.features).max()
    sigma[sigma <= rounding] = 0.0
    return np.asarray(sigma**2 / s.num_samples)


def participation_ratio(
    features: ArrayLike, labels: ArrayLike, *, ignore_index: int = -100
) -> float:
    """(sum lambda)^2 / sum lambda^2 of the eigenvalues of the covariance (Gao et al. 2017).

    0 where all features coincide.

    >>> round(participation_ratio([[3.0], [-3.0]], [0, 1]), 12)
    1.0
    """
    values = covariance_eigenvalues(features, labels, ignore_index=ignore_index)
    if not values.any():
        return 0.0
    values = values / values[0]  # whose squares might leave float64
    return float(values.sum() ** 2 / np.square(values).sum())


def alpha_req(
    features: ArrayLike,
    labels: ArrayLike,
    first: int = 11,
    last: int = 100,
    *,
    ignore_index: int = -100,
) -> float:
    """Decay lambda_j ~ j^-alpha of the covariance's eigenvalues (Agrawal et al. 2022).

    -slope of the line through log lambda_j against log j, weights 1/j, for the positive ones of
    j = first, ..., last; nan, with a warning, below three.

    >>> features = [[1.0, 0.0, 0.0], [0.0, 1 / 2, 0.0], [0.0, 0.0, 1 / 3]]
    >>> features += [[-value for value in row] for row in features]
    >>> round(alpha_req(features, [0, 0, 0, 1, 1, 1], first=1), 12)
    2.0
    """
    values = covariance_eigenvalues(features, labels, ignore_index=ignore_index)
    values = values[values > 0]
    numbers = np.arange(first, min(last, len(values)) + 1)
    if len(numbers) < 3:
        warn(f"alpha_req is nan: {len(values)} eigenvalues are above rounding")
        return float("nan")
    line = np.polyfit(np.log(numbers), np.log(values[numbers - 1]), 1, w=numbers**-0.5)
    return float(-line[0])
