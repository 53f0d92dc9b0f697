"""How far a trained deep linear network is from what the theorem assumes of it.

All functions take weights W_1 (..., h, d), W_2 .. W_{L-1} (..., h, h), W_L (..., K, h) with any
batch dimensions in front: the seeds of a sweep are measured together. `idle` and `idle_scale`
stand for hidden dimensions that were left out because nothing happens in them, as
`draw_wide_deep_linear` leaves out width - (d + K) of them: there, W_2 .. W_{L-1} are idle_scale
times the identity, and W_1 and W_L are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from deeprep.base.validate import require


def minimum_norm_error(weights: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """|Y X^+ - W_L ... W_1|_F, the distance from the minimum-norm map that fits the data.

    Parameters
    ----------
    weights
        See the module's docstring.
    inputs, targets
        X' (..., N, d) and Y' (..., N, K), a row a sample.

    Returns
    -------
    (...) distances.

    Notes
    -----
    Assumption 1 of the theorem; fig. 6, left, of the paper.

    Examples
    --------
    >>> inputs, targets = torch.eye(2, 3), torch.eye(2)
    >>> last = torch.tensor([[1.0, 0, 0], [0, 1, 0.5]])
    >>> minimum_norm_error([torch.eye(3), last], inputs, targets)
    tensor(0.5000)
    """
    product = weights[0]
    for weight in weights[1:]:
        product = weight @ product
    error: Tensor = torch.linalg.matrix_norm((torch.linalg.pinv(inputs) @ targets).mT - product)
    return error


def balance_errors(weights: Sequence[Tensor], *, idle: int = 0, idle_scale: float = 0.0) -> Tensor:
    """|W_{l+1}' W_{l+1} - W_l W_l'|_F / |W_l|_F of every pair of neighbours.

    Parameters
    ----------
    weights, idle, idle_scale
        See the module's docstring.

    Returns
    -------
    (..., L - 1) for l = 1 .. L - 1.

    Notes
    -----
    Assumption 2 of the theorem. The released code divides by |W_l|_F, and so does fig. 6, middle,
    though its label does not say so.

    Examples
    --------
    >>> balance_errors([torch.eye(2), 2 * torch.eye(2)])
    tensor([3.])
    """
    require("idle", idle, idle >= 0, ">= 0 hidden dimensions")
    scales = [0.0, *[idle_scale] * (len(weights) - 2), 0.0]
    errors = []
    for (first, second), (scale, next_scale) in zip(
        pairwise(weights), pairwise(scales), strict=True
    ):
        difference = second.mT @ second - first @ first.mT
        squares = difference.square().sum((-2, -1)) + idle * (next_scale**2 - scale**2) ** 2
        norms = first.square().sum((-2, -1)) + idle * scale**2
        errors.append((squares / norms).sqrt())
    return torch.stack(errors, dim=-1)


def trailing_singular_values(
    weights: Sequence[Tensor], *, idle: int = 0, idle_scale: float = 0.0
) -> Tensor:
    """sigma_i(W_l), K < i <= d - K, of every layer but the last, in descending order.

    Parameters
    ----------
    weights, idle, idle_scale
        See the module's docstring.

    Returns
    -------
    (..., L - 1, d - 2 K).

    Raises
    ------
    ValueError
        Fewer than 2 K + 1 inputs or hidden dimensions.

    Notes
    -----
    Assumption 3 of the theorem, with the range of i of the released code.

    Examples
    --------
    >>> trailing_singular_values([torch.diag(torch.tensor([5.0, 2.0, 1.0])), torch.ones(1, 3)])
    tensor([[2.]])
    """
    num_classes, dimension = weights[-1].shape[-2], weights[0].shape[-1]
    require("idle", idle, idle >= 0, ">= 0 hidden dimensions")
    least = min(dimension, weights[0].shape[-2] + idle)
    require(
        "weights", f"of {least} dimensions", least > 2 * num_classes, "more than 2 K dimensions"
    )
    trailing = []
    for index, weight in enumerate(weights[:-1]):
        values = torch.linalg.svdvals(weight)
        if idle and index > 0:  # more of them than d cannot be among the first d
            more = values.new_full((*values.shape[:-1], min(idle, dimension)), idle_scale)
            values = torch.cat([values, more], dim=-1).sort(descending=True).values
        trailing.append(values[..., num_classes : dimension - num_classes])
    return torch.stack(trailing, dim=-2)
