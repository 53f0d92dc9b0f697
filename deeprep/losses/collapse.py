"""How small the spread within classes is, next to the spread between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deeprep.losses.batch import EPS, Batch, batch_of, pairs_of, sum_over_tiles
from deeprep.state import Weighting


def compression(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    weighting: Weighting = "uniform",
    corrected: bool = False,
    ignore_index: int = -100,
) -> Tensor:
    """Compression C = Tr Sigma_W / Tr Sigma_B of a batch; see `deeprep.compression`.

    Parameters
    ----------
    features
        (N, d) float64/32/16 or bfloat16.
    labels
        (N,) int32/int64 in [0, K), or `ignore_index`.
    num_classes
        K.
    weighting
        "uniform" for Sigma_B = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)', "prior" for n_k/N.
    corrected
        Take unbiased estimates of both traces: what a batch adds to C by being small is taken off.
        nan where a class of the batch has a single sample.
    ignore_index
        The label of rows to skip.

    Returns
    -------
    () float64; inf or nan where the class means coincide.

    Raises
    ------
    ValueError, TypeError
        For another weighting, and as `deeprep.class_moments`.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]], requires_grad=True)
    >>> loss = deeprep.losses.compression(features, torch.tensor([0, 0, 1, 1]), 2)
    >>> loss.item()
    0.25
    >>> loss.backward()
    >>> features.grad.flatten().tolist()  # inwards for the rows that lie too far out
    [-0.1875, 0.0625, 0.1875, -0.0625]
    """
    if weighting not in ("uniform", "prior"):
        raise ValueError(f"weighting is {weighting!r}, expected 'uniform' or 'prior'")
    batch = batch_of(features, labels, num_classes, ignore_index)
    shares = batch.counts / batch.samples
    weights = shares if weighting == "prior" else batch.present / batch.classes
    between = (weights * batch.deviations().square().sum(dim=1)).sum()
    floor = batch.rounding.square()
    if corrected:
        within, inflation = _corrections(batch, weights, shares)
        between = between - inflation
        # A difference of two traces: what is left has the rounding of both.
        floor = torch.maximum(floor, 16.0 * EPS * within.detach())
    else:
        within = batch.sumsq.sum() / batch.samples
    return batch.defined(within / torch.where(between <= floor, 0.0, between))


def _corrections(batch: Batch, weights: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased Tr Sigma_W, and what finite samples add to Tr Sigma_B."""
    counts = batch.counts.masked_fill(~batch.present, 2.0)  # any that can be divided by
    traces = batch.sumsq / (counts - 1.0)
    inflation = (weights - 2.0 * weights * shares + shares.square()) / counts
    return (shares * traces).sum(), (inflation * traces).sum()


def cdnv(features: Tensor, labels: Tensor, num_classes: int, *, ignore_index: int = -100) -> Tensor:
    """Class-distance normalised variance of a batch; see `deeprep.metrics.cdnv`.

    The mean of (v_k + v_k') / (2 |mu_k - mu_k'|^2) over pairs k != k' of classes with samples.

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
    () float64; inf or nan where two class means coincide.

    Raises
    ------
    ValueError, TypeError
        As `deeprep.class_moments`.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
    >>> deeprep.losses.cdnv(features, torch.tensor([0, 0, 1, 1]), 2).item()
    0.0625
    """
    batch = batch_of(features, labels, num_classes, ignore_index)
    variances = batch.sumsq / batch.counts.clamp(min=1.0)
    total = sum_over_tiles(_spreads, len(variances), batch.centered(), variances, batch.present)
    return batch.defined(total / (batch.classes * (batch.classes - 1.0)))


def _spreads(
    rows: slice, columns: slice, centered: Tensor, variances: Tensor, present: Tensor
) -> Tensor:
    """Sum (v_k + v_k') / |mu_k - mu_k'|^2 over the pairs k < k' of a tile."""
    pairs = pairs_of(present, rows, columns)
    distances = _SquaredDistances.apply(centered[rows], centered[columns])
    spreads = variances[rows, None] + variances[None, columns]
    return (torch.where(pairs, spreads, 0.0) / torch.where(pairs, distances, 1.0)).sum()


class _SquaredDistances(torch.autograd.Function):
    """|a_i - b_j|^2 (A, B) of a (A, d) and b (B, d), from differences, which near pairs need.

    The gradient that torch has for them takes A x B x d numbers on CUDA; this one is two products.
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return (
            2.0 * (grad.sum(dim=1).unsqueeze(1) * a - grad @ b),
            2.0 * (grad.sum(dim=0).unsqueeze(1) * b - grad.T @ a),
        )
