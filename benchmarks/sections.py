"""The other measurements: small updates, the d x d scatter, and the metrics that cost something."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

import deeprep
from benchmarks.memory import extra_memory
from benchmarks.shapes import Shape, make_features, make_labels
from benchmarks.timing import (
    Call,
    Floor,
    median_ratio,
    once,
    per_call,
    taking_turns,
    threads,
)
from deeprep import metrics

SMALL_SHAPES = (Shape(128, 512, 10), Shape(256, 4096, 1000))
_SMALL_OVERHEAD = 20e-6  # seconds that a call may cost besides 1.5 floors
_TILE = 2048  # classes on a side of one tile of the K x K product


@dataclass(frozen=True)
class SmallUpdate:
    """Seconds of one `ClassScatter.update` of a training batch in the cache, and its target."""

    shape: Shape
    ours: float
    floor: float
    target: float


@dataclass(frozen=True)
class FullUpdate:
    """Seconds of an update with full=True against the d x d product alone, and its extra memory."""

    shape: Shape
    ours: float
    numpy_product: float
    torch_product: float
    ratio: float  # to the faster product, turn by turn
    extra_bytes: int | None  # beyond features and state; None: this system does not tell
    feature_bytes: int


@dataclass(frozen=True)
class MetricTime:
    """Seconds of one metric of a given state, against a product or decomposition of that size."""

    metric: str
    num_classes: int
    num_features: int
    ours: float
    yardstick: str
    yardstick_seconds: float
    extra_bytes: int | None


def small_updates(num_threads: int, seconds: float) -> list[SmallUpdate]:
    """Time the whole Python call, as a training loop makes it batch after batch."""
    results = []
    for shape in SMALL_SHAPES:
        labels = make_labels(shape, "shuffled")
        features = make_features(shape, labels, "float32")
        state = deeprep.ClassScatter(shape.num_classes, shape.num_features)
        update = partial(state.update, features, labels)
        with threads(num_threads):
            floors, ours = per_call((Floor(features, shape.num_classes), update), seconds)
        floor = statistics.median(floors)
        results.append(
            SmallUpdate(shape, statistics.median(ours), floor, _SMALL_OVERHEAD + 1.5 * floor)
        )
    return results


def full_updates(num_threads: int, seconds: float, quick: bool) -> list[FullUpdate]:
    """Time `update` with the d x d scatter against NumPy's X.T @ X (SYRK) and torch.mm(X.T, X)."""
    widths = (64, 100) if quick else (512, 1024, 2048, 4096)
    results = []
    for width in widths:
        shape = Shape(1000 if quick else 20_000, width, 10)
        labels = make_labels(shape, "shuffled")
        features = make_features(shape, labels, "float32")
        state = deeprep.ClassScatter(shape.num_classes, width, full=True)
        calls = (
            partial(state.update, features, labels),
            partial(_numpy_product, features.numpy()),
            partial(_torch_product, features),
        )
        with threads(num_threads):
            ours, numpy_times, torch_times = taking_turns(calls, seconds, min_repeats=3)
        best = min((numpy_times, torch_times), key=statistics.median)
        results.append(
            FullUpdate(
                shape=shape,
                ours=statistics.median(ours),
                numpy_product=statistics.median(numpy_times),
                torch_product=statistics.median(torch_times),
                ratio=median_ratio(ours, best),
                extra_bytes=extra_memory(num_threads, prepare_full_update, shape),
                feature_bytes=shape.bytes("float32"),
            )
        )
    return results


def metric_times(num_threads: int, quick: bool) -> list[MetricTime]:
    """Time metrics at sizes where they could hurt: minutes, unless quick."""
    with threads(num_threads):
        return [*_full_metrics(quick), *_pair_metrics(num_threads, quick)]


def _both_ranks(s: deeprep.ClassScatter) -> tuple[int, float]:
    sigma = metrics.singular_values(s)
    return metrics.numerical_rank(sigma), metrics.effective_rank(sigma)


def _full_metrics(quick: bool) -> list[MetricTime]:
    shape = Shape(500, 64, 10) if quick else Shape(20_000, 4096, 1000)
    labels = make_labels(shape, "shuffled")
    s = deeprep.ClassScatter(shape.num_classes, shape.num_features, full=True)
    s.update(make_features(shape, labels, "float32"), labels)
    scatter = s.pooled_scatter
    eigh = once(lambda: torch.linalg.eigh(scatter))
    measured = {
        "nc1": lambda: metrics.nc1(s),
        "both ranks": lambda: _both_ranks(s),
        "probe": lambda: metrics.probe(s),
    }
    times = {name: once(call) for name, call in measured.items()}
    times["all of them"] = sum(times.values())
    return [
        MetricTime(
            name,
            shape.num_classes,
            shape.num_features,
            value,
            "torch.linalg.eigh, d x d float64",
            eigh,
            None,
        )
        for name, value in times.items()
    ]


def _pair_metrics(num_threads: int, quick: bool) -> list[MetricTime]:
    shape = Shape(0, 32, 300) if quick else Shape(0, 1024, 50_000)
    s = _state_of_means(shape)
    product = once(lambda: _tiled_product(s.means))
    return [
        MetricTime(
            name,
            shape.num_classes,
            shape.num_features,
            once(partial(getattr(metrics, name), s)),
            "K x K x d float64 product in tiles",
            product,
            extra_memory(num_threads, prepare_pair_metric, shape, name),
        )
        for name in ("discrimination", "cdnv")
    ]


def _numpy_product(rows: np.ndarray) -> object:
    return rows.T @ rows


def _torch_product(rows: torch.Tensor) -> torch.Tensor:
    return torch.mm(rows.T, rows)


def _state_of_means(shape: Shape) -> deeprep.ClassScatter:
    """State of ten samples a class around Gaussian means, without ever seeing the samples."""
    s = deeprep.ClassScatter(shape.num_classes, shape.num_features)
    s.means.normal_(generator=torch.Generator().manual_seed(0))
    s.counts.fill_(10)
    s.sumsq.fill_(9.0 * shape.num_features)
    return s


def _tiled_product(means: torch.Tensor) -> None:
    """All of means @ means.T, a tile at a time, each forgotten before the next."""
    for rows in means.split(_TILE):
        for others in means.split(_TILE):
            torch.mm(rows, others.T)


# ------------------------------------------------------------------------ memory


def prepare_full_update(shape: Shape) -> Call:
    """Return the call whose memory counts; features and state exist before it."""
    labels = make_labels(shape, "shuffled")
    state = deeprep.ClassScatter(shape.num_classes, shape.num_features, full=True)
    return partial(state.update, make_features(shape, labels, "float32"), labels)


def prepare_pair_metric(shape: Shape, name: str) -> Call:
    """Return the call whose memory counts; the state exists before it."""
    s = _state_of_means(shape)
    getattr(metrics, name)(_state_of_means(Shape(0, 8, 8)))  # loads what loads only once
    return partial(getattr(metrics, name), s)
