"""Running a model over a loader in eval mode, and leaving it as it was."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from deeprep.probe.reduce import tensors_in

# What torch says where inputs and weights have different types.
_ABOUT_TYPES = re.compile(r"same dtype|should be the same|scalar type|must be Tensor")

Progress = bool | Callable[[int, int | None], None]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients; every module's training flag and the RNGs are restored.

    Flags are set one by one: an overridden `train` or `eval` may do more, such as merging adapters,
    which could not be undone.
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
    """Device of the first parameter or buffer that is not a meta tensor; None without one."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors if not tensor.is_meta), None)


def to_device(value: Any, device: torch.device | None) -> Any:
    """Move every tensor in tuples, lists and mappings; mappings become plain dicts."""
    if isinstance(value, Tensor):
        if device is None:
            return value
        # A copy to the host that does not block could be read before it has arrived.
        return value.to(device, non_blocking=device.type == "cuda")
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(to_device(item, device) for item in value)
    return value


def check_loader(
    loader: Any, again: Mapping[str, bool] | None = None, name: str = "loader"
) -> None:
    """Check that a loader gives batches, and can do so more than once where it must.

    Parameters
    ----------
    loader
        What to check.
    again
        What to do so that it need not be run through again -> whether it must for want of that.
    name
        What an error calls the loader.

    Raises
    ------
    TypeError
        For what cannot be iterated.
    ValueError
        For an iterator where there are several passes.
    """
    kind = "None" if loader is None else f"a {type(loader).__name__}"
    iterable = hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")
    if not iterable or isinstance(loader, str | Mapping | Tensor):
        raise TypeError(f"{name} is {kind}, expected an iterable of (inputs, labels) batches")
    advice = [what for what, needed in (again or {}).items() if needed]
    if advice and hasattr(loader, "__next__"):
        raise ValueError(
            f"{name} is a one-shot iterator, expected an iterable that can be run through twice "
            f"(a list or a DataLoader); or {' and '.join(advice)}"
        )


def check_not_empty(loader: Any, name: str) -> None:
    """Raise a ValueError for a loader that is known to have no batch before it is run through."""
    try:
        batches = len(loader)
    except TypeError:  # a stream
        return
    if batches == 0:
        raise ValueError(f"{name} gave no batch, expected one at least")


def split_batch(batch: Any, name: str = "loader") -> tuple[Any, Any]:
    """(inputs, labels) of what a loader gave: a pair, or a mapping that holds its labels too."""
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        key = next((key for key in ("labels", "label") if key in inputs), None)
        if key is None:
            raise ValueError(
                f"{name} gave a mapping with the keys {', '.join(map(str, inputs))}, expected "
                "'labels' or 'label' among them"
            )
        labels = inputs.pop(key)
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, labels = batch
    else:
        kind = "None" if batch is None else f"a {type(batch).__name__}"
        length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        hint = "several inputs go as ((a, b), labels)"
        if isinstance(batch, Tensor):
            hint = "a single batch goes as [(inputs, labels)]"
        raise ValueError(
            f"{name} gave {kind}{length}, expected (inputs, labels) or a mapping with 'labels'; "
            f"{hint}"
        )
    if isinstance(labels, Number) or (isinstance(labels, Tensor) and labels.ndim == 0):
        raise ValueError(
            f"{name} gave a sample with the label {labels}, as a data set does, expected batches "
            "with labels (N,): torch.utils.data.DataLoader(dataset, batch_size=128)"
        )
    return inputs, labels


@contextlib.contextmanager
def naming(loader: str) -> Iterator[None]:
    """Say in errors of a batch which loader gave it, unless it is the one called just so."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if loader == "loader" or str(error).startswith(loader):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{loader}: {error}") from error


@contextlib.contextmanager
def understood_errors(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Say of an error of the model's what it comes from: inputs of another type than it takes.

    Only afterwards, for a model may well convert its inputs itself.
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:
        wrong = _wrong_type(model, inputs)
        said = str(error)
        if wrong is None or not _ABOUT_TYPES.search(said) or "indices" in said:  # of an embedding
            raise
        raise TypeError(f"{wrong} ({said.splitlines()[0]})") from error


def _wrong_type(model: nn.Module, inputs: Any) -> str | None:
    """What is wrong with the type of inputs, if anything."""
    tensors = list(tensors_in(inputs))
    if not tensors:
        kind = "None" if inputs is None else f"a {type(inputs).__name__}"
        return f"inputs is {kind}, expected a tensor, a tuple of tensors or a mapping of them"
    weights = {p.dtype: None for p in model.parameters() if p.is_floating_point()}
    real = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    if not real and not any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules()):
        real = [tensors[0].dtype]  # such as images of uint8
    if not weights or not real or not weights.keys().isdisjoint(real):
        return None
    wanted = " or ".join(map(str, weights))
    return f"inputs has dtype {real[0]}, expected {wanted}, that of the model's weights"


@contextlib.contextmanager
def counting(progress: Progress, *passes: Iterable[Any]) -> Iterator[Callable[[], None]]:
    """Yield what to call after every batch: it shows or reports how many of them are done.

    `passes` holds the loader of each pass.
    """
    done = itertools.count(1)
    try:
        total: int | None = sum(len(loader) for loader in passes)  # type: ignore[arg-type, misc]
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
