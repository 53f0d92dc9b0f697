"""What a Monitor costs a training loop, beside the same loop without one.

A turn is ten training steps of ResNet-18 (forward, backward, SGD): bare, with a Monitor that
measures the first of them and reports, and with one that measures none. All take turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import deeprep
from benchmarks.timing import Call, median_ratio, taking_turns, threads

Reduce = Literal["mean", "flatten"]

NUM_CLASSES = 10
EVERY = 10
_BATCH = 64
_IMAGE = 64  # pixels on a side
_TOLERANCE = 1e-5  # of the accuracy contract


@dataclass(frozen=True)
class MonitorOverhead:
    """Seconds of one bare training step, and steps with a Monitor over it, turn by turn.

    `watched` is of every=10 with a report each time, `quartiles` the first and third of its turns;
    `idle` is of a Monitor that is asked before every step and measures none.
    """

    model: str
    device: str
    reduce: Reduce
    batch: int
    every: int
    bare: float
    watched: float
    quartiles: tuple[float, float]
    idle: float


def monitor_overheads(
    num_threads: int, seconds: float, quick: bool = False
) -> Iterator[MonitorOverhead]:
    """Measure on the CPU, and on a GPU if the core can; `quick` takes four images and one turn."""
    devices = [
        "cpu",
        *(["cuda"] if torch.cuda.is_available() and deeprep.build_info()["cuda"] else []),
    ]
    with threads(1 if quick else num_threads):
        for device in devices:
            for reduce in ("mean", "flatten"):
                yield _measure(device, reduce, seconds, quick)


def _measure(device: str, reduce: Reduce, seconds: float, quick: bool) -> MonitorOverhead:
    torch.manual_seed(0)
    batch = 4 if quick else _BATCH
    model = resnet18(num_classes=NUM_CLASSES).to(device)
    images = torch.randn(batch, 3, _IMAGE, _IMAGE).to(device)
    labels = (torch.arange(batch) % NUM_CLASSES).to(device)
    _check(model, reduce, images, labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watched = deeprep.Monitor(model, NUM_CLASSES, reduce=reduce, every=EVERY)
    turn = partial(_ten_steps, model, optimizer, images, labels)
    calls: list[Call] = [turn, partial(turn, watched), partial(turn, watched, first=1)]
    bare, with_monitor, idle = taking_turns(calls, seconds, min_repeats=1 if quick else 15)
    low, high = np.quantile(np.divide(with_monitor, bare), (0.25, 0.75))
    return MonitorOverhead(
        model="ResNet-18",
        device=device,
        reduce=reduce,
        batch=batch,
        every=EVERY,
        bare=statistics.median(bare) / EVERY,
        watched=median_ratio(with_monitor, bare),
        quartiles=(float(low), float(high)),
        idle=median_ratio(idle, bare),
    )


def _ten_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    monitor: deeprep.Monitor | None = None,
    first: int = 0,
) -> None:
    """Train ten steps, numbered from `first`; step 0 is the one that is measured."""
    for step in range(EVERY):
        number = first + step if first + step < EVERY else 1
        context = nullcontext() if monitor is None else monitor.step(labels, number=number)
        with context:
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if monitor is not None:
            report = monitor.report()
            if report is not None:
                report.scalars()
    if images.is_cuda:
        torch.cuda.synchronize()


def _check(model: nn.Module, reduce: Reduce, images: Tensor, labels: Tensor) -> None:
    """Raise unless the last layer's compression is that of the reference, and the blocks there."""
    outputs: list[Tensor] = []
    monitor = deeprep.Monitor(model, NUM_CLASSES, reduce=reduce, every=EVERY)
    handle = model.layer4[-1].register_forward_hook(lambda _, __, output: outputs.append(output))
    with monitor.step(labels):
        model(images)
    handle.remove()
    report = monitor.report()
    if report is None or len(report.layers) != 9:
        raise AssertionError(f"found {report}, expected the input and eight blocks")
    features = outputs[0].detach().double()
    features = features.mean((2, 3)) if reduce == "mean" else features.flatten(1)
    expected = deeprep.reference.compression(features.cpu().numpy(), labels.cpu().numpy())
    found = report.layers[-1].compression
    if found is None or abs(found - expected) > _TOLERANCE * expected:
        raise AssertionError(f"{reduce}: compression is {found}, expected {expected}")
