"""Class moments of a batch, merged into a running state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deeprep.base import validate
from deeprep.base.indivisible import Step, indivisibly
from deeprep.ops.bad_label import new_bad_label, read_bad_label
from deeprep.ops.core import (
    FEATURE_TYPES,
    _core,
    address,
    address_of_labels,
    launching,
    require_core,
)

_MAX_CUDA_ROWS = 2**32 - 2  # rows are numbered by 32 bits there, which halves what the sort moves

_library = torch.library.Library("deeprep", "DEF")
# The last argument is `bad_label`; code that torch.compile has kept on disk calls it by this name.
_library.define(
    "class_moments_(Tensor features, Tensor labels, Tensor(a!) counts, Tensor(b!) means, "
    "Tensor(c!) sumsq, int ignore_index=-100, Tensor(d!)? error=None) -> ()"
)


def class_moments_(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int = -100,
    bad_label: Tensor | None = None,
) -> None:
    """Merge a batch's class moments into a running state, in place, reading the features once.

    With n_k, mu_k, s_k of all rows seen so far, ``counts[k] = n_k``, ``means[k] = mu_k`` and
    ``sumsq[k] = sum_i |z_ki - mu_k|^2``. Relative error of ``sumsq`` at most 1e-5 on any float32
    data and about 1e-7 in practice; the same bits for any number of threads
    (`torch.set_num_threads`) and any instruction set.

    Parameters
    ----------
    features
        (N, d) float64/32/16 or bfloat16, any strides.
    labels
        (N,) int32/int64 in [0, K), or `ignore_index` for rows to skip.
    counts, means, sumsq
        (K,) int64, (K, d) float64, (K,) float64; zeros to begin with.
    bad_label
        (3,) int64 of -1, for CUDA features: takes the row and the value of the first label out of
        range, in place of an exception, and the call does not wait for the device. This batch and
        all later ones then leave the state as it is, until the tensor is refilled with -1. Without
        it the call waits. Not used on the CPU.

    Raises
    ------
    ValueError, TypeError
        On shapes, dtypes, devices that do not fit and on a label out of range (unless `bad_label`
        takes it); the state is untouched.
    NotImplementedError
        For CUDA features where this build has no CUDA kernels.

    Notes
    -----
    Pivoted chunks merged by Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances" (1979); see csrc/moments.h.

    Examples
    --------
    >>> import torch, deeprep
    >>> counts = torch.zeros(2, dtype=torch.int64)
    >>> means, sumsq = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    >>> features = torch.tensor([[1.0], [3.0], [5.0]])
    >>> deeprep.ops.class_moments_(features, torch.tensor([0, 0, 1]), counts, means, sumsq)
    >>> counts.tolist(), means.flatten().tolist(), sumsq.tolist()
    ([2, 1], [2.0, 5.0], [2.0, 0.0])
    """
    torch.ops.deeprep.class_moments_(
        features, labels, counts, means, sumsq, ignore_index, bad_label
    )


def _class_moments_cpu(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int = -100,
    bad_label: Tensor | None = None,
) -> None:
    validate.check_batch(features, labels)
    validate.check_state(features, counts, means, sumsq, bad_label)
    _call_core(features, labels, counts, means, sumsq, ignore_index)


def _class_moments_cuda(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int = -100,
    bad_label: Tensor | None = None,
) -> None:
    require_core(features.device)
    validate.check_batch(features, labels)
    validate.check_state(features, counts, means, sumsq, bad_label)
    if bad_label is not None:
        _call_cuda_core(features, labels, counts, means, sumsq, ignore_index, bad_label)
        return
    if features.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "bad_label is None while a CUDA graph is captured, expected a (3,) int64 tensor of -1: "
            "labels cannot be checked before the graph runs"
        )
    bad_label = new_bad_label(features.device)
    _call_cuda_core(features, labels, counts, means, sumsq, ignore_index, bad_label)
    if (found := read_bad_label(bad_label)) is not None:
        raise ValueError(validate.label_out_of_range(*found, counts.shape[0], ignore_index))


def merge_batch(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int = -100,
    bad_label: Tensor | None = None,
    then: Step | None = None,
) -> None:
    """`class_moments_` without torch's dispatcher, for a state known to be valid.

    A training loop updates once a batch: the dispatcher and the checks of the state would cost more
    than the features of a small one. `bad_label` is given where the state is on CUDA. No exception
    comes between the change of the state and the step `then`.
    """
    validate.check_batch(features, labels)
    if bad_label is None:
        _call_core(features, labels, counts, means, sumsq, ignore_index, then)
    else:
        _call_cuda_core(features, labels, counts, means, sumsq, ignore_index, bad_label, then)


def _call_core(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int,
    then: Step | None = None,
) -> None:
    labels = labels.contiguous()
    arguments = (
        *address(features),
        *address_of_labels(labels, ignore_index),
        counts.data_ptr(),
        means.data_ptr(),
        sumsq.data_ptr(),
        counts.shape[0],
        torch.get_num_threads(),
    )
    _call(_core.class_moments, arguments, then)


def _call(function: Callable[..., None], arguments: tuple[Any, ...], then: Step | None) -> None:
    if then is None:
        function(*arguments)
    else:
        indivisibly(partial(function, *arguments), then)


def _call_cuda_core(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int,
    bad_label: Tensor,
    then: Step | None = None,
) -> None:
    num_rows, num_columns = features.shape
    num_classes = counts.shape[0]
    if num_rows == 0:
        if then is not None:
            then()
        return
    if num_rows > _MAX_CUDA_ROWS:
        raise ValueError(
            f"features has {num_rows} rows, expected at most {_MAX_CUDA_ROWS} in one CUDA update: "
            "split the batch"
        )
    with launching(features.device) as stream:
        num_bytes = _core.class_moments_cuda_scratch(
            num_rows, num_columns, FEATURE_TYPES[features.dtype], num_classes
        )
        scratch = torch.empty(num_bytes, dtype=torch.uint8, device=features.device)
        labels = labels.contiguous()
        arguments = (
            *address(features),
            *address_of_labels(labels, ignore_index),
            counts.data_ptr(),
            means.data_ptr(),
            sumsq.data_ptr(),
            num_classes,
            bad_label.data_ptr(),
            scratch.data_ptr(),
            num_bytes,
            stream,
        )
        _call(_core.class_moments_cuda, arguments, then)


def _class_moments_fake(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int = -100,
    bad_label: Tensor | None = None,
) -> None:
    validate.check_batch(features, labels)
    validate.check_state(features, counts, means, sumsq, bad_label)


_library.impl("class_moments_", _class_moments_cpu, "CPU")
_library.impl("class_moments_", _class_moments_cuda, "CUDA")
torch.library.register_fake("deeprep::class_moments_", _class_moments_fake, lib=_library)
