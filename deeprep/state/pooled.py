"""The pooled within-class scatter S = sum_k sum_i (z_ki - mu_k)(z_ki - mu_k)', by matrix products.

Rows are shifted by pivots near their class means before they are multiplied, so nothing large
cancels, one bounded block of rows at a time, in the precision of the features; sums over blocks are
float64. S is symmetric, and on the CPU only its upper triangle is computed (SYRK): what lies below
the diagonal there is not to be relied on. On CUDA nothing waits for the device: what the CPU
decides by looking at a value is there a fixed amount of work whose superfluous part adds zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.linalg import blas
from torch import Tensor

from deeprep import ops

if TYPE_CHECKING:
    from deeprep.state.moments import Moments

# Rows of one product: enough that adding its (d, d) result to S in float64 costs little next to it,
# few enough that a block of narrow rows stays in the cache and that float32 sums stay accurate; and
# the most a block may hold.
_BLOCK_ROWS = 4096
_BLOCK_ENTRIES = 2**24  # 64 MiB of float32


def add_shifted_gram(
    features: Tensor,
    labels: Tensor,
    batch: Moments,
    ignore_index: int,
    pooled_scatter: Tensor,
    bad_label: Tensor | None,
) -> None:
    """Add the pooled scatter of (features, labels) to `pooled_scatter` (d, d) float64.

    `batch` are the moments of these very features. Pivots are its means rounded to the precision of
    the products; what the rounding moved is taken off again where it shows (means beyond some 500
    standard deviations). Nothing is added where `bad_label` holds one.
    """
    if features.shape[0] == 0:
        return
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    pivots = batch.means.to(dtype)
    if bad_label is not None:
        # Such a batch may hold labels that are no row of the pivots.
        labels = labels.long().masked_fill(ops.has_bad_label(bad_label), ignore_index)
        _add_blocks_on_device(features, labels, pivots, ignore_index, pooled_scatter)
    else:
        _add_blocks_on_host(features, labels, pivots, ignore_index, pooled_scatter)
    if dtype == torch.float64:
        return
    moved = pivots - batch.means
    if bad_label is not None:
        rows = _weighted_rows(moved, batch.counts.double(), features.shape[0]).float()
        with _full_float32():
            pooled_scatter.sub_(torch.mm(rows.T, rows, out=rows.new_empty(pooled_scatter.shape)))
    elif bool((batch.counts * moved.square().sum(dim=1)).sum() > 1e-9 * batch.sumsq.sum()):
        add_merge_terms(moved, batch.counts.double(), pooled_scatter, sign=-1)


def _add_blocks_on_host(
    features: Tensor, labels: Tensor, pivots: Tensor, ignore_index: int, pooled_scatter: Tensor
) -> None:
    num_rows = min(_rows_of_product(features.shape[1]), features.shape[0])
    shifted = pivots.new_empty((num_rows, features.shape[1]))
    product = (
        np.zeros(pooled_scatter.shape, shifted.numpy().dtype)
        if pivots.dtype != pooled_scatter.dtype
        else None
    )
    for rows, block_labels in _blocks(features, labels, num_rows):
        block = shifted[: rows.shape[0]]
        ops.shift_rows(rows, block_labels, pivots, block, ignore_index)
        if product is None:
            _multiply(block.numpy(), pooled_scatter.numpy(), keep=True)
        else:
            _multiply(block.numpy(), product, keep=False)
            # By NumPy: torch's threads, once woken, would spin beside those of the BLAS and slow
            # it by 20 to 40 %.
            with np.errstate(all="ignore"):  # the metrics report what overflows or is not finite
                np.add(pooled_scatter.numpy(), product, out=pooled_scatter.numpy())


def _multiply(rows: Any, into: Any, *, keep: bool, sign: int = 1) -> None:
    """Upper triangle of into (d, d) = keep * into + sign * rows' rows, for rows (B, d)."""
    # BLAS counts by columns: for it rows' is a matrix as it lies, and `into` its transpose.
    syrk = blas.dsyrk if rows.dtype == np.float64 else blas.ssyrk
    syrk(sign, rows.T, beta=float(keep), c=into.T, lower=1, overwrite_c=1)


