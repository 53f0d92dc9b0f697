"""The pooled within-class scatter S = sum_k sum_i (z_ki - mu_k)(z_ki - mu_k)', by matrix products.

Rows are shifted by pivots near their class means before they are multiplied, so nothing large
cancels, one bounded block of rows at a time, in the precision of the features; sums over blocks are
float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deeprep import ops

if TYPE_CHECKING:
    from deeprep.scatter import ClassScatter

# Rows of one block: enough that adding its (d, d) product to S in float64 costs little next to the
# product, few enough that a block of narrow rows stays in the cache; and the most it may hold.
_BLOCK_ROWS = 4096
_BLOCK_ENTRIES = 2**24  # 64 MiB of float32


def _add_gram(rows: Tensor, total: Tensor, sign: int = 1) -> None:
    """Total (d, d) += sign * rows' rows, for rows (B, d)."""
    if not rows.is_cpu:
        total.add_(rows.T @ rows, alpha=sign)
        return
    # NumPy sees that both factors are one matrix and computes half of the product (SYRK). It adds,
    # too: torch's threads, once woken, would spin beside those of NumPy's BLAS and slow it by 20 to
    # 40 %.
    array, into = rows.numpy(), total.numpy()
    with np.errstate(all="ignore"):  # the metrics report what overflows or is not finite
        gram = array.T @ array
        (np.add if sign > 0 else np.subtract)(into, gram, out=into)


def add_shifted_gram(
    features: Tensor, labels: Tensor, moments: ClassScatter, total: Tensor
) -> None:
    """Add the pooled scatter of (features, labels) to `total` (d, d) float64.

    `moments` are those of this very batch. Pivots are its means rounded to the precision of the
    products; what the rounding moved is taken off again where it shows (means beyond some 500
    standard deviations).
    """
    if features.shape[0] == 0:
        return
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    pivots = moments.means.to(dtype)
    num_rows = min(max(1, _BLOCK_ENTRIES // features.shape[1]), _BLOCK_ROWS, features.shape[0])
    shifted = torch.empty((num_rows, features.shape[1]), dtype=dtype)
    for begin in range(0, features.shape[0], num_rows):
        rows = features[begin : begin + num_rows]
        block = shifted[: rows.shape[0]]
        block_labels = labels[begin : begin + num_rows]
        ops.shift_rows(rows, block_labels, pivots, block, moments.ignore_index)
        _add_gram(block, total)
    moved = pivots.double() - moments.means
    excess = (moments.counts * moved.square().sum(dim=1)).sum()
    if bool(excess > 1e-9 * moments.sumsq.sum()):
        add_merge_terms(moved, -moments.counts.double(), total)


def add_merge_terms(deltas: Tensor, weights: Tensor, total: Tensor) -> None:
    """Total (d, d) += sum_k weights[k] deltas[k] deltas[k]', all weights of one sign.

    With deltas (K, d) the distances of two states' class means and weights n m / (n + m), this is
    the term by which merging them grows the pooled scatter.
    """
    rows = ((weights != 0) & (deltas != 0).any(dim=1)).nonzero().squeeze(1)
    if rows.numel() == 0:
        return
    roots = weights[rows].abs().sqrt_().unsqueeze(1)
    sign = -1 if bool(weights[rows[0]] < 0) else 1
    _add_gram(deltas.index_select(0, rows).mul_(roots), total, sign)
