"""Running a model over a loader in eval mode, and leaving it as it was."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Progress = bool | Callable[[int, int | None], None]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients; every module's training flag and the RNGs are restored.

    Flags are set one by one: what an overridden `train` or `eval` does besides (merging adapters,
    say) could not be undone.
    """
    was_training = [(module, module.training) for module in model.modules()]
    # A GPU that was never used has no state to keep, and asking for it would initialise it.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        for module, _ in was_training:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for module, training in was_training:
            module.training = training


def weights_device(model: nn.Module) -> torch.device | None:
    """Device of the first parameter or buffer that is anywhere; None where there is none."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors if not tensor.is_meta), None)


def to_device(value: Any, device: torch.device | None) -> Any:
    """Move every tensor in tuples, lists and mappings; mappings become plain dicts."""
    if isinstance(value, Tensor):
        if device is None:
            return value
        # Copies to the host that do not wait would be read before they are there.
        return value.to(device, non_blocking=device.type == "cuda")
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(to_device(item, device) for item in value)
    return value


def check_loader(loader: Any, passes: int = 1) -> None:
    """Check that a loader gives batches, and can do so as often as the model is to run.

    Raises
    ------
    TypeError
        For what cannot be iterated.
    ValueError
        For an iterator where there are several passes.
    """
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        kind = "None" if loader is None else f"a {type(loader).__name__}"
        raise TypeError(f"loader is {kind}, expected an iterable of (inputs, labels) batches")
    if passes > 1 and hasattr(loader, "__next__"):
        raise ValueError(
            "loader is a one-shot iterator, expected an iterable that can be run through twice "
            "(a list or a DataLoader); or pass accuracy=False"
        )


def split_batch(batch: Any) -> tuple[Any, Any]:
    """(inputs, labels) of what a loader gave: a pair, or a mapping that holds its labels too."""
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        for key in ("labels", "label"):
            if key in inputs:
                return inputs, inputs.pop(key)
        raise ValueError(
            f"loader gave a mapping with the keys {', '.join(map(str, inputs))}, expected 'labels' "
            "or 'label' among them"
        )
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise ValueError(
            f"loader gave a {type(batch).__name__}{length}, expected (inputs, labels) or a mapping "
            "with 'labels'; several inputs go as ((a, b), labels)"
        )
    return batch[0], batch[1]


@contextlib.contextmanager
def counting(
    progress: Progress, loader: Iterable[Any], passes: int = 1
) -> Iterator[Callable[[], None]]:
    """Yield what to call after every batch: it shows or reports how many of them are done."""
    done = itertools.count(1)
    try:
        total: int | None = passes * len(loader)  # type: ignore[arg-type]
    except TypeError:  # a stream
        total = None
    if callable(progress):
        yield lambda: progress(next(done), total)
    elif not progress:
        yield lambda: None
    else:
        with _bar(total) as advance:
            yield advance


@contextlib.contextmanager
def _bar(total: int | None) -> Iterator[Callable[[], None]]:
    """A bar on stderr, or nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = ("batches", MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)
