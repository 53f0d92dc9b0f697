"""How well a simple classifier reads the classes off the features."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deeprep.reference.scatter import Array, Integers, ratio, scatter_of


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
    s = scatter_of(features, labels, ignore_index, "probe", classes=1, num_classes=num_classes)
    targets = np.eye(len(s.counts))[s.labels]
    target_mean = s.counts / s.num_samples
    # The penalty is d further rows sqrt(ridge N) I, wanted 0, of an ordinary least-squares problem.
    width = s.features.shape[1]
    rows = np.vstack([s.features - s.global_mean, np.sqrt(ridge * s.num_samples) * np.eye(width)])
    wanted = np.vstack([targets - target_mean, np.zeros((width, len(s.counts)))])
    # Below 1e-10 of the largest, singular values are rounding errors of the centring.
    weight = np.linalg.lstsq(rows, wanted, rcond=1e-10)[0].T
    return np.asarray(weight), np.asarray(target_mean - weight @ s.global_mean)


def choose_ridge(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    *,
    ignore_index: int = -100,
) -> float:
    """Ridge of :func:`probe` with the least generalised cross-validation error.

    N RSS / (N - 1 - tr H)^2, RSS the squared residuals of the ridge fit to the centred one-hot
    targets, H = X (X'X + ridge N I)^-1 X' of the centred features X. Candidates are ridge N =
    10^(-6), 10^(-5.75), ..., 10^2 times the largest eigenvalue of X'X, and 0 where rank X < N - 1.
    Golub, Heath, Wahba 1979.

    >>> round(choose_ridge([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1]), 3)
    0.889
    """
    s = scatter_of(
        features, labels, ignore_index, "choose_ridge", classes=1, num_classes=num_classes
    )
    left, values, _ = np.linalg.svd(s.features - s.global_mean, full_matrices=False)
    used = values > 1e-10 * values[0]
    if not used.any():
        return 0.0
    left, squares = left[:, used], np.square(values[used])
    targets = np.eye(len(s.counts))[s.labels]
    targets -= targets.mean(axis=0)
    spare = s.num_samples - 1 > len(squares)
    penalties = squares[0] * 10.0 ** np.arange(-6, 2.01, 0.25)
    if spare:
        penalties = np.concatenate([[0.0], penalties])
    scores = []
    for penalty in penalties:
        hat = (left * (squares / (squares + penalty))) @ left.T
        residuals = np.square(targets - hat @ targets).sum()
        scores.append(s.num_samples * residuals / (s.num_samples - 1 - np.trace(hat)) ** 2)
    return float(penalties[int(np.argmin(scores))]) / s.num_samples


def nearest_class(
    features: ArrayLike, labels: ArrayLike, queries: ArrayLike, *, ignore_index: int = -100
) -> Integers:
    """Class argmin_k |z - mu_k| (M,) of each row z of ``queries`` (M, d), by the features' means.

    >>> nearest_class([[1.0], [-1.0]], [0, 1], [[0.2], [-5.0]]).tolist()
    [0, 1]
    """
    s = scatter_of(features, labels, ignore_index, "nearest_class", classes=1)
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
    """Share of ``queries`` (default: the features) whose nearest class mean is their own.

    Galanti, György, Hutter 2022. Queries labelled ``ignore_index`` do not count.

    >>> ncc_accuracy([[1.0], [-1.0], [-3.0], [5.0]], [0, 1, 1, 1])
    0.75
    """
    predicted = nearest_class(
        features, labels, features if queries is None else queries, ignore_index=ignore_index
    )
    wanted = np.asarray(labels if query_labels is None else query_labels)
    counted = wanted != ignore_index
    return float(np.mean(predicted[counted] == wanted[counted]))


def ncc_mismatch(
    features: ArrayLike,
    labels: ArrayLike,
    decisions: ArrayLike,
    queries: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
) -> float:
    """Share of ``queries`` (default: the features) whose nearest mean is not the model's decision.

    NC4 of Papyan, Han, Donoho 2020. ``decisions`` (M,) are the model's own; queries whose decision
    is ``ignore_index`` do not count.

    >>> ncc_mismatch([[1.0], [-1.0]], [0, 1], [0, 1, 1, 1], [[2.0], [0.1], [-3.0], [-1.0]])
    0.25
    """
    predicted = nearest_class(
        features, labels, features if queries is None else queries, ignore_index=ignore_index
    )
    decided = np.asarray(decisions)
    counted = decided != ignore_index
    return float(np.mean(predicted[counted] != decided[counted]))


def self_duality(
    features: ArrayLike, labels: ArrayLike, weight: ArrayLike, *, ignore_index: int = -100
) -> float:
    """| W/|W|_F - M/|M|_F |_F (NC3, Papyan, Han, Donoho 2020), M the centred class means.

    ``weight`` W (K, d) of the classifier; its rows of classes without samples are left out.

    >>> self_duality([[1.0, 0.0], [-1.0, 0.0]], [0, 1], [[2.0, 0.0], [-2.0, 0.0]])
    0.0
    """
    s = scatter_of(features, labels, ignore_index, "self_duality", classes=2)
    rows = np.asarray(weight, dtype=np.float64)[s.present]
    norms = np.linalg.norm(rows), np.linalg.norm(s.centered_means)
    if 0.0 in norms:
        return ratio(0.0, 0.0, "self_duality")
    return float(np.linalg.norm(rows / norms[0] - s.centered_means / norms[1]))
