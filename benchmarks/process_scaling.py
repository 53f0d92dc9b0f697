"""One data set split over processes: how long their updates and `all_reduce` take, and how exact.

Every process has one thread and its share of the rows, and talks to the others through gloo on this
machine; with more processes than cores they only take turns. What counts is the slowest of them.

`python -m benchmarks.process_scaling --dry-run` says what a state of many classes will take, and
without ``--dry-run`` it is made and reduced, and what it took stands beside.
"""

from __future__ import annotations

import datetime
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import tyro
from torch import Tensor, distributed

import deeprep
from benchmarks.layout import bytes_text, seconds_text
from benchmarks.memory import peak_growth
from benchmarks.shapes import Shape, make_features, make_labels
from deeprep.base.machine import available_cores
from deeprep.sharded import Plan, plan, reduce_scatter

NUM_PROCESSES = (1, 2, 4)
DATA = Shape(200_000, 512, 100)
# Of how many layers, all reduced at once, and of which shape.
STATES = (
    (1, Shape(0, 512, 10)),
    (12, Shape(0, 512, 10)),
    (1, Shape(0, 2048, 1000)),
    (1, Shape(0, 1024, 10_000)),
)
_EXACTNESS_DATA = Shape(20_000, 64, 11)
_EXACTNESS_DTYPES = (torch.float64, torch.float32)
_REPEATS = 7
_TIMEOUT = datetime.timedelta(seconds=600)
_RATE_ENTRIES = 1 << 22  # of the tensor whose all_reduce measures the network, 32 MiB

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessScaling:
    """Median seconds of the slowest process, and how far the result is from one process's.

    The differences are the largest over classes: of the mean over its length, of sumsq over itself,
    for float64 and for float32 features, whose chunks depend on the split.
    """

    shape: Shape
    num_processes: int
    num_cores: int
    update: float
    all_reduce: float
    means_float64: float
    sumsq_float64: float
    means_float32: float
    sumsq_float32: float


@dataclass(frozen=True)
class ReduceTime:
    """Median seconds of all_reduce of such states, of one read of them, and of a bare all_reduce.

    The bare one is `torch.distributed.all_reduce` of the means of all layers in one float64 tensor.
    """

    num_layers: int
    shape: Shape
    num_processes: int
    num_cores: int
    state_bytes: int
    all_reduce: float
    bare_all_reduce: float
    read: float


def process_scalings(quick: bool = False) -> Iterator[ProcessScaling]:
    """Measure one data set on each number of processes; `quick` takes a small one, once, on two."""
    shape = DATA.quick() if quick else DATA
    alone: list[_State] = []
    for size in NUM_PROCESSES[:2] if quick else NUM_PROCESSES:
        found = _run(size, _split, shape, 1 if quick else _REPEATS)
        alone = alone or found[0].states
        double, single = (
            [_difference(rank.states[i], alone[i]) for rank in found]
            for i in range(len(_EXACTNESS_DTYPES))
        )
        yield ProcessScaling(
            shape=shape,
            num_processes=size,
            num_cores=available_cores(),
            update=_slowest([rank.updates for rank in found]),
            all_reduce=_slowest([rank.reduces for rank in found]),
            means_float64=max(means for means, _ in double),
            sumsq_float64=max(sumsq for _, sumsq in double),
            means_float32=max(means for means, _ in single),
            sumsq_float32=max(sumsq for _, sumsq in single),
        )


def reduce_times(quick: bool = False) -> Iterator[ReduceTime]:
    """Time `all_reduce` alone, of states of several sizes."""
    states = ((2, Shape(0, 16, 10)),) if quick else STATES
    for size in NUM_PROCESSES[1:2] if quick else NUM_PROCESSES[1:]:
        found = _run(size, _reduce_alone, states, 1 if quick else _REPEATS)
        for i, (layers, shape) in enumerate(states):
            ours, bare, read = (_slowest([rank[i][j] for rank in found]) for j in range(3))
            num_bytes = layers * shape.state_bytes
            yield ReduceTime(layers, shape, size, available_cores(), num_bytes, ours, bare, read)