def _add_blocks_on_device(
    features: Tensor, labels: Tensor, pivots: Tensor, ignore_index: int, pooled_scatter: Tensor
) -> None:
    """Shift and multiply as many rows at a time as a block holds, as a batch of equal products.

    Narrow features would otherwise be a thousand launches, each too small to fill the device.
    """
    num_rows, width = features.shape
    product_rows = min(_rows_of_product(width), num_rows)
    products = max(1, min(_BLOCK_ENTRIES // (product_rows * width), -(-num_rows // product_rows)))
    shifted = pivots.new_empty((products * product_rows, width))
    grams = pivots.new_empty((products, width, width))
    for rows, block_labels in _blocks(features, labels, len(shifted)):
        ops.shift_rows(rows, block_labels, pivots, shifted[: len(rows)], ignore_index)
        used = -(-len(rows) // product_rows)
        padded = shifted[: used * product_rows]
        padded[len(rows) :].zero_()
        factors = padded.view(used, product_rows, width)
        with _full_float32():
            # torch.autocast leaves calls with `out` alone.
            torch.bmm(factors.mT, factors, out=grams[:used])
        # A single product needs no float64 copy of itself.
        pooled_scatter += grams[0] if used == 1 else grams[:used].sum(dim=0, dtype=torch.float64)


def _rows_of_product(width: int) -> int:
    return min(max(1, _BLOCK_ENTRIES // width), _BLOCK_ROWS)


def _blocks(features: Tensor, labels: Tensor, num_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    for begin in range(0, features.shape[0], num_rows):
        yield features[begin : begin + num_rows], labels[begin : begin + num_rows]


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Multiply float32 matrices on CUDA in float32, also where the user chose TF32 for the model.

    TF32 keeps 11 bits of each factor: S would be good to three digits.
    """
    settings = torch.backends.cuda.matmul
    # torch < 2.9 has only the second; newer ones refuse to mix the two.
    current = hasattr(settings, "fp32_precision")
    name, full = ("fp32_precision", "ieee") if current else ("allow_tf32", False)
    chosen = getattr(settings, name)
    if chosen not in ("tf32", True):
        yield
        return
    setattr(settings, name, full)
    try:
        yield
    finally:
        setattr(settings, name, chosen)


def add_merge_terms(
    deltas: Tensor,
    weights: Tensor,
    pooled_scatter: Tensor,
    *,
    sign: int = 1,
    at_most: int | None = None,
) -> None:
    """pooled_scatter (d, d) += sign * sum_k weights[k] deltas[k] deltas[k]', for weights >= 0.

    With deltas (K, d) the distances of two states' class means and weights n m / (n + m), this is
    the term by which merging them grows the pooled scatter. No more than `at_most` weights are not
    zero, where that is known.
    """
    if not ops.on_host(pooled_scatter):
        rows = _weighted_rows(deltas, weights, at_most)
        pooled_scatter.addmm_(rows.T, rows, alpha=sign)
        return
    kept = ((weights != 0) & (deltas != 0).any(dim=1)).nonzero().squeeze(1)
    if kept.numel() == 0:
        return
    rows = deltas.index_select(0, kept).mul_(weights[kept].sqrt_().unsqueeze(1))
    _multiply(rows.numpy(), pooled_scatter.numpy(), keep=True, sign=sign)


def _weighted_rows(deltas: Tensor, weights: Tensor, at_most: int | None) -> Tensor:
    """Rows sqrt(weights[k]) deltas[k] of `at_most` classes, all of weight > 0 among them.

    Which classes these are stays on the device: only the number of rows must be known here.
    """
    if at_most is not None and at_most < len(weights):
        weights, kept = weights.topk(at_most, sorted=False)
        deltas = deltas.index_select(0, kept)
    return deltas * weights.sqrt().unsqueeze(1)
