"""The pooled within-class scatter S = sum_k sum_i (z_ki - mu_k)(z_ki - mu_k)', by matrix products.

Rows are shifted by pivots near their class means before they are multiplied, so nothing large
cancels, one bounded block of rows at a time, in the precision of the features; sums over blocks are
float64. Rows of float32 whose squares would not fit in float32 are scaled by a power of two, which
changes no digit of theirs, and their products back, in float64. S is symmetric, and on the CPU only
its upper triangle is computed (SYRK): what lies below the diagonal there is not to be relied on. On
CUDA nothing waits for the device: what the CPU decides by looking at a value is there a fixed
amount of work whose superfluous part adds zero.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import blas
from torch import Tensor

from deeprep import ops
from deeprep.base.indivisible import Step

if TYPE_CHECKING:
    from deeprep.state.moments import Moments

# Rows of one product: enough that adding its (d, d) result to S in float64 costs little next to it,
# few enough that a block of narrow rows stays in the cache and that float32 sums stay accurate; and
# the most a block may hold.
_BLOCK_ROWS = 4096
_BLOCK_ENTRIES = 2**24  # 64 MiB of float32

# Rows are scaled for their products in float32 where the trace of S is below 2^-50, to a trace of
# 2^100, and where it is above 2^126, to no less than that: no sum of products is larger than the
# trace, and 2^127 is the largest power of two in float32. Scaling down further than needed would
# lose what is small beside the trace; squares of like size are some 2^-40 of it.
_LEAST_POWER, _MOST_POWER, _RAISED_POWER = -50, 126, 100
_LARGEST_EXPONENT = 126  # of a scale, up or down


def product_steps(
    features: Tensor,
    labels: Tensor,
    batch: Moments,
    ignore_index: int,
    pooled_scatter: Tensor,
    bad_label: Tensor | None,
) -> list[Step]:
    """Multiply, and return the steps that add the result to `pooled_scatter` (d, d) float64.

    That is the pooled scatter of (features, labels), of which `batch` are the moments. Pivots are
    its means rounded to the precision of the products; what the rounding moved is taken off again
    where it shows (means beyond some 500 standard deviations). Nothing is added where `bad_label`
    holds one.
    """
    if features.shape[0] == 0:
        return []
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    pivots = batch.means.to(dtype)
    trace = batch.sumsq.sum()
    scales = None
    if bad_label is None:
        exponent = 0 if dtype == torch.float64 else _exponent(float(trace))
        steps = _steps_on_host(features, labels, pivots, ignore_index, pooled_scatter, exponent)
    else:
        # Such a batch may hold labels that are no row of the pivots.
        labels = labels.long().masked_fill(ops.has_bad_label(bad_label), ignore_index)
        if dtype == torch.float32:
            scales = _scales_on_device(trace)
        steps = _steps_on_device(features, labels, pivots, ignore_index, pooled_scatter, scales)
    if dtype == torch.float64:
        return steps
    moved = pivots - batch.means
    if scales is not None:
        rows = _weighted_rows(moved, batch.counts.double(), features.shape[0])
        rows = rows.mul_(scales.there).float()
        with _full_float32():
            excess = torch.mm(rows.T, rows, out=rows.new_empty(pooled_scatter.shape))
        steps.append(partial(Tensor.addcmul_, pooled_scatter, excess, scales.back, value=-1))
    elif bool((batch.counts * moved.square().sum(dim=1)).sum() > 1e-9 * trace):
        steps += merge_term_steps(moved, batch.counts.double(), pooled_scatter, sign=-1)
    return steps


def _exponent(trace: float) -> int:
    """Return that of the power of two by which rows are scaled; 0 also for inf and NaN."""
    power = math.frexp(trace)[1] if math.isfinite(trace) else 0
    if _LEAST_POWER <= power <= _MOST_POWER:
        return 0
    aim = _MOST_POWER if power > _MOST_POWER else _RAISED_POWER
    return max(-_LARGEST_EXPONENT, min((aim - power) // 2, _LARGEST_EXPONENT))


class _Scales(NamedTuple):
    """2^e, by which rows are scaled, and 2^-2e, their products; () float64 on the device."""

    there: Tensor
    back: Tensor


def _scales_on_device(trace: Tensor) -> _Scales:
    """Return those that a trace, () float64, asks for by `_exponent`, without waiting for it."""
    power = torch.frexp(trace).exponent.long()
    aim = torch.where(power > _MOST_POWER, _MOST_POWER, _RAISED_POWER)
    exponent = (aim - power).div(2, rounding_mode="floor")
    exponent = exponent.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    fits = ((power >= _LEAST_POWER) & (power <= _MOST_POWER)) | ~trace.isfinite()
    place = exponent.masked_fill(fits, 0).add(_LARGEST_EXPONENT).view(1)
    return _Scales(*scales_on(trace.device).index_select(1, place).unbind())


@functools.cache
def scales_on(device: torch.device) -> Tensor:
    """Return both scales of every exponent, (2, n), on a device: exactly powers of two.

    Called for a device before a CUDA graph is captured, which can copy nothing to it.
    """
    exponents = range(-_LARGEST_EXPONENT, _LARGEST_EXPONENT + 1)
    scales = [[2.0**e for e in exponents], [2.0 ** (-2 * e) for e in exponents]]
    # Wherever torch.set_default_device would have them made.
    return torch.tensor(scales, dtype=torch.float64, device="cpu").to(device)


def _steps_on_host(
    features: Tensor,
    labels: Tensor,
    pivots: Tensor,
    ignore_index: int,
    pooled_scatter: Tensor,
    exponent: int,
) -> list[Step]:
    """Where there are several blocks, S and the products are added up in memory aside."""
    num_rows = min(_rows_of_product(features.shape[1]), features.shape[0])
    shifted = pivots.new_empty((num_rows, features.shape[1]))
    several = num_rows < features.shape[0]
    scatter = pooled_scatter.numpy()
    scale = torch.tensor(2.0**exponent, dtype=torch.float64, device="cpu") if exponent else None
    blocks = _shifted_blocks(features, labels, pivots, ignore_index, shifted, scale)
    if pivots.dtype == torch.float64:
        if not several:
            return [_product(block.numpy(), scatter, keep=True) for block in blocks]
        summed = scatter.copy()
        for block in blocks:
            _product(block.numpy(), summed, keep=True)()
        return [partial(Tensor.copy_, pooled_scatter, torch.from_numpy(summed))]
    product = np.zeros(scatter.shape, np.float32)
    summed, aside = scatter, np.empty_like(scatter) if several else scatter
    for number, block in enumerate(blocks):
        if number > 0:
            # By NumPy: torch's threads, once woken, would spin beside those of the BLAS and slow
            # it by 20 to 40 %.
            with np.errstate(all="ignore"):  # the metrics report what overflows or is not finite
                summed = np.add(summed, _scaled_back(product, exponent), out=aside)
        _product(block.numpy(), product, keep=False)()
    return [partial(np.add, summed, _scaled_back(product, exponent), out=scatter)]


def _scaled_back(product: Any, exponent: int) -> Any:
    return np.multiply(product, 2.0 ** (-2 * exponent), dtype=np.float64) if exponent else product


def _shifted_blocks(
    features: Tensor,
    labels: Tensor,
    pivots: Tensor,
    ignore_index: int,
    shifted: Tensor,
    scale: Tensor | None,
) -> Iterator[Tensor]:
    """Yield, in the memory of `shifted` (B, d), what `ops.shift_rows` gives, B rows at a time."""
    for begin in range(0, features.shape[0], len(shifted)):
        rows = features[begin : begin + len(shifted)]
        block = shifted[: len(rows)]
        ops.shift_rows(rows, labels[begin : begin + len(rows)], pivots, block, ignore_index, scale)
        yield block


def _product(rows: Any, into: Any, *, keep: bool, sign: int = 1) -> Step:
    """Upper triangle of into (d, d) = keep * into + sign * rows' rows, for rows (B, d)."""
    # BLAS counts by columns: for it rows' is a matrix as it lies, and `into` its transpose.
    syrk = blas.dsyrk if rows.dtype == np.float64 else blas.ssyrk
    return partial(syrk, sign, rows.T, beta=float(keep), c=into.T, lower=1, overwrite_c=1)


