"""The one place where moments of disjoint samples are merged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from deeprep.base.indivisible import Step
from deeprep.state import pooled
from deeprep.state.moments import Moments

# Numbers of the means that are merged at a time: few enough to stay in the cache meanwhile.
_BLOCK_ENTRIES = 1 << 16


def merge_in_order(
    parts: Sequence[Moments], target: Moments, pooled_scatter: Tensor | None = None
) -> None:
    """Write into `target` what merging the parts, one after another, makes of the first.

    Parameters
    ----------
    parts
        Of the same classes, on the device of `target`, which may be one of them. The first is
        overwritten.
    pooled_scatter
        (d, d), where given: gets what the distances of the means add, see `merge_steps`.
    """
    num_classes, width = target.means.shape
    # Products want many rows at a time; and on CUDA torch may sum up a single row in another order.
    step = num_classes if pooled_scatter is not None else max(2, _BLOCK_ENTRIES // width)
    begin = 0
    while begin < num_classes:
        end = num_classes if num_classes - begin <= step + 1 else begin + step
        merged, *others = (part.rows(begin, end) for part in parts)
        for other in others:
            for change in merge_steps(merged, other, pooled_scatter):
                change()
        if parts[0] is not target:
            for mine, found in zip(target.rows(begin, end), merged, strict=True):
                mine.copy_(found)
        begin = end


def merge_steps(
    into: Moments, other: Moments, pooled_scatter: Tensor | None = None, at_most: int | None = None
) -> list[Step]:
    """Steps that merge `other` into `into`, exactly (Chan, Golub, LeVeque 1979).

    Both are on the same device. Where `pooled_scatter` (d, d) is given, it gets what the distance
    of the means adds. No more than `at_most` classes of `other` have samples, where that is known.
    """
    counts, means, sumsq = into
    share = other.counts.double() / (counts + other.counts).clamp_(min=1)
    weights = counts * share
    deltas = other.means - means
    steps = []
    if pooled_scatter is not None:
        steps += pooled.merge_term_steps(deltas, weights, pooled_scatter, at_most=at_most)
    growth = other.sumsq + weights * _row_sums(deltas.square())
    return [
        *steps,
        partial(Tensor.add_, sumsq, growth),
        partial(Tensor.add_, means, deltas.mul_(share.unsqueeze(1))),
        partial(Tensor.add_, counts, other.counts),
    ]


def _row_sums(rows: Tensor) -> Tensor:
    """Return the sums (n,) of rows (n, d); on the CPU each has the same bits whatever n is.

    Of a single row of more than 2^15 numbers, torch sums up a piece in each thread; of several
    rows, each is summed up by one thread.
    """
    if len(rows) == 1:
        return rows.expand(2, -1).sum(dim=1)[:1]
    return rows.sum(dim=1)