def _slowest(of_ranks: list[list[float]]) -> float:
    """Median over repeats of the time of the slowest rank."""
    return float(statistics.median(max(times) for times in zip(*of_ranks, strict=True)))


def _difference(found: _State, expected: _State) -> tuple[float, float]:
    """Largest relative difference of a class's mean and of its sum of squares."""
    if not torch.equal(found.counts, expected.counts):
        raise AssertionError(
            f"counts are {found.counts.tolist()}, expected {expected.counts.tolist()}"
        )
    lengths = torch.linalg.vector_norm(expected.means, dim=1)
    means = torch.linalg.vector_norm(found.means - expected.means, dim=1) / lengths
    sumsq = (found.sumsq - expected.sumsq).abs() / expected.sumsq
    return float(means.max()), float(sumsq.max())


# --------------------------------------------------------------------- one large state


@dataclass(frozen=True)
class Settings:
    """A state of many classes, merged over the processes of this machine."""

    dry_run: bool = False
    """Only plan; all that is allocated is 32 MiB a process, to measure the network."""
    num_classes: int = 100_000
    num_features: int = 4096
    num_processes: int = 4
    full: bool = False
    """Also the pooled (d, d) scatter."""


class Reduction(NamedTuple):
    """What one kind of reduction took in a process: seconds, and bytes beyond the state."""

    seconds: float
    peak: int | None  # None: the system does not tell


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan a reduction, and carry it out unless it is a dry run."""
    settings = tyro.cli(Settings, args=arguments, description=__doc__)
    found = plan(settings.num_classes, settings.num_features, settings.num_processes, settings.full)
    rate = min(_run(found.num_processes, _rate))
    print(
        f"K = {found.num_classes:,}, d = {found.num_features:,}, {found.num_processes} processes, "
        f"{available_cores()} cores: {bytes_text(found.state_bytes)} a process, "
        f"{bytes_text(found.share_bytes)} afterwards; all_reduce moves {rate / 1e9:.2f} GB/s"
    )
    took = (
        []
        if settings.dry_run
        else list(zip(*_run(found.num_processes, _reduce, found), strict=True))
    )
    for number, (name, sent, peak) in enumerate(
        (
            ("reduce_scatter", found.reduce_scatter_sent, found.reduce_scatter_peak),
            ("all_reduce", found.all_reduce_sent, found.all_reduce_peak),
        )
    ):
        line = (
            f"{name}: {bytes_text(sent)} sent by each, {seconds_text(sent / rate)} at that rate, "
            f"{bytes_text(peak)} at the peak"
        )
        if took:
            seconds = max(each.seconds for each in took[number])
            peaks = [each.peak for each in took[number] if each.peak is not None]
            beyond = bytes_text(found.state_bytes + max(peaks)) if peaks else "unknown"
            line += f"; it took {seconds_text(seconds)} and {beyond}"
        print(line)
    return 0


def _rate() -> float:
    """Bytes a second that a process sends, and receives, in a bare all_reduce: the best of some."""
    size = distributed.get_world_size()
    numbers = torch.zeros(_RATE_ENTRIES, dtype=torch.float64)
    fastest = min(_timed(lambda: distributed.all_reduce(numbers)) for _ in range(_REPEATS))
    return 2 * (size - 1) / size * numbers.nbytes / fastest


def _reduce(found: Plan) -> tuple[Reduction, Reduction]:
    """Make a state of the constant features `rank` and reduce it in both ways."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    s = deeprep.ClassScatter(found.num_classes, found.num_features, full=found.full)
    s.means.fill_(rank)
    s.counts.fill_(10)
    s.unit_roundoff = 2.0**-24
    if s._pooled_scatter is not None:
        s._pooled_scatter.fill_(1.0)
    mean = (size - 1) / 2
    sumsq = 10.0 * found.num_features * sum((other - mean) ** 2 for other in range(size))

    def check(state: deeprep.ClassScatter) -> None:
        # Of the ends, which take no memory.
        ends = [*state.means.aminmax(), *(state.sumsq - sumsq + mean).aminmax()]
        error = max(abs(float(end) - mean) for end in ends)
        if int(state.counts.min()) != 10 * size or error > 1e-9 * sumsq:
            raise AssertionError(f"{state} is not the merged state")

    kept = []
    scattered = _reduction(lambda: kept.append(reduce_scatter(s)))
    check(kept.pop().share)
    reduced = _reduction(s.all_reduce)
    check(s)
    return scattered, reduced


