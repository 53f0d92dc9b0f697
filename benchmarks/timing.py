"""Timing calls against one another on a machine that is never quite quiet.

Calls take turns, so that whatever drifts (clock, neighbours, page placement) hits them alike, and
are compared pair by pair; what is reported is the median. Where the data would fit in the last
cache, a buffer larger than that cache is written between the calls, outside the timed region:
every call then finds its input in memory, as the features of a layer are.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

Call = Callable[[], object]

_MIN_REPEATS = 5
_MAX_REPEATS = 40
_MIN_FLUSH_BYTES = 64 * 2**20


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MiB where the system does not say."""
    sizes = [32 * 2**20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes)


class CacheFlush:
    """Calling it writes a buffer twice the last cache; for data that cannot stay there, nothing."""

    def __init__(self, data_bytes: int) -> None:
        cache = last_level_cache()
        self.needed = data_bytes < 2 * cache
        size = max(_MIN_FLUSH_BYTES, 2 * cache) if self.needed else 0
        self._buffer = torch.zeros(size // 4)

    def __call__(self) -> None:
        """Empty the cache."""
        self._buffer.add_(1.0)


class Floor:
    """Read the features once, and read and write the state once: what an update cannot undercut.

    The read is `torch.sum` of the features, for bfloat16 as the float32 numbers in the same bytes;
    the state is updated by ``means.add_(0)``, K x d float64.
    """

    def __init__(self, features: Tensor, num_classes: int) -> None:
        self._numbers = features.view(torch.float32)
        self._means = torch.zeros(num_classes, features.shape[1], dtype=torch.float64)

    def __call__(self) -> None:
        """Read the features, read and write the means."""
        self._numbers.sum()
        self._means.add_(0)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Set the number of threads of torch, of BLAS and of OpenMP."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def once(call: Call, flush: Call | None = None) -> float:
    """Seconds of one call."""
    if flush is not None:
        flush()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def taking_turns(
    calls: Sequence[Call],
    seconds: float,
    *,
    flush: Call | None = None,
    min_repeats: int = _MIN_REPEATS,
    max_repeats: int = _MAX_REPEATS,
) -> list[list[float]]:
    """Seconds of every repeat of every call, after a warm-up, within about `seconds` altogether."""
    with _no_garbage_collection():
        for call in calls:
            call()
        begin = time.perf_counter()
        first = [
            once(call, flush) for call in calls
        ]  # also says how many repeats there is time for
        turn = time.perf_counter() - begin
        repeats = min(max_repeats, max(min_repeats, int(seconds / turn)))
        times = [[value] for value in first]
        for _ in range(repeats - 1):
            for own, call in zip(times, calls, strict=True):
                own.append(once(call, flush))
    return times


def per_call(calls: Sequence[Call], seconds: float) -> list[list[float]]:
    """`taking_turns` for calls of microseconds: each turn is a loop of them; seconds a call."""
    loops = [max(1, int(2e-3 / min(once(call) for _ in range(5)))) for call in calls]

    def loop(call: Call, number: int) -> Call:
        def run() -> None:
            for _ in range(number):
                call()

        return run

    looped = [loop(call, number) for call, number in zip(calls, loops, strict=True)]
    times = taking_turns(looped, seconds, max_repeats=1000)
    return [[value / number for value in own] for own, number in zip(times, loops, strict=True)]


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Median over turns of time over the other's time in the same turn."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))
