"""Class moments of one batch as a differentiable operator, `torch.ops.deeprep.class_moments`.

What is differentiated is the features. With L a function of (means, sumsq) and n_k, mu_k those of
the batch, the gradient of row i of class k is

    dL/dmu_k / n_k + 2 dL/dsumsq_k (z_i - mu_k),

(the mean being where the sum of squares is least, it does not move it), which one read of the
features writes down. That is an operator of its own, `class_moments_backward`, which can in turn be
differentiated: by torch's operators, at their price.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deeprep.base import validate
from deeprep.ops import core
from deeprep.ops.bad_label import has_bad_label, new_bad_label
from deeprep.ops.moments import merge_batch
from deeprep.ops.rows import shift_rows

_library = torch.library.Library("deeprep", "FRAGMENT")
_library.define(
    "class_moments(Tensor features, Tensor labels, int num_classes, int ignore_index=-100) "
    "-> (Tensor counts, Tensor means, Tensor sumsq)"
)
_library.define(
    "class_moments_backward(Tensor features, Tensor labels, Tensor counts, Tensor means, "
    "Tensor grad_means, Tensor grad_sumsq, int ignore_index) -> Tensor"
)


def class_moments(
    features: Tensor, labels: Tensor, num_classes: int, ignore_index: int = -100
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, means and sums of squares of the classes of a batch, differentiable by the features.

    Forward and backward each read the features once, and the backward writes their gradient;
    nothing else has N rows. Accuracy and bits are those of `deeprep.ops.class_moments_`. Works
    under torch.compile and can be differentiated twice.

    Parameters
    ----------
    features
        (N, d) float64/32/16 or bfloat16, any strides; N may be 0. The gradient has their dtype.
    labels
        (N,) int32/int64 in [0, K), or `ignore_index` for rows that take no part and get gradient 0.
    num_classes
        K. The results, and the work beside the features, are K x d.
    ignore_index
        The label of rows to skip.

    Returns
    -------
    counts
        (K,) int64.
    means
        (K, d) float64; 0, and no gradient, for a class without rows.
    sumsq
        (K,) float64: sum_i |z_ki - mu_k|^2.

    Raises
    ------
    ValueError, TypeError
        On shapes, dtypes, devices that do not fit, on labels (N, K), one-hot or soft, and on a
        label out of range. On CUDA the latter is an assertion on the device, as in torch's own
        losses, since nothing waits for it.
    NotImplementedError
        For CUDA features where this build has no CUDA kernels.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [5.0]], requires_grad=True)
    >>> counts, means, sumsq = deeprep.class_moments(features, torch.tensor([0, 0, 1]), 2)
    >>> counts.tolist(), means.flatten().tolist(), sumsq.tolist()
    ([2, 1], [2.0, 5.0], [2.0, 0.0])
    >>> sumsq.sum().backward()
    >>> features.grad.flatten().tolist()
    [-2.0, 2.0, 0.0]
    """
    moments: tuple[Tensor, Tensor, Tensor] = torch.ops.deeprep.class_moments(
        features, labels, num_classes, ignore_index
    )
    return moments


def _check(features: Tensor, labels: Tensor, num_classes: int) -> None:
    if labels.ndim == 2 and features.ndim == 2 and len(labels) == len(features):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, expected ({len(features)},): class indices; "
            "of one-hot or soft rows pass labels.argmax(dim=1)"
        )
    validate.check_batch(features, labels)
    validate.check_num_classes(num_classes)


def _zeros(features: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        features.new_zeros(num_classes, dtype=torch.int64),
        features.new_zeros((num_classes, features.shape[1]), dtype=torch.float64),
        features.new_zeros(num_classes, dtype=torch.float64),
    )


