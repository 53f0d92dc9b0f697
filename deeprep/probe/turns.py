"""The memory of the states of many classes, told before there are any, and layers in turns.

A state has a mean in float64 of each class: of 32,000 tokens and 4,096 features, 1 GiB a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from deeprep.base.machine import free_memory
from deeprep.base.validate import check_positive
from deeprep.base.warn import warn
from deeprep.report import LayerReport
from deeprep.report.notes import of_turns
from deeprep.sharded import plan

# From so many classes on, the memory is looked at before anything is allocated, which takes a run
# of the model on one batch.
MANY_CLASSES = 8192
_TOLD_BYTES = 2**30


class LayerSize(NamedTuple):
    """What the state of a layer will be.

    Attributes
    ----------
    num_features
        d.
    full
        Whether it has the d x d scatter too.
    device
        Where it is.
    """

    num_features: int
    full: bool
    device: torch.device


def state_bytes(num_classes: int, size: LayerSize) -> int:
    """Bytes of a layer's state, and of what an update of a full one takes besides.

    >>> state_bytes(32_000, LayerSize(4096, False, torch.device("cpu"))) / 2**30
    0.977...
    """
    state = plan(num_classes, size.num_features, 1, size.full).state_bytes
    # A full state takes each batch into another one, and merges that.
    return 2 * state if size.full else state


def check_memory(num_classes: int, sizes: Mapping[str, LayerSize]) -> None:
    """Warn of states of more than 1 GiB, before they are allocated.

    Raises
    ------
    ValueError
        Where they take more than is free.
    """
    needed: dict[torch.device, list[int]] = {}
    for size in sizes.values():
        needed.setdefault(size.device, []).append(state_bytes(num_classes, size))
    for device, layers in needed.items():
        free = available_memory(device)
        told = (
            f"the states of {len(layers)} layers take {_show(sum(layers))} on {device}, up to "
            f"{_show(max(layers))} a layer of {num_classes} classes"
        )
        if free is not None and sum(layers) > free:
            raise ValueError(
                f"{told}, expected no more than the {_show(free)} that are free; choose fewer "
                "layers (layers=), or measure them in turns (max_memory=); take fewer classes "
                "(TokenLabels(most_frequent=...)); or share the classes among processes "
                "(deeprep.sharded)"
            )
        if sum(layers) > _TOLD_BYTES:
            rest = "" if free is None else f", of {_show(free)} that are free"
            warn(f"{told}{rest}; max_memory= measures layers in turns")


def layers_in_turns(
    num_classes: int, sizes: Mapping[str, LayerSize], max_memory: int
) -> list[list[str]]:
    """Names of the layers of each pass, in order, whose states take no more than `max_memory`.

    Raises
    ------
    ValueError
        Where a single layer takes more.

    Examples
    --------
    >>> sizes = {name: LayerSize(998, False, torch.device("cpu")) for name in ("a", "b", "c")}
    >>> layers_in_turns(1000, sizes, 16_000_000)
    [['a', 'b'], ['c']]
    """
    limit = check_positive("max_memory", max_memory)
    turns: list[list[str]] = []
    taken = limit
    for name, size in sizes.items():
        needed = state_bytes(num_classes, size)
        if needed > limit:
            raise ValueError(
                f"max_memory is {limit}, expected at least the {needed} bytes ({_show(needed)}) of "
                f"layer {name!r}: {num_classes} classes of {size.num_features} features"
            )
        if taken + needed > limit:
            turns.append([])
            taken = 0
        turns[-1].append(name)
        taken += needed
    return turns


def one_report(reports: Sequence[LayerReport]) -> LayerReport:
    """The reports of all turns as one, layers numbered from 0."""
    layers = [layer for report in reports for layer in report.layers]
    told = [([layer.name for layer in r.layers], r.warnings) for r in reports]
    tests = [report.test for report in reports if report.test is not None]
    return dataclasses.replace(
        reports[0],
        test=one_report(tests) if tests else None,
        layers=[dataclasses.replace(layer, index=index) for index, layer in enumerate(layers)],
        warnings=of_turns(told),
    )


def available_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where the system does not tell.

    >>> (available_memory(torch.device("cpu")) or 1) > 0
    True
    """
    if device.type == "cuda":
        # What torch keeps for itself is free to it too.
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return free_memory()


def _show(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**27 else f"{number / 2**20:.1f} MiB"
