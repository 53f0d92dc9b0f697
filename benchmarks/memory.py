"""Memory of a call, measured in a process of its own, where nothing else has ever been allocated.

The peak is VmHWM and not ru_maxrss: that one also counts the parent before exec. Where there is no
/proc, None stands for it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.timing import Call

T = TypeVar("T")


def in_fresh_process(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of a module in a process that has only just begun, and return what it does.

    Blocks of 64 KiB go back to the system there as soon as they are freed, so that the peak is what
    was in use, and not what the allocator kept.
    """
    context = multiprocessing.get_context("spawn")
    with (
        _environment(MALLOC_MMAP_THRESHOLD_="65536"),
        ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        return pool.submit(function, *arguments).result()


def extra_memory(num_threads: int, prepare: Callable[..., Call], *arguments: object) -> int | None:
    """Bytes by which calling what `prepare(*arguments)` returns raises the peak of its process."""
    return in_fresh_process(_peak_growth, num_threads, prepare, *arguments)


def peak_growth(call: Call) -> int | None:
    """Bytes by which a call raises the resident memory of this process, at its peak."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _peak_bytes()
    call()
    return _peak_bytes() - before


def _peak_growth(num_threads: int, prepare: Callable[..., Call], *arguments: object) -> int | None:
    torch.set_num_threads(num_threads)
    return peak_growth(prepare(*arguments))


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables that processes started meanwhile inherit."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