def _class_moments(
    features: Tensor, labels: Tensor, num_classes: int, ignore_index: int = -100
) -> tuple[Tensor, Tensor, Tensor]:
    core.require_core(features.device)
    _check(features, labels, num_classes)
    state = _zeros(features, num_classes)
    if core.on_host(features):
        merge_batch(features, labels, *state, ignore_index)
        return state
    bad_label = new_bad_label(features.device)
    merge_batch(features, labels, *state, ignore_index, bad_label)
    torch._assert_async(
        ~has_bad_label(bad_label),
        f"labels holds one that is neither a class in [0, {num_classes}) nor ignore_index = "
        f"{ignore_index}",
    )
    return state


def _class_moments_backward(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    grad_means: Tensor,
    grad_sumsq: Tensor,
    ignore_index: int,
) -> Tensor:
    pivots = means.to(torch.float64 if features.dtype == torch.float64 else torch.float32)
    scale = 2.0 * grad_sumsq
    # What rounding the pivots moved goes into the offsets, which are rounded last: far from the
    # origin the gradients of a class still add up to grad_means.
    offsets = torch.addcmul(
        grad_means / counts.clamp(min=1).unsqueeze(1), scale.unsqueeze(1), pivots - means
    )
    out = features.new_empty(features.shape)  # contiguous, whatever the features are
    shift_rows(features, labels, pivots, out, ignore_index, scale, offsets.to(pivots.dtype))
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    features, labels, _, ctx.ignore_index = inputs
    counts, means, _ = output
    ctx.save_for_backward(features, labels, counts, means)


def _backward(
    ctx: Any, _: Tensor | None, grad_means: Tensor, grad_sumsq: Tensor
) -> tuple[Tensor, None, None, None]:
    grad = torch.ops.deeprep.class_moments_backward(
        *ctx.saved_tensors, grad_means, grad_sumsq, ctx.ignore_index
    )
    return grad, None, None, None


def _setup_twice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.ignore_index = inputs
    ctx.save_for_backward(*tensors)


def _backward_twice(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate row i = grad_means_k / n_k + 2 grad_sumsq_k (z_i - mu_k) by all but n_k."""
    features, labels, counts, means, _, grad_sumsq = ctx.saved_tensors
    kept = (labels != ctx.ignore_index).unsqueeze(1)
    classes = labels.long().masked_fill(~kept.squeeze(1), 0)
    # Where, not times: an ignored row may hold NaN.
    grad = torch.where(kept, grad.double(), 0.0)
    deviations = torch.where(kept, features.double() - means[classes], 0.0)
    summed = torch.zeros_like(means).index_add(0, classes, grad)
    products = torch.zeros_like(grad_sumsq).index_add(0, classes, (grad * deviations).sum(1))
    scale = 2.0 * grad_sumsq
    return (
        (scale[classes].unsqueeze(1) * grad).to(features.dtype),
        *(None, None),
        -scale.unsqueeze(1) * summed,
        summed / counts.clamp(min=1).unsqueeze(1),
        2.0 * products,
        None,
    )


def _class_moments_fake(
    features: Tensor, labels: Tensor, num_classes: int, ignore_index: int = -100
) -> tuple[Tensor, Tensor, Tensor]:
    _check(features, labels, num_classes)
    return _zeros(features, num_classes)


def _class_moments_backward_fake(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    grad_means: Tensor,
    grad_sumsq: Tensor,
    ignore_index: int,
) -> Tensor:
    return features.new_empty(features.shape)


for _device in ("CPU", "CUDA"):
    _library.impl("class_moments", _class_moments, _device)
    _library.impl("class_moments_backward", _class_moments_backward, _device)
torch.library.register_fake("deeprep::class_moments", _class_moments_fake, lib=_library)
torch.library.register_fake(
    "deeprep::class_moments_backward", _class_moments_backward_fake, lib=_library
)
torch.library.register_autograd(
    "deeprep::class_moments", _backward, setup_context=_setup, lib=_library
)
torch.library.register_autograd(
    "deeprep::class_moments_backward", _backward_twice, setup_context=_setup_twice, lib=_library
)