def _steps_on_device(
    features: Tensor,
    labels: Tensor,
    pivots: Tensor,
    ignore_index: int,
    pooled_scatter: Tensor,
    scales: _Scales | None,
) -> list[Step]:
    """Shift and multiply as many rows at a time as a block holds, as a batch of equal products.

    Narrow features would otherwise be a thousand launches, each too small to fill the device.
    """
    num_rows, width = features.shape
    product_rows = min(_rows_of_product(width), num_rows)
    products = max(1, min(_BLOCK_ENTRIES // (product_rows * width), -(-num_rows // product_rows)))
    shifted = pivots.new_empty((products * product_rows, width))
    grams = pivots.new_empty((products, width, width))
    summed, step = pooled_scatter, None
    there = None if scales is None else scales.there
    for block in _shifted_blocks(features, labels, pivots, ignore_index, shifted, there):
        if step is not None:
            summed = step(out=torch.empty_like(summed) if summed is pooled_scatter else summed)
        used = -(-len(block) // product_rows)
        padded = shifted[: used * product_rows]
        padded[len(block) :].zero_()
        factors = padded.view(used, product_rows, width)
        with _full_float32():
            # torch.autocast leaves calls with `out` alone.
            torch.bmm(factors.mT, factors, out=grams[:used])
        # A single product needs no float64 copy of itself.
        product = grams[0] if used == 1 else grams[:used].sum(dim=0, dtype=torch.float64)
        if scales is None:
            step = partial(torch.add, summed, product)
        else:
            step = partial(torch.addcmul, summed, product, scales.back)
    return [] if step is None else [partial(step, out=pooled_scatter)]


def _rows_of_product(width: int) -> int:
    return min(max(1, _BLOCK_ENTRIES // width), _BLOCK_ROWS)


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
    try:
        setattr(settings, name, full)
        yield
    finally:
        setattr(settings, name, chosen)


def merge_term_steps(
    deltas: Tensor,
    weights: Tensor,
    pooled_scatter: Tensor,
    *,
    sign: int = 1,
    at_most: int | None = None,
) -> list[Step]:
    """Steps that add sign * sum_k weights[k] deltas[k] deltas[k]', weights >= 0, to (d, d).

    With deltas (K, d) the distances of two states' class means and weights n m / (n + m), this is
    the term by which merging them grows the pooled scatter. No more than `at_most` weights are not
    zero, where that is known.
    """
    if not ops.on_host(pooled_scatter):
        rows = _weighted_rows(deltas, weights, at_most)
        return [partial(Tensor.addmm_, pooled_scatter, rows.T, rows, alpha=sign)]
    kept = ((weights != 0) & (deltas != 0).any(dim=1)).nonzero().squeeze(1)
    if kept.numel() == 0:
        return []
    rows = deltas.index_select(0, kept).mul_(weights[kept].sqrt_().unsqueeze(1))
    return [_product(rows.numpy(), pooled_scatter.numpy(), keep=True, sign=sign)]


def _weighted_rows(deltas: Tensor, weights: Tensor, at_most: int | None) -> Tensor:
    """Rows sqrt(weights[k]) deltas[k] of `at_most` classes, all of weight > 0 among them.

    Which classes these are stays on the device: only the number of rows must be known here.
    """
    if at_most is not None and at_most < len(weights):
        weights, kept = weights.topk(at_most, sorted=False)
        deltas = deltas.index_select(0, kept)
    return deltas * weights.sqrt().unsqueeze(1)
