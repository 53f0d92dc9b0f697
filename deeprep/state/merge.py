"""The one place where moments of disjoint samples are merged."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from deeprep.base.indivisible import Step, indivisibly
from deeprep.state import pooled
from deeprep.state.moments import Moments


def merge_moments(into: Moments, other: Moments, pooled_scatter: Tensor | None = None) -> None:
    """Merge `other` into `into`, see `merge_steps`."""
    indivisibly(*merge_steps(into, other, pooled_scatter))


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
    growth = other.sumsq + weights * deltas.square().sum(dim=1)
    return [
        *steps,
        partial(Tensor.add_, sumsq, growth),
        partial(Tensor.add_, means, deltas.mul_(share.unsqueeze(1))),
        partial(Tensor.add_, counts, other.counts),
    ]
