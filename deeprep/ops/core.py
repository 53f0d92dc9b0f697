"""The compiled core: its settings, and tensors as it takes them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor

try:
    from deeprep import _core as _core
except ImportError as error:  # a source tree that was never built
    raise ImportError(
        "deeprep's compiled core is missing or does not load; build it with `pip install .` (or "
        f"`pip install -e .` to work on it) in the source tree ({error})"
    ) from error

if _forced_level := os.environ.get("DEEPREP_SIMD"):
    _core.set_simd_level(_forced_level)
if _forced_order := os.environ.get("DEEPREP_ORDER"):
    _core.set_row_order(_forced_order)

FEATURE_TYPES = {
    torch.float32: _core.FeatureType.float32,
    torch.float64: _core.FeatureType.float64,
    torch.float16: _core.FeatureType.float16,
    torch.bfloat16: _core.FeatureType.bfloat16,
}
LABEL_TYPES = {torch.int32: _core.LabelType.int32, torch.int64: _core.LabelType.int64}


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


@contextlib.contextmanager
def launching(device: torch.device) -> Iterator[int]:
    """Make `device` the current one and yield the handle of its current stream."""
    if device.type == "cpu":  # the kernels executed on the host, which has no streams
        yield 0
        return
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


def address(features: Tensor) -> tuple[int, _core.FeatureType, int, int, int, int]:
    """Address, type, N, d and strides, in elements, of features (N, d), as the core takes them."""
    return (
        features.data_ptr(),
        FEATURE_TYPES[features.dtype],
        *features.shape,
        *features.stride(),
    )


def address_of_labels(labels: Tensor, ignore_index: int) -> tuple[int, _core.LabelType, int]:
    """Address and type of contiguous labels (N,) and the label to skip, as the core takes them.

    The caller holds `labels` until the core is done: an address keeps nothing alive.
    """
    return labels.data_ptr(), LABEL_TYPES[labels.dtype], ignore_index
