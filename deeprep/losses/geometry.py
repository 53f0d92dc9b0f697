"""How the centred class means lie to one another: lengths, distance from a simplex."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprep.losses.batch import batch_of, root, sum_over_tiles


def equinorm(
    features: Tensor, labels: Tensor, num_classes: int, *, ignore_index: int = -100
) -> Tensor:
    """Take std_k |mu_k - mu_G| / mean_k |mu_k - mu_G| of a batch; see `deeprep.metrics.equinorm`.

    Parameters
    ----------
    features
        (N, d) float64/32/16 or bfloat16.
    labels
        (N,) int32/int64 in [0, K), or `ignore_index`.
    num_classes
        K.
    ignore_index
        The label of rows to skip.

    Returns
    -------
    () float64; nan where all class means coincide. Where it is exactly 0, its gradient is too.

    Raises
    ------
    ValueError, TypeError
        As `deeprep.class_moments`.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [-1.0]])
    >>> deeprep.losses.equinorm(features, torch.tensor([0, 1]), 2).item()
    0.0
    """
    batch = batch_of(features, labels, num_classes, ignore_index)
    norms = torch.linalg.vector_norm(batch.centered(), dim=1)
    mean = norms.sum() / batch.classes
    deviations = (norms - mean).masked_fill(~batch.present, 0.0)
    return batch.defined(root(deviations.square().sum() / batch.classes) / mean)


def etf_error(
    features: Tensor, labels: Tensor, num_classes: int, *, ignore_index: int = -100
) -> Tensor:
    """Distance of a batch's class means to a simplex; see `deeprep.metrics.etf_error`.

    | MM'/|MM'|_F - (I - 11'/K)/sqrt(K-1) |_F, with M the centred means of the K classes that have
    samples.

    Parameters
    ----------
    features
        (N, d) float64/32/16 or bfloat16.
    labels
        (N,) int32/int64 in [0, K), or `ignore_index`.
    num_classes
        K.
    ignore_index
        The label of rows to skip.

    Returns
    -------
    () float64, at most sqrt(2); nan where all class means coincide. Where it is exactly 0, its
    gradient is too.

    Raises
    ------
    ValueError, TypeError
        As `deeprep.class_moments`.

    Examples
    --------
    >>> import torch, deeprep
    >>> loss = deeprep.losses.etf_error(torch.eye(3), torch.tensor([0, 1, 2]), 3)
    >>> round(loss.item(), 12)
    0.0
    """
    batch = batch_of(features, labels, num_classes, ignore_index)
    centered = batch.centered()
    # M by its largest entry first, which changes nothing: fourth powers can then neither over- nor
    # underflow.
    centered = centered / centered.detach().abs().amax()
    most = len(centered)
    norm = sum_over_tiles(_squares, most, centered).sqrt()
    total = sum_over_tiles(_errors, most, centered, norm, batch.present, batch.classes)
    return batch.defined(root(total))


def _squares(rows: slice, columns: slice, centered: Tensor) -> Tensor:
    return _symmetric_sum((centered[rows] @ centered[columns].T).square())


def _errors(
    rows: slice, columns: slice, centered: Tensor, norm: Tensor, present: Tensor, classes: Tensor
) -> Tensor:
    both = present[rows, None] & present[None, columns]
    diagonal = torch.zeros_like(both, dtype=torch.float64).fill_diagonal_(1.0)
    simplex = both * (diagonal - 1.0 / classes) / (classes - 1.0).sqrt()
    return _symmetric_sum((centered[rows] @ centered[columns].T / norm - simplex).square())


def _symmetric_sum(tile: Tensor) -> Tensor:
    """Sum the part of a symmetric matrix that a tile, of columns from its rows on, stands for."""
    return tile.diagonal().sum() + 2.0 * tile.triu(diagonal=1).sum()
