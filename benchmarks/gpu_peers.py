"""What people use on a GPU instead: class statistics by torch's own operators.

Each returns what it computes, by name, as `benchmarks.peers` describes; float64 is used for what is
small, and bfloat16 features are widened, which is part of the time, because torch would sum in
bfloat16. TF32 is off: `deeprep` does not use it either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu_shapes import row_blocks
from benchmarks.peers import Statistics, by_energy, torch_index_add, torch_one_hot
from benchmarks.shapes import DTypeName, Shape


@dataclass(frozen=True)
class Peer:
    """A competitor: `run` is timed, `extra_bytes` is what it allocates, at least.

    `energy` says that its sum of squares is E|z|^2 - |mu|^2, which can only be good relative to
    sum |z|^2 and is checked against that.
    """

    name: str
    run: Callable[[Tensor, Tensor, int], Statistics]
    extra_bytes: Callable[[Shape], float]
    energy: bool = True

    def memory(self, shape: Shape, dtype: DTypeName) -> float:
        """Bytes it needs besides the features, widened copy and its K x d results included."""
        widened = 2 * shape.bytes("bfloat16") if dtype == "bfloat16" else 0
        return self.extra_bytes(shape) + widened + 2 * shape.state_bytes


def _entries(shape: Shape) -> int:
    return shape.num_rows * shape.num_features


def _segment_reduce(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    rows = features.float()
    counts = torch.bincount(labels, minlength=num_classes)
    gathered = rows[labels.argsort(stable=True)]
    sums = torch.segment_reduce(gathered, "sum", lengths=counts, axis=0, unsafe=True)
    return by_energy(rows, labels, counts, sums)


def _scatter_reduce(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    rows = features.float()
    counts = torch.bincount(labels, minlength=num_classes)
    index = labels.unsqueeze(1).expand(-1, rows.shape[1])
    sums = rows.new_zeros(num_classes, rows.shape[1])
    sums.scatter_reduce_(0, index, rows, reduce="sum")
    return by_energy(rows, labels, counts, sums)


def _index_add(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    rows = features.float()
    counts = torch.bincount(labels, minlength=num_classes)
    sums = rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels, rows)
    return by_energy(rows, labels, counts, sums)


def _scatter_add(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    rows = features.float()
    counts = torch.bincount(labels, minlength=num_classes)
    index = labels.unsqueeze(1).expand(-1, rows.shape[1])
    sums = rows.new_zeros(num_classes, rows.shape[1]).scatter_add_(0, index, rows)
    return by_energy(rows, labels, counts, sums)


# Newer versions of torch take the rows of index_add_ and scatter_add_ by TMA on sm_90.
PEERS = (
    Peer(
        "index_add_, two passes", torch_index_add, lambda shape: 4 * _entries(shape), energy=False
    ),
    Peer("one-hot GEMM", torch_one_hot, lambda shape: 4 * shape.num_rows * shape.num_classes),
    Peer(
        "segment_reduce on sorted rows",
        _segment_reduce,
        lambda shape: 4 * _entries(shape) + 32 * shape.num_rows,
    ),
    Peer("index_add_, one pass", _index_add, lambda shape: 0),
    Peer("scatter_add_", _scatter_add, lambda shape: 0),
    Peer("scatter_reduce", _scatter_reduce, lambda shape: 0),
)


def oracle(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    """Two passes in float64, on the device: the reference there, where NumPy would take minutes."""
    counts = torch.bincount(labels, minlength=num_classes)
    means = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    sumsq = means.new_zeros(num_classes)
    for x, y in row_blocks(features, labels):
        means.index_add_(0, y, x.double())
    means /= counts.clamp(min=1).unsqueeze(1)
    for x, y in row_blocks(features, labels):
        sumsq.index_add_(0, y, (x.double() - means[y]).square_().sum(dim=1))
    return {"counts": counts, "means": means, "sumsq": sumsq}


def refcheck(
    name: str, found: Statistics, wanted: Statistics, tolerance: float, energy: bool
) -> None:
    """Compare statistics with those of `oracle`, on the device.

    Raises
    ------
    ValueError
        Something is further off than `tolerance`, or is not a number.
    """
    scale = wanted["sumsq"]
    if energy:
        scale = scale + wanted["counts"] * wanted["means"].square().sum(dim=1)
    off = {key: (found[key].double() - wanted[key]).abs() for key in wanted}
    off["sumsq"] /= scale.clamp(min=1e-12)
    for quantity, errors in off.items():
        error = float(errors.max())
        if not error <= tolerance:
            raise ValueError(f"{name}: {quantity} is off by {error:.2g}, expected <= {tolerance:g}")
