"""One cell of the table: a shape, a dtype, a labelling; the core, the floor and the peers on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

import deeprep
from benchmarks.peers import MAX_PEER_BYTES, PEERS, Peer, Statistics, oracle, refcheck
from benchmarks.shapes import DTypeName, Labelling, Shape, make_features, make_labels, target
from benchmarks.timing import CacheFlush, Floor, median_ratio, once, taking_turns, threads

OUR_TOLERANCE = 1e-5  # the accuracy contract, relative to sumsq
_PEER_REPEATS = 5
_REPEAT_SHARE = 0.3  # of the budget, once a peer's first full call has shown what it takes
_PROBE_SHARES = (64, 16, 4)  # a peer is first tried on these fractions of the rows
_MIN_PROBE_ROWS = 32
_BLOCK_BYTES = 128 * 1024  # kBlockBytes of csrc/plan.h
_CACHED_BYTES = 512 * 1024  # features and state fit in a second-level cache of 1 MiB


@dataclass(frozen=True)
class Timing:
    """Median seconds of an update and of the floor, and the median of their ratios turn by turn."""

    threads: int
    repeats: int
    ours: float
    floor: float
    ratio: float


@dataclass(frozen=True)
class PeerTiming:
    """A competitor's median seconds, or why there are none.

    `status` is "ok", "over budget" (`seconds` is then a lower bound, what `share` of the rows
    took), "memory" (`bytes` is the estimate), "not installed" or "does not apply".
    """

    name: str
    status: str
    seconds: float | None = None
    repeats: int = 0
    share: float = 1.0
    bytes: float | None = None


@dataclass(frozen=True)
class Cell:
    """What was measured on one (shape, dtype, labelling); `single` is with one thread.

    `in_cache` is what the arithmetic alone would take: seconds of as much work on rows that are in
    the second-level cache, shared by all threads.
    """

    shape: Shape
    dtype: DTypeName
    labelling: Labelling
    feature_bytes: int
    target: float
    cold: bool  # the cache was emptied between calls; otherwise the features do not fit in it
    timing: Timing
    single: Timing | None
    in_cache: float | None
    peers: list[PeerTiming]


def measure(
    shape: Shape,
    dtype: DTypeName,
    labelling: Labelling,
    *,
    num_threads: int,
    seconds: float,
    peers: bool,
    budget: float,
    progress: Callable[[str], None],
) -> Cell:
    """Check the core against the reference on this cell, then time everything on it."""
    progress("data")
    labels = make_labels(shape, labelling)
    features = make_features(shape, labels, dtype)
    progress("reference")
    wanted = oracle(features, labels, shape.num_classes)
    refcheck(
        "deeprep", ours_once(features, labels, shape.num_classes), wanted, OUR_TOLERANCE, False
    )

    flush = CacheFlush(shape.bytes(dtype))
    progress("update and floor")
    timing = _time_update(features, labels, shape, flush, num_threads, seconds)
    single, in_cache, peer_timings = None, None, []
    if labelling == "shuffled":
        progress("in the cache")
        in_cache = _time_in_cache(shape, dtype) / num_threads
        if num_threads > 1:
            progress("update and floor, one thread")
            single = _time_update(features, labels, shape, flush, 1, seconds)
        for peer in PEERS if peers else ():
            progress(peer.name)
            with threads(num_threads):
                peer_timings.append(
                    _time_peer(peer, features, labels, shape, dtype, wanted, flush, budget)
                )
    return Cell(
        shape=shape,
        dtype=dtype,
        labelling=labelling,
        feature_bytes=shape.bytes(dtype),
        target=target(shape, dtype),
        cold=flush.needed,
        timing=timing,
        single=single,
        in_cache=in_cache,
        peers=peer_timings,
    )


def ours_once(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    """Statistics of a fresh state after one update, named as a peer names them."""
    s = deeprep.ClassScatter(num_classes, features.shape[1])
    s.update(features, labels)
    return {"counts": s.counts, "means": s.means, "sumsq": s.sumsq}


def _time_update(
    features: Tensor,
    labels: Tensor,
    shape: Shape,
    flush: CacheFlush,
    num_threads: int,
    seconds: float,
) -> Timing:
    state = deeprep.ClassScatter(shape.num_classes, shape.num_features)  # built once
    floor = Floor(features, shape.num_classes)
    with threads(num_threads):
        calls = (floor, lambda: state.update(features, labels))
        floors, ours = taking_turns(calls, seconds, flush=flush)
    return Timing(
        threads=num_threads,
        repeats=len(ours),
        ours=statistics.median(ours),
        floor=statistics.median(floors),
        ratio=median_ratio(ours, floors),
    )


def _time_in_cache(shape: Shape, dtype: DTypeName) -> float:
    """Seconds that one thread would take for the cell if all its rows were in the cache.

    Measured on few rows, as many to a chunk as in the cell: a class's rows in the batch, or in one
    block of it (csrc/plan.h).
    """
    columns = min(shape.num_features, 1024)  # wider rows are visited tile by tile
    row_bytes = shape.bytes(dtype) // shape.num_rows
    rows_per_class = shape.num_rows / shape.num_classes
    rows_per_run = min(rows_per_class, max(32.0, _BLOCK_BYTES / row_bytes / shape.num_classes))
    rows = max(32, _CACHED_BYTES * shape.num_features // (row_bytes * columns))
    cached = Shape(rows, columns, max(1, round(rows / rows_per_run)))
    labels = make_labels(cached, "shuffled")
    features = make_features(cached, labels, dtype)
    state = deeprep.ClassScatter(cached.num_classes, columns)
    with threads(1):
        times = taking_turns([lambda: state.update(features, labels)], 0.2, min_repeats=50)[0]
    share = cached.num_rows * columns / (shape.num_rows * shape.num_features)
    return statistics.median(times) / share


def _time_peer(
    peer: Peer,
    features: Tensor,
    labels: Tensor,
    shape: Shape,
    dtype: DTypeName,
    wanted: Statistics,
    flush: CacheFlush,
    budget: float,
) -> PeerTiming:
    """Try more and more rows, as long as all of them can be expected within the budget."""
    needed = peer.memory(shape, dtype)
    if not peer.applies(shape):
        return PeerTiming(peer.name, "does not apply")
    if not peer.installed:
        return PeerTiming(peer.name, "not installed")
    if needed > MAX_PEER_BYTES:
        return PeerTiming(peer.name, "memory", bytes=needed)

    found: list[Statistics] = []

    def call(rows: int) -> float:
        found.clear()  # what an earlier call returned is not held while the next one runs
        return once(
            lambda: found.append(peer.run(features[:rows], labels[:rows], shape.num_classes)),
            flush,
        )

    peer.warm_up()
    begin = time.perf_counter()
    for share in _PROBE_SHARES:
        rows = shape.num_rows // share
        if rows < _MIN_PROBE_ROWS:
            continue
        taken = call(rows)
        if 4 * taken > budget:  # four times the rows would, or might, take too long
            # What a part of the rows takes is a lower bound; the largest part that fits is best.
            largest = int(shape.num_rows * min(1.0, 0.8 * budget / (share * taken)))
            if largest > rows:
                rows, taken = largest, max(taken, call(largest))
            return PeerTiming(peer.name, "over budget", taken, 1, rows / shape.num_rows)
    first = call(shape.num_rows)
    refcheck(peer.name, found[0], wanted, peer.tolerance, peer.energy)
    left = min(budget - (time.perf_counter() - begin), _REPEAT_SHARE * budget)
    times = [call(shape.num_rows) for _ in range(min(_PEER_REPEATS, int(left / first)))]
    times = times or [first]
    return PeerTiming(peer.name, "ok", statistics.median(times), len(times))
