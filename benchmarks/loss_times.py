"""A loss of the class moments, forward and backward, against reads of the features and autograd."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn.functional import one_hot

import deeprep
from benchmarks.shapes import DTYPES, DTypeName, Shape, make_features, make_labels
from benchmarks.timing import CacheFlush, Floor, median_ratio, taking_turns, threads

SHAPES = (Shape(512, 4096, 10), Shape(8192, 512, 100), Shape(8192, 2048, 1000))
_TOLERANCES: dict[DTypeName, float] = {"float32": 1e-5, "bfloat16": 2e-2}

Moments = tuple[Tensor, Tensor]  # means (K, d) and sums of squares (K,)


@dataclass(frozen=True)
class LossTime:
    """Seconds of forward + backward of compression; ratios are to `ours`' turns."""

    shape: Shape
    dtype: DTypeName
    ours: float
    moments: float  # class_moments alone, forward + backward
    reads: float  # the same two reads of the features
    one_hot: float  # autograd through one-hot products, in the dtype of the features
    over_reads: float  # moments over reads, turn by turn
    gain: float  # one_hot over moments, turn by turn


def loss_times(num_threads: int, seconds: float, quick: bool) -> Iterator[LossTime]:
    """Time training batches of each shape."""
    for full_shape in SHAPES:
        shape = Shape(60, 20, 5) if quick else full_shape
        for dtype in DTYPES:
            yield _measure(shape, dtype, num_threads, seconds)


def _measure(shape: Shape, dtype: DTypeName, num_threads: int, seconds: float) -> LossTime:
    labels = make_labels(shape, "shuffled")
    features = make_features(shape, labels, dtype).requires_grad_()
    classes = shape.num_classes
    ours = partial(_our_moments, features, labels, classes)
    theirs = partial(_one_hot_moments, features, labels, classes)
    _check(ours, features, labels, classes, dtype)
    floor = Floor(features.detach(), classes)

    def reads() -> None:
        floor()
        floor()

    def loss() -> None:
        features.grad = None
        deeprep.losses.compression(features, labels, classes).backward()

    calls = (loss, partial(_step, ours, features), reads, partial(_step, theirs, features))
    with threads(num_threads):
        flush = CacheFlush(shape.bytes(dtype))
        whole, moments, floors, products = taking_turns(calls, seconds, flush=flush)
    return LossTime(
        shape=shape,
        dtype=dtype,
        ours=statistics.median(whole),
        moments=statistics.median(moments),
        reads=statistics.median(floors),
        one_hot=statistics.median(products),
        over_reads=median_ratio(moments, floors),
        gain=median_ratio(products, moments),
    )


def _our_moments(features: Tensor, labels: Tensor, classes: int) -> Moments:
    _, means, sumsq = deeprep.class_moments(features, labels, classes)
    return means, sumsq


def _one_hot_moments(features: Tensor, labels: Tensor, classes: int) -> Moments:
    """What one writes by hand: two products with the one-hot labels, and the means gathered."""
    members = one_hot(labels, classes).to(features.dtype)
    means = members.T @ features / members.sum(0).clamp(min=1).unsqueeze(1)
    deviations = (features - members @ means).square().sum(1)
    return means, members.T @ deviations


def _step(moments: Callable[[], Moments], features: Tensor) -> None:
    features.grad = None
    means, sumsq = moments()
    (means.sum() + sumsq.sum()).backward()


def _check(
    moments: Callable[[], Moments],
    features: Tensor,
    labels: Tensor,
    classes: int,
    dtype: DTypeName,
) -> None:
    """Raise unless the gradient is that of autograd in float64."""
    _step(moments, features)
    found = features.grad
    exact = features.detach().double().requires_grad_()
    _step(partial(_one_hot_moments, exact, labels, classes), exact)
    assert found is not None
    assert exact.grad is not None
    error = float((found.double() - exact.grad).abs().max() / exact.grad.abs().max())
    if not error <= _TOLERANCES[dtype]:
        raise AssertionError(f"the gradient is off by {error}, expected <= {_TOLERANCES[dtype]}")
