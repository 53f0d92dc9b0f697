"""Cosines between class means."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprep.losses.batch import batch_of, pair_tiles, pairs_of


def discrimination(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    centered: bool = False,
    ignore_index: int = -100,
) -> Tensor:
    """Discrimination D = 1 - max_{k != k'} cos(mu_k, mu_k') of a batch; see `discrimination`.

    To train for large D, subtract it from the loss. The gradient is that of the closest pair.

    Parameters
    ----------
    features
        (N, d) float64/32/16 or bfloat16.
    labels
        (N,) int32/int64 in [0, K), or `ignore_index`.
    num_classes
        K.
    centered
        Take mu_k - mu_G in place of mu_k.
    ignore_index
        The label of rows to skip.

    Returns
    -------
    () float64; nan where a mean is zero and has no direction.

    Raises
    ------
    ValueError, TypeError
        As `deeprep.class_moments`.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    >>> loss = deeprep.losses.discrimination(features, torch.tensor([0, 1, 2]), 3)
    >>> round(loss.item(), 12)
    0.2
    """
    batch = batch_of(features, labels, num_classes, ignore_index)
    means = batch.centered() if centered else batch.means
    pair = means.index_select(0, _closest_pair(means.detach(), batch.present))
    first, second = pair / torch.linalg.vector_norm(pair, dim=1, keepdim=True)
    return batch.defined(1.0 - first @ second)


@torch.no_grad()
def _closest_pair(means: Tensor, present: Tensor) -> Tensor:
    """Two indices k < k' (2,) of the largest cosine, or of one that is nan."""
    norms = torch.linalg.vector_norm(means, dim=1).masked_fill(~present, 1.0)
    unit = means / norms.unsqueeze(1)
    best = means.new_full((), -torch.inf)
    pair = present.new_zeros(2, dtype=torch.int64)
    for rows, columns in pair_tiles(len(means)):
        cosines = unit[rows] @ unit[columns].T
        cosines = cosines.masked_fill(~pairs_of(present, rows, columns), -torch.inf)
        value, place = cosines.flatten().max(dim=0)
        width = cosines.shape[1]
        found = torch.stack([place // width, place % width]) + rows.start
        better = (value > best) | value.isnan()
        best, pair = torch.where(better, value, best), torch.where(better, found, pair)
    return pair
