"""What the losses share: the moments of a batch, and tiles over pairs of its classes.

Which classes have samples stays on the device. All that are in it take part in every operation, and
`present` takes those without samples out of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deeprep import ops

# Entries of a temporary array over pairs of classes: 32 MiB.
TILE_ENTRIES = 1 << 22

EPS = torch.finfo(torch.float64).eps


class Batch(NamedTuple):
    """Class moments of a batch; all float64 but `present`."""

    counts: Tensor  # (P,)
    means: Tensor  # (P, d)
    sumsq: Tensor  # (P,)
    present: Tensor  # (P,) bool: whether it has samples
    samples: Tensor  # (), N
    classes: Tensor  # (), how many have samples
    rounding: Tensor  # (), the length below which mu_k - mu_G is nothing but rounding

    def centered(self) -> Tensor:
        """Return mu_k - mu_G (P, d); exactly zero where only rounding is left, or no sample is."""
        centered = self.deviations()
        norms = torch.linalg.vector_norm(centered.detach(), dim=1)
        no_length = (norms <= self.rounding) | ~self.present
        return centered.masked_fill(no_length.unsqueeze(1), 0.0)

    def deviations(self) -> Tensor:
        """Return mu_k - mu_G (P, d) as subtracted."""
        return self.means - (self.counts / self.samples) @ self.means

    def defined(self, loss: Tensor) -> Tensor:
        """Return a loss, nan with its gradient where fewer than two classes have samples."""
        return loss * torch.where(self.classes >= 2, 1.0, torch.nan)


def batch_of(features: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Batch:
    """Read the moments of features (N, d); of K classes the P = min(N, K) that may have samples."""
    num_samples, means, sumsq = ops.class_moments(features, labels, num_classes, ignore_index)
    most = max(1, features.shape[0])
    if most < num_classes:
        num_samples, kept = num_samples.topk(most)
        means, sumsq = means.index_select(0, kept), sumsq.index_select(0, kept)
    present = num_samples > 0
    counts = num_samples.double()
    longest = torch.linalg.vector_norm(means.detach(), dim=1).amax()
    return Batch(
        counts, means, sumsq, present, counts.sum(), present.double().sum(), 16.0 * EPS * longest
    )


def pair_tiles(classes: int) -> Iterator[tuple[slice, slice]]:
    """Yield (rows, columns) of tiles that hold every pair k <= k' once; columns begin at rows."""
    start = 0
    while start < classes:
        stop = min(classes, start + max(1, TILE_ENTRIES // (classes - start)))
        yield slice(start, stop), slice(start, classes)
        start = stop


def pairs_of(present: Tensor, rows: slice, columns: slice) -> Tensor:
    """Whether each entry of a tile is a pair k < k' of classes with samples."""
    both = present[rows, None] & present[None, columns]
    return both.triu(diagonal=1)


def sum_over_tiles(term: Callable[..., Tensor], classes: int, *arguments: Any) -> Tensor:
    """Add up term(rows, columns, *arguments), () float64, over `pair_tiles`.

    Where there are several, each is computed anew in the backward, so that no more than one is
    alive.
    """
    tiles = list(pair_tiles(classes))
    if len(tiles) == 1:
        return term(*tiles[0], *arguments)
    terms = [
        checkpoint(term, *tile, *arguments, use_reentrant=False, preserve_rng_state=False)
        for tile in tiles
    ]
    return torch.stack(terms).sum()


def root(square: Tensor) -> Tensor:
    """Square root () whose gradient at 0 is 0."""
    is_zero = square == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, square).sqrt())
