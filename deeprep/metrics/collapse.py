"""How small the spread within classes is, next to the spread between them."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprep.metrics import _means
from deeprep.scatter import ClassScatter, Weighting


def compression(s: ClassScatter, weighting: Weighting = "uniform") -> float:
    """Within-class compression C = Tr Sigma_W / Tr Sigma_B; smaller is more compressed.

    Sigma_W = (1/N) sum_k sum_i (z_ki - mu_k)(z_ki - mu_k)' and
    Sigma_B = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)' (``weighting="uniform"``, the paper's), or
    with n_k/N in place of 1/K (``"prior"``). Balanced classes: C = (N-K) / ((K-1) CH), CH the
    Calinski-Harabasz score.

    Coinciding class means give inf, or nan where the classes have no spread either, with a
    warning.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.
    ValueError
        For another weighting.

    Notes
    -----
    Wang et al., Understanding Deep Representation Learning via Layerwise Feature
    Compression and Discrimination, 2025.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]))
    >>> deeprep.compression(s)
    0.25
    """
    _means.present_classes(s, "compression")
    between = s.trace_between(weighting)
    if not _means.is_finite(s, "compression"):
        return float("nan")
    if between <= _means.rounding_of_means(s) ** 2:
        between = 0.0
    return _means.ratio(s.trace_within, between, "compression")


def nc1(s: ClassScatter) -> float:
    """Variability collapse NC1 = Tr(Sigma_W Sigma_B^+) / K, K the number of classes with samples.

    Needs a state with ``full=True``. The pseudo-inverse comes from the singular values s_j and
    right singular vectors v_j of the (K, d) centred means: NC1 = sum_j v_j' Sigma_W v_j / s_j^2
    over s_j > s_max max(K, d) eps, and above the rounding of the means. Inverting the (d, d)
    Sigma_B instead would square the condition number of the means.

    inf or nan with a warning where all class means coincide.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.
    ValueError
        Without ``full=True``.

    Notes
    -----
    Papyan, Han, Donoho, Prevalence of neural collapse, 2020 (NC1).

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]), full=True)
    >>> round(deeprep.metrics.nc1(s), 12)
    0.125
    """
    present = _means.present_classes(s, "nc1")
    within = s.within
    if not _means.is_finite(s, "nc1", within):
        return float("nan")
    centered = _means.centered_means(s, present)
    rounding = _means.rounding_of_means(s) * len(centered) ** 0.5
    relative = max(centered.shape) * _means.EPS
    if centered.shape[0] > centered.shape[1]:  # R has the same V and s and is only (d, d)
        centered = torch.linalg.qr(centered, mode="r").R
    _, singular, vectors = torch.linalg.svd(centered, full_matrices=False)
    # Centring leaves one direction of mere rounding: the combination of the means that is mu_G.
    kept = singular > max(rounding, relative * float(singular[0]))
    if not bool(kept.any()):
        return _means.ratio(s.trace_within, 0.0, "nc1")
    directions = vectors[kept]
    spread = ((directions @ within) * directions).sum(dim=1).clamp_(min=0.0)
    return float((spread / singular[kept].square()).sum())


def cdnv(s: ClassScatter) -> float:
    """Class-distance normalised variance, the mean of (v_k + v_k') / (2 |mu_k - mu_k'|^2).

    Over pairs k != k', with v_k = sumsq_k / n_k the variance of class k. Coinciding means make it
    inf (nan if both classes have no spread either).

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.

    Notes
    -----
    Galanti, György, Hutter, On the role of neural collapse in transfer learning, 2022.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]))
    >>> deeprep.metrics.cdnv(s)
    0.0625
    """
    present = _means.present_classes(s, "cdnv")
    if not _means.is_finite(s, "cdnv"):
        return float("nan")
    centered = _means.centered_means(s, present)
    norms = torch.linalg.vector_norm(centered, dim=1).square_()
    variances = (s.sumsq / s.counts)[present]
    total = torch.zeros_like(norms[0])
    for start, tile in _means.gram_tiles(centered):
        rows = slice(start, start + len(tile))
        distances = _squared_distances(centered[start:], norms[rows], norms[start:], tile)
        spreads = variances[rows, None] + variances[None, start:]
        # An infinite distance takes the pairs met before out of the sum.
        total += (spreads / _means.fill_repeats(distances, torch.inf)).sum()
    return float(total) / (len(present) * (len(present) - 1))


def _squared_distances(rows: Tensor, left: Tensor, right: Tensor, gram: Tensor) -> Tensor:
    """Turn ``gram`` (B, P) of the first B ``rows`` (P, d) with all of them into |row_i - row_j|^2.

    |a|^2 + |b|^2 - 2<a, b> is one matrix product but loses its digits for near pairs; these, few
    once the means are centred, are computed again from their differences.
    """
    scale = left[:, None] + right[None, :]
    distances = gram.mul_(-2.0).add_(scale)
    near_rows, near_columns = torch.nonzero(distances <= 1e-5 * scale, as_tuple=True)
    step = max(1, _means.TILE_ENTRIES // rows.shape[1])
    for begin in range(0, len(near_rows), step):
        i, j = near_rows[begin : begin + step], near_columns[begin : begin + step]
        distances[i, j] = (rows[i] - rows[j]).square_().sum(dim=1)
    return distances
