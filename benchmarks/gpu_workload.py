"""A small selection of updates for compute-sanitizer: every kernel, dtype and path, CPU's bits.

`compute-sanitizer --tool memcheck python -m benchmarks.gpu_workload`; `make gpu-check` does so.
"""

from __future__ import annotations

import sys

import torch

import deeprep

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# (N, d, K): several blocks and groups, short rows, ragged rows that no 16-byte load fits, few
# rows in a class; tables from several tiles, of whole blocks and of parts of one, and by a sort.
SHAPES = (
    *((3000, 64, 3), (1500, 8, 2), (700, 131, 40), (300, 260, 20)),
    *((40_000, 64, 3), (40_000, 4, 100), (300, 4, 5000)),
)


def run(device: torch.device) -> int:
    """Update states on the device and on the CPU, compare bits; return how many were compared."""
    compared = 0
    for dtype in DTYPES:
        for num_rows, num_features, num_classes in SHAPES:
            generator = torch.Generator().manual_seed(num_rows)
            features = torch.randn(num_rows, num_features, generator=generator).to(dtype)
            labels = torch.arange(num_rows) % num_classes
            labels = labels[torch.randperm(num_rows, generator=generator)]
            labels[7::7] = -100
            for x, y in ((features, labels), (features[::2], labels[::2].int())):
                expected = deeprep.ClassScatter(num_classes, num_features)
                found = deeprep.ClassScatter(num_classes, num_features, device=device)
                expected.update(x, y)
                found.update(x.to(device), y.to(device))
                for name in ("counts", "means", "sumsq"):
                    if not torch.equal(getattr(found, name).cpu(), getattr(expected, name)):
                        raise ValueError(f"{name} of {tuple(x.shape)} {dtype} has other bits")
                if found.trace_between() != expected.trace_between():
                    raise ValueError(f"trace_between of {tuple(x.shape)} {dtype} has other bits")
                deeprep.class_scatter(x.to(device), y.to(device), num_classes, full=True)
                compared += 1
    return compared


if __name__ == "__main__":
    print(
        f"{run(torch.device(sys.argv[1] if sys.argv[1:] else 'cuda'))} states have the CPU's bits"
    )
