"""Weights from files: state dicts as PyTorch and safetensors write them, fitted to a model.

Only tensors are ever read: a file that holds code is refused.
"""

from __future__ import annotations

import glob
import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.nn.parameter import is_lazy

from deeprep.base.paths import natural_order

__all__ = ["fit_state", "listed", "load_state", "num_outputs_of", "read_state", "weight_files"]

# The keys of the weights in trainers' checkpoints, which hold more than them.
_NESTED = ("model", "state_dict", "model_state_dict", "module")
# The prefixes that wrappers put before every name: DDP, torch.compile, Lightning, `FittedImages`.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
_MAX_LISTED = 4


def weight_files(sources: Sequence[str | Path]) -> list[Path]:
    """Return the files and folders that paths and globs stand for, in natural order, each once.

    Raises
    ------
    FileNotFoundError
        A path that does not exist, or a glob that matches nothing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for epoch in (2, 10):
    ...         _ = Path(folder, f"epoch-{epoch}.pt").write_bytes(b"")
    ...     [path.name for path in weight_files([f"{folder}/*.pt"])]
    ['epoch-2.pt', 'epoch-10.pt']
    """
    found: list[str] = []
    for source in map(os.path.expanduser, map(str, sources)):
        matches = [source] if os.path.exists(source) else glob.glob(source, recursive=True)
        if not matches:
            missing = "matches no file" if glob.has_magic(source) else "does not exist"
            raise FileNotFoundError(f"weights {source} {missing}")
        found += matches
    return list(dict.fromkeys(map(Path, sorted(found, key=natural_order))))


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file, on the CPU.

    Parameters
    ----------
    path
        A .safetensors file, or one that `torch.save` wrote: a state dict, or a dict that holds one
        under "model", "state_dict", "model_state_dict" or "module".

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        A file that is damaged, holds anything but tensors and plain data, or holds no state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} is not a file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"weights {path} is damaged or holds more than tensors; code is never loaded: save "
            "model.state_dict(), not the model"
        ) from error
    except Exception as error:  # whatever unpickling raises on bytes that mean something else
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"weights {path} is damaged or holds no state dict ({reason})") from error
    return _innermost(path, content)


def _innermost(path: Path, content: Any) -> dict[str, Tensor]:
    """Find the state dict in what a file holds."""
    outer: list[Any] = []  # a damaged file may hold itself
    while isinstance(content, Mapping) and not any(content is each for each in outer):
        outer.append(content)
        content = next(
            (content[k] for k in _NESTED if isinstance(content.get(k), Mapping)), content
        )
    if isinstance(content, Mapping) and any(isinstance(v, Tensor) for v in content.values()):
        return {str(name): value for name, value in content.items()}
    found = type(content).__name__
    if isinstance(content, Mapping):
        found += f" with {listed(map(str, content)) or 'nothing'}"
    raise ValueError(
        f"weights {path} holds a {found}, expected a state dict, or one under "
        f"{' or '.join(map(repr, _NESTED))}"
    )


def fit_state(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return a state dict under the names that `module` has for its tensors.

    What wrappers put before every name is taken off: "module." (DDP), "_orig_mod." (torch.compile),
    "model." (Lightning), "network." (`FittedImages`). Of a Hugging Face model with a head only what
    belongs to the `module` without one is kept.

    >>> state = {"module.weight": torch.ones(1), "module.bias": torch.ones(1)}
    >>> list(fit_state(state, nn.Linear(1, 1)))
    ['weight', 'bias']
    """
    expected = module.state_dict().keys()
    fitted = dict(state)
    stripped = True
    while stripped and not fitted.keys() & expected:
        stripped = False
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in fitted):
                consume_prefix_in_state_dict_if_present(fitted, prefix)
                stripped = bool(fitted)
    base = f"{getattr(module, 'base_model_prefix', '')}."
    if not fitted.keys() & expected and any(name.startswith(base) for name in fitted):
        fitted = {n.removeprefix(base): v for n, v in fitted.items() if n.startswith(base)}
    return fitted


def num_outputs_of(state: Mapping[str, Tensor], module: nn.Module, num_outputs: int) -> int:
    """Return for how many outputs a fitted state dict was made; the module has `num_outputs`.

    That is another number where only the first axes of some tensors differ, all by the same.

    >>> num_outputs_of(nn.Linear(3, 1000).state_dict(), nn.Linear(3, 10), 10)
    1000
    """
    pairs = [(tensor, state[name].shape) for name, tensor in _wrong_shapes(state, module).items()]
    found = {shape[:1] for _, shape in pairs}
    if len(found) == 1 and all(
        len(tensor) == num_outputs and tensor.shape[1:] == shape[1:] for tensor, shape in pairs
    ):
        return next(iter(found))[0]
    return num_outputs


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a fitted state dict that must hold every tensor of the module, and no others.

    Raises
    ------
    ValueError
        Tensors that are missing, unknown, of another shape, or of numbers that the module cannot
        take: lists some of them, and nothing is loaded. `source` says whose they are.

    >>> load_state(nn.Linear(2, 1), {"weight": torch.ones(1, 3), "w": torch.ones(1)}, "a.pt")
    Traceback (most recent call last):
        ...
    ValueError: weights a.pt do not fit a Linear: 1 missing (bias); 1 unexpected (w); \
1 of another shape (weight is (1, 3), expected (1, 2))
    """
    expected = module.state_dict()
    # safetensors saves tied tensors once, and BatchNorm has counted its batches only since 2018.
    present = {_place(tensor) for name, tensor in expected.items() if name in state} - {None}
    missing = [
        name
        for name, tensor in expected.items()
        if name not in state
        and not name.endswith("num_batches_tracked")
        and _place(tensor) not in present
    ]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in _wrong_shapes(state, module).items()
    ]
    kinds = [
        f"{name} is {kind}"
        for name, tensor in expected.items()
        if name in state and (kind := _unfit_kind(state[name], tensor))
    ]
    wrong = [
        f"{len(names)} {what} ({listed(names)})"
        for names, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (shapes, "of another shape"),
            (kinds, "of another kind"),
        )
        if names
    ]
    if wrong:
        reason = "; ".join(wrong)
        raise ValueError(f"weights {source} do not fit a {type(module).__name__}: {reason}")
    module.load_state_dict(state, strict=False)


def _unfit_kind(value: Any, tensor: Any) -> str | None:
    """Say what a value is that cannot be copied into a tensor; None where it can."""
    if not isinstance(tensor, Tensor):  # the state that a module keeps beside its tensors
        return None
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    if value.is_meta or value.layout != tensor.layout:
        return "without numbers" if value.is_meta else str(value.layout).removeprefix("torch.")
    if value.is_quantized and not tensor.is_quantized:
        return str(value.dtype)
    return str(value.dtype) if value.is_complex() and not tensor.is_complex() else None


def _wrong_shapes(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Tensors of the module that a state dict holds in another shape."""
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if isinstance(state.get(name), Tensor)
        and _place(tensor) is not None
        and state[name].shape != tensor.shape
    }


def _place(value: Any) -> int | None:
    """Where a tensor lies in memory; None for what has no shape yet, or is no tensor at all."""
    return value.data_ptr() if isinstance(value, Tensor) and not is_lazy(value) else None


def listed(names: Iterable[str]) -> str:
    """Return the first few of some names, as text."""
    parts = list(names)
    return ", ".join(parts[:_MAX_LISTED]) + (", ..." if len(parts) > _MAX_LISTED else "")
