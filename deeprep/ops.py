"""The core as torch operators: `torch.ops.deeprep.class_moments_`, on the CPU and on CUDA.

Registered through `torch.library.Library.define`/`impl` (a few microseconds a call, where the
`custom_op` decorator costs over twenty), with a fake kernel, so it can be traced by torch.compile.

On CUDA all work goes to the current stream of the features' device, scratch memory comes from
torch's caching allocator and nothing waits for the device, so CUDA graphs can capture it. Only the
device knows whether a label is out of range: it notes the first that is in a tensor `bad_label`
(3,) int64, made by `new_bad_label`, and from then on leaves the state alone until the tensor is
refilled with -1.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deeprep.base import validate
from deeprep.base.indivisible import Step, indivisibly

try:
    from deeprep import _core
except ImportError as error:  # a source tree that was never built
    raise ImportError(
        "deeprep's compiled core is missing or does not load; build it with `pip install .` (or "
        f"`pip install -e .` to work on it) in the source tree ({error})"
    ) from error

if _forced_level := os.environ.get("DEEPREP_SIMD"):
    _core.set_simd_level(_forced_level)
if _forced_order := os.environ.get("DEEPREP_ORDER"):
    _core.set_row_order(_forced_order)

_FEATURE_TYPES = {
    torch.float32: _core.FeatureType.float32,
    torch.float64: _core.FeatureType.float64,
    torch.float16: _core.FeatureType.float16,
    torch.bfloat16: _core.FeatureType.bfloat16,
}
_MAX_CUDA_ROWS = 2**32 - 2  # rows are numbered by 32 bits there, which halves what the sort moves
_LABEL_TYPES = {torch.int32: _core.LabelType.int32, torch.int64: _core.LabelType.int64}

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
        *_address(features),
        *_address_of_labels(labels, ignore_index),
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
    with _launching(features.device) as stream:
        num_bytes = _core.class_moments_cuda_scratch(
            num_rows, num_columns, _FEATURE_TYPES[features.dtype], num_classes
        )
        scratch = torch.empty(num_bytes, dtype=torch.uint8, device=features.device)
        labels = labels.contiguous()
        arguments = (
            *_address(features),
            *_address_of_labels(labels, ignore_index),
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


@contextlib.contextmanager
def _launching(device: torch.device) -> Iterator[int]:
    """Make `device` the current one and yield the handle of its current stream."""
    if device.type == "cpu":  # the kernels executed on the host, which has no streams
        yield 0
        return
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


def _address(features: Tensor) -> tuple[int, _core.FeatureType, int, int, int, int]:
    """Address, type, N, d and strides, in elements, of features (N, d), as the core takes them."""
    return (
        features.data_ptr(),
        _FEATURE_TYPES[features.dtype],
        *features.shape,
        *features.stride(),
    )


def _address_of_labels(labels: Tensor, ignore_index: int) -> tuple[int, _core.LabelType, int]:
    """Address and type of contiguous labels (N,) and the label to skip, as the core takes them.

    The caller holds `labels` until the core is done: an address keeps nothing alive.
    """
    return labels.data_ptr(), _LABEL_TYPES[labels.dtype], ignore_index


def shift_rows(
    features: Tensor,
    labels: Tensor,
    pivots: Tensor,
    out: Tensor,
    ignore_index: int,
    scale: Tensor | None = None,
) -> None:
    """Fill out (N, d) with (features[i] - pivots[labels[i]]) * scale, or 0 for labels to ignore.

    Parameters
    ----------
    features, labels
        As for `class_moments_`; every label a class or `ignore_index`.
    pivots, out
        (K, d) and (N, d), contiguous, float32, or float64 for float64 features.
    scale
        () float64, a power of two; default: 1.
    """
    labels = labels.contiguous()
    arguments = (
        *_address(features),
        *_address_of_labels(labels, ignore_index),
        pivots.data_ptr(),
    )
    if on_host(features):
        _core.shift_rows(*arguments, out.data_ptr(), torch.get_num_threads())
        if scale is not None:
            out.mul_(scale)
    else:
        factor = 0 if scale is None else scale.data_ptr()
        with _launching(features.device) as stream:
            _core.shift_rows_cuda(*arguments, factor, out.data_ptr(), stream)


def squared_distances(points: Tensor, center: Tensor | None = None) -> Tensor:
    """|points[k] - center|^2 (K,), reading the points once and storing no difference.

    Parameters
    ----------
    points
        (K, d) float64, contiguous.
    center
        (d,) float64; default: the origin.
    """
    center = None if center is None else center.contiguous()
    out = points.new_empty(points.shape[0])
    arguments = (
        points.data_ptr(),
        0 if center is None else center.data_ptr(),
        out.data_ptr(),
        points.shape[0],
        points.shape[1],
    )
    if on_host(points):
        _core.squared_distances(*arguments, torch.get_num_threads())
    else:
        with _launching(points.device) as stream:
            _core.squared_distances_cuda(*arguments, stream)
    return out


def on_host(tensor: Tensor) -> bool:
    """Whether the CPU core takes this tensor; else the CUDA core does."""
    return tensor.is_cpu


def require_core(device: torch.device) -> None:
    """Raise unless this build of deeprep can work on `device`."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device}, expected a CPU or a CUDA device")
    if device.type == "cuda" and not _core.cuda:
        raise NotImplementedError(
            f"{device} needs deeprep's CUDA kernels, and this build holds the CPU core only "
            "(deeprep.show_config()); with CUDA's nvcc on the PATH, build them by `pip install "
            "--force-reinstall --no-deps --no-binary deeprep deeprep`, or by `pip install .` in "
            "the source tree; or pass features.cpu() and labels.cpu()"
        )


def new_bad_label(device: torch.device) -> Tensor:
    """Make the tensor in which the CUDA core notes a label out of range.

    Its row, itself, and 1 once both are there; -1 until then.
    """
    return torch.full((3,), -1, dtype=torch.int64, device=device)


def has_bad_label(bad_label: Tensor) -> Tensor:
    """Whether a label out of range has been noted, () bool on the device: nothing is waited for."""
    return bad_label[0] >= 0


def read_bad_label(bad_label: Tensor) -> tuple[int, int] | None:
    """Row and value of the label noted, None where there is none; waits for the device."""
    row, label, _ = bad_label.tolist()
    return None if row < 0 else (row, label)


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


def build_info() -> dict[str, Any]:
    """Say what was built and what is in use: versions, compiler, instruction set, CUDA, threads.

    Examples
    --------
    >>> import deeprep
    >>> sorted(deeprep.build_info())
    ['compiler', 'cuda', 'deeprep', 'num_threads', 'row_order', 'simd', 'simd_available', 'torch']
    """
    from importlib.metadata import version

    return {
        "deeprep": version("deeprep"),
        "torch": torch.__version__,
        "compiler": _core.compiler,
        "simd": _core.simd_level(),
        "simd_available": _core.available_simd_levels(),
        "row_order": _core.row_order(),
        "cuda": _core.cuda,
        "num_threads": torch.get_num_threads(),
    }


def show_config() -> None:
    """Print `build_info`, a line each.

    Examples
    --------
    >>> import deeprep
    >>> deeprep.show_config()
    deeprep         0...
    """
    for key, value in build_info().items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{key:<15} {text}")