def _reduction(call: Callable[[], object]) -> Reduction:
    seconds: list[float] = []
    peak = peak_growth(lambda: seconds.append(_timed(call)))
    return Reduction(seconds[0], peak)


# --------------------------------------------------------------------- processes


class _State(NamedTuple):
    counts: Tensor
    means: Tensor
    sumsq: Tensor


class _Found(NamedTuple):
    """What one process finds: seconds of each repeat, and the merged state for each dtype."""

    updates: list[float]
    reduces: list[float]
    states: list[_State]


def _run(size: int, task: Callable[..., T], *arguments: object) -> list[T]:
    """Return what the task returns in each of `size` processes of one group."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(size, mp_context=context) as pool,
    ):
        place = Path(folder) / "rendezvous"
        # No process finishes before all have begun, so each gets one rank.
        ranks = [pool.submit(_as_rank, rank, size, place, task, arguments) for rank in range(size)]
        return [rank.result() for rank in ranks]


def _as_rank(
    rank: int, size: int, place: Path, task: Callable[..., T], arguments: tuple[object, ...]
) -> T:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{place}", rank=rank, world_size=size, timeout=_TIMEOUT
    )
    try:
        return task(*arguments)
    finally:
        distributed.destroy_process_group()


def _share(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the features and labels of this process."""
    labels = make_labels(shape, "shuffled")
    features = make_features(shape, labels, "float32")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    rows = slice(rank * len(labels) // size, (rank + 1) * len(labels) // size)
    return features[rows].to(dtype, copy=True), labels[rows].clone()


def _timed(call: Callable[[], object]) -> float:
    distributed.barrier()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _split(shape: Shape, repeats: int) -> _Found:
    features, labels = _share(shape, torch.float32)
    s = deeprep.ClassScatter(shape.num_classes, shape.num_features)
    updates, reduces = [], []
    for _ in range(1 + repeats):
        s.reset()
        updates.append(_timed(lambda: s.update(features, labels)))
        reduces.append(_timed(s.all_reduce))
    if s.num_samples != shape.num_rows:
        raise AssertionError(f"{s.num_samples} samples, expected {shape.num_rows}")
    states = [_merged_state(_EXACTNESS_DATA, dtype) for dtype in _EXACTNESS_DTYPES]
    return _Found(updates[1:], reduces[1:], states)  # without the warm-up


def _merged_state(shape: Shape, dtype: torch.dtype) -> _State:
    features, labels = _share(shape, dtype)
    s = deeprep.ClassScatter(shape.num_classes, shape.num_features)
    s.update(features, labels)
    s.all_reduce()
    return _State(s.counts, s.means, s.sumsq)


def _reduce_alone(states: Sequence[tuple[int, Shape]], repeats: int) -> list[list[list[float]]]:
    """Seconds of all_reduce, of the bare one and of a read, for each kind of states."""
    return [_reduce_states(layers, shape, repeats) for layers, shape in states]


def _reduce_states(num_layers: int, shape: Shape, repeats: int) -> list[list[float]]:
    generator = torch.Generator().manual_seed(distributed.get_rank())
    states = {
        f"layer {number}": deeprep.ClassScatter(shape.num_classes, shape.num_features)
        for number in range(num_layers)
    }
    for s in states.values():
        s.means.normal_(generator=generator)
    bare = torch.cat([s.means for s in states.values()])
    times = []
    for _ in range(1 + repeats):
        for s in states.values():
            s.counts.fill_(10)
            s.sumsq.fill_(9.0 * shape.num_features)
        ours = _timed(lambda: deeprep.all_reduce_layers(states))
        torch.cat([s.means for s in states.values()], out=bare)
        times.append((ours, _timed(lambda: distributed.all_reduce(bare)), _timed(bare.sum)))
    return [list(each) for each in zip(*times[1:], strict=True)]  # without the warm-up


if __name__ == "__main__":
    sys.exit(main())
