"""The one table of shapes that every benchmark uses, and the data in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Labelling = Literal["shuffled", "sorted", "skewed"]
DTypeName = Literal["float32", "bfloat16"]

LABELLINGS: tuple[Labelling, ...] = ("shuffled", "sorted", "skewed")
DTYPES: tuple[DTypeName, ...] = ("float32", "bfloat16")

_QUICK_BYTES = 4 * 2**20
_BLOCK_ENTRIES = 2**22
_SKEWED_SHARE = 0.9


@dataclass(frozen=True)
class Shape:
    """N rows (`num_rows`) of d features (`num_features`) in K classes (`num_classes`)."""

    num_rows: int
    num_features: int
    num_classes: int

    @property
    def name(self) -> str:
        """Short name, also what --shapes takes: ``2000000x64x10``."""
        return f"{self.num_rows}x{self.num_features}x{self.num_classes}"

    def bytes(self, dtype: DTypeName) -> int:
        """Size of the feature matrix."""
        return self.num_rows * self.num_features * torch_dtype(dtype).itemsize

    @property
    def state_bytes(self) -> int:
        """Size of the K x d float64 means."""
        return 8 * self.num_classes * self.num_features

    def quick(self) -> Shape:
        """Return the shape with N cut to about 4 MB of float32, and K to a few times that N."""
        rows = min(self.num_rows, max(1, _QUICK_BYTES // (4 * self.num_features)))
        return replace(self, num_rows=rows, num_classes=min(self.num_classes, max(10, 4 * rows)))


SHAPES = (
    Shape(2_000_000, 64, 10),
    Shape(500_000, 128, 100),
    Shape(200_000, 512, 100),
    Shape(100_000, 2048, 10),
    Shape(100_000, 2048, 1000),
    Shape(20_000, 1024, 10),
    Shape(12_800, 768, 1000),
    Shape(50_000, 4096, 10_000),
    Shape(4_096, 65_536, 10),
    Shape(50_000, 512, 10),
    Shape(4_096, 512, 10),
    Shape(4_096, 768, 1000),
    Shape(256, 4_096, 10),
)


def target(shape: Shape, dtype: DTypeName) -> float:
    """Time over the floor that the core is meant to stay within, for shuffled labels."""
    return 1.15 if dtype == "float32" and shape.num_classes <= 1000 else 1.5


def torch_dtype(name: DTypeName) -> torch.dtype:
    """Return the torch type of that name."""
    return torch.float32 if name == "float32" else torch.bfloat16


def make_labels(shape: Shape, labelling: Labelling, seed: int = 0) -> Tensor:
    """Labels (N,) int64: uniformly drawn, the same sorted, or with 90 % of them one class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(shape.num_classes, (shape.num_rows,), generator=generator)
    if labelling == "sorted":
        return labels.sort().values
    if labelling == "skewed":
        many = torch.rand(shape.num_rows, generator=generator) < _SKEWED_SHARE
        return labels.masked_fill_(many, shape.num_classes // 2)
    return labels


def make_features(shape: Shape, labels: Tensor, dtype: DTypeName, seed: int = 0) -> Tensor:
    """Features (N, d): unit Gaussian noise around unit Gaussian class means."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(shape.num_classes, shape.num_features, generator=generator)
    features = torch.empty(shape.num_rows, shape.num_features, dtype=torch_dtype(dtype))
    rows = max(1, _BLOCK_ENTRIES // shape.num_features)
    for begin in range(0, shape.num_rows, rows):  # N x d float32 never exists twice
        block = means[labels[begin : begin + rows]]
        block += torch.randn(block.shape, generator=generator)
        features[begin : begin + rows] = block
    return features
