"""The shapes of the GPU's table, cut down to what its memory holds, and data made where it lies."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.shapes import SHAPES, DTypeName, Shape, torch_dtype

# What one step of training gives.
SMALL_SHAPES = tuple(
    Shape(*batch, num_classes)
    for batch in ((256, 512), (256, 4096), (4096, 512))
    for num_classes in (10, 100, 1000)
)

# Those of the CPU, small batches, and two that only a GPU reads in milliseconds: ImageNet, and many
# classes.
_LARGE_SHAPES = (Shape(1_280_000, 768, 1000), Shape(1_000_000, 4096, 50_000))
GPU_SHAPES = tuple(dict.fromkeys((*SHAPES, *SMALL_SHAPES, *_LARGE_SHAPES)))

TARGET = 0.9  # of the bandwidth of a copy
# Where it is meant to be reached: smaller batches are over before a copy is at its speed.
TARGET_MIN_FEATURES, TARGET_MAX_CLASSES, TARGET_MIN_ENTRIES = 64, 1000, 2_000_000

_SCRATCH_BYTES_PER_ROW = 128  # row numbers, keys, and room to sort them where classes are many
_BLOCK_ENTRIES = 2**24


def has_target(shape: Shape) -> bool:
    """Whether the target is meant for this shape."""
    return (
        shape.num_features >= TARGET_MIN_FEATURES
        and shape.num_classes <= TARGET_MAX_CLASSES
        and shape.num_rows * shape.num_features >= TARGET_MIN_ENTRIES
    )


def needed_bytes(shape: Shape, dtype: DTypeName) -> int:
    """Memory for the features, a copy of them, scratch, and the state, its reference and one more.

    Segments of few rows wait in scratch as float64 means: at worst as many as there are rows, in
    practice about as many as classes.
    """
    rows = shape.num_rows * _SCRATCH_BYTES_PER_ROW
    waiting = 8 * shape.num_features * (shape.num_rows // 256 + shape.num_classes)
    return 2 * shape.bytes(dtype) + rows + waiting + 4 * shape.state_bytes


def fit(shape: Shape, dtype: DTypeName, memory: int) -> Shape | None:
    """Return the shape with N halved until it fits in so many bytes; None if the state does not.

    >>> fit(Shape(1_000_000, 4096, 10), "float32", 12 * 2**30).num_rows
    250000
    """
    while needed_bytes(shape, dtype) > memory:
        if shape.num_rows < 2 * shape.num_classes or shape.num_rows < 2:
            return None
        shape = replace(shape, num_rows=shape.num_rows // 2)
    return shape


def make_data(shape: Shape, dtype: DTypeName, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features (N, d) of unit Gaussian noise around Gaussian class means, labels (N,) int64."""
    generator = torch.Generator(device).manual_seed(0)
    kwargs = {"generator": generator, "device": device}
    labels = torch.randint(shape.num_classes, (shape.num_rows,), **kwargs)
    means = torch.randn(shape.num_classes, shape.num_features, **kwargs)
    features = torch.empty(
        shape.num_rows, shape.num_features, dtype=torch_dtype(dtype), device=device
    )
    for x, y in row_blocks(features, labels):
        block = means[y]
        block += torch.randn(block.shape, **kwargs)
        x.copy_(block)
    return features, labels


def row_blocks(features: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Cut rows up, so that nothing as large as the features exists in a wider type."""
    rows = max(1, _BLOCK_ENTRIES // features.shape[1])
    return list(zip(features.split(rows), labels.split(rows), strict=True))
