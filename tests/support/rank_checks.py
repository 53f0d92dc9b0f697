"""Checks that the processes of a group run together, one after the other."""

from __future__ import annotations

import itertools
import traceback
from datetime import timedelta

import torch
from torch import distributed


def cuts(num_rows, size, rank):
    """Ragged shares: rank r gets twice as many rows as rank r - 1, but the last rank none."""
    shares = [2**r for r in range(size - 1)] + [0] if size > 1 else [1]
    edges = [0, *itertools.accumulate(num_rows * s // sum(shares) for s in shares)]
    edges[-2 if size > 1 else -1] = num_rows
    edges[-1] = num_rows
    return edges[rank], edges[rank + 1]


def join(rank, size, store, seconds=30):
    """Make this process one of a gloo group, with that timeout."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=seconds),
    )


def run_checks(rank, size, store, failures, checks):
    """Run every check(rank, size) in this process, one of a group; for `run_ranks`."""
    join(rank, size, store)
    for check in checks:
        try:
            check(rank, size)
        except BaseException:
            failures.put(f"{check.__name__} on rank {rank} of {size}:\n{traceback.format_exc()}")
            raise
    distributed.destroy_process_group()
