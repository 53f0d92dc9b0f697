"""The one place where moments of disjoint samples are merged."""

from __future__ import annotations

from torch import Tensor

from deeprep.state import pooled
from deeprep.state.moments import Moments


def merge_moments(
    into: Moments, other: Moments, pooled_scatter: Tensor | None = None, at_most: int | None = None
) -> None:
    """Merge `other` into `into`, on the same device, exactly (Chan, Golub, LeVeque 1979).

    Where `pooled_scatter` (d, d) is given, it gets what the distance of the means adds.
    No more than `at_most` classes of `other` have samples, where that is known.
    """
    counts, means, sumsq = into
    share = other.counts.double() / (counts + other.counts).clamp_(min=1)
    weights = counts * share
    deltas = other.means - means
    if pooled_scatter is not None:
        pooled.add_merge_terms(deltas, weights, pooled_scatter, at_most=at_most)
    sumsq += other.sumsq + weights * deltas.square().sum(dim=1)
    means += deltas.mul_(share.unsqueeze(1))
    counts += other.counts
