"""The pooled within-class scatter S = sum_k sum_i (z_ki - mu_k)(z_ki - mu_k)', by matrix products.

Rows are shifted by pivots near their class means before they are multiplied, so nothing large
cancels, one bounded block of rows at a time, in the precision of the features; sums over blocks are
float64. Only panels on and above the diagonal are computed: `symmetrize` mirrors them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_ENTRIES = 2**22  # entries of one block of shifted rows: 16 MiB of float32
_PANEL = 512  # columns of one panel of S


def _add_gram(rows: Tensor, total: Tensor, scale: float = 1.0) -> None:
    """Upper panels of total (d, d) += scale * rows' rows, for rows (B, d)."""
    for begin in range(0, rows.shape[1], _PANEL):
        panel = rows[:, begin : begin + _PANEL].T @ rows[:, begin:]
        total[begin : begin + _PANEL, begin:].add_(panel, alpha=scale)


def add_shifted_gram(
    features: Tensor,
    labels: Tensor,
    ignore_index: int,
    means: Tensor,
    counts: Tensor,
    total: Tensor,
) -> None:
    """Add the pooled scatter of (features, labels) to the upper panels of `total` (d, d) float64.

    `means` (K, d) float64 and `counts` (K,) are those of this very batch. Pivots are the means
    rounded to the precision of the products; what the rounding moved is taken off exactly.
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    pivots = means.to(dtype)
    num_rows = max(1, _BLOCK_ENTRIES // features.shape[1])
    for begin in range(0, features.shape[0], num_rows):
        block_labels = labels[begin : begin + num_rows]
        ignored = block_labels == ignore_index
        shifted = pivots.index_select(0, block_labels.masked_fill(ignored, 0))
        torch.sub(features[begin : begin + num_rows], shifted, out=shifted)
        shifted.masked_fill_(ignored.unsqueeze(1), 0.0)
        _add_gram(shifted, total)
    add_merge_terms(pivots.double() - means, -counts.double(), total)


def add_merge_terms(deltas: Tensor, weights: Tensor, total: Tensor) -> None:
    """Upper panels of total (d, d) += sum_k weights[k] deltas[k] deltas[k]', weights of one sign.

    With deltas (K, d) the distances of two states' class means and weights n m / (n + m), this is
    the term by which merging them grows the pooled scatter.
    """
    rows = (weights != 0).nonzero().squeeze(1)
    if rows.numel() == 0:
        return
    scale = -1.0 if bool(weights[rows[0]] < 0) else 1.0
    roots = weights[rows].abs().sqrt_().unsqueeze(1)
    _add_gram(deltas.index_select(0, rows).mul_(roots), total, scale)


def symmetrize(total: Tensor) -> Tensor:
    """Return the full symmetric (d, d) matrix of the upper triangle of `total`."""
    return total.triu() + total.triu(1).T
