"""The one place where moments of disjoint samples are merged."""

from __future__ import annotations

from torch import Tensor

from deeprep.state import pooled
from deeprep.state.moments import Moments


def merge_moments(
    into: Moments, other: Moments, products: Tensor | None = None, at_most: int | None = None
) -> None:
    """Merge `other` into `into`, on the same device, exactly (Chan, Golub, LeVeque 1979).

    Where `products` (d, d) is given, what the distance of the means adds to the pooled scatter is
    added there. No more than `at_most` classes of `other` have samples, where that is known.
    """
    counts, means, sumsq = into
    share = other.counts.double() / (counts + other.counts).clamp_(min=1)
    weights = counts * share
    deltas = other.means - means
    if products is not None:
        pooled.add_merge_terms(deltas, weights, products, at_most=at_most)
    sumsq += other.sumsq + weights * deltas.square().sum(dim=1)
    means += deltas.mul_(share.unsqueeze(1))
    counts += other.counts
