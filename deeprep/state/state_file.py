"""The state of a ClassScatter as a file: safetensors, written whole, read with suspicion.

Tensors counts, means, sumsq and, of a full state, products, as in `ClassScatter.state_dict`; in the
metadata, as text, what they mean and where they come from. Safetensors and not torch.save, so that
reading a stranger's file runs no code.
"""

from __future__ import annotations

import math
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deeprep.base.paths import atomic_path

STATE_VERSION = 1  # goes up with any change of what the tensors mean

_FORMAT = "deeprep.ClassScatter"
_CONVENTION = (
    "z_ki: sample i of n_k of class k; counts[k] = n_k; means[k] = mu_k = (1/n_k) sum_i z_ki; "
    "sumsq[k] = sum_i |z_ki - mu_k|^2, not divided by anything; products = sum_k sum_i "
    "(z_ki - mu_k)(z_ki - mu_k)', of all classes together, not divided; samples labelled "
    "ignore_index are in none; resolution: relative rounding of the features' arithmetic"
)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a `ClassScatter.state_dict`; `path` holds the whole of it or what it held before."""
    tensors = {
        name: value.cpu().contiguous() for name, value in state.items() if isinstance(value, Tensor)
    }
    metadata = {
        "format": _FORMAT,
        "version": str(state["version"]),
        "convention": _CONVENTION,
        "deeprep": version("deeprep"),
        "full": str("products" in tensors),
        "ignore_index": str(state["ignore_index"]),
        "resolution": repr(state["resolution"]),
    }
    with atomic_path(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors makes files that only their owner can read
        save_file(tensors, partial, metadata)
        partial.chmod(mode)
        with partial.open("rb") as file:
            os.fsync(file.fileno())


def read_state(path: Path) -> dict[str, Any]:
    """Read a file written by `write_state` into a `ClassScatter.state_dict`, on the CPU.

    Raises
    ------
    OSError
        Where there is no file to read.
    ValueError
        Where it is not such a file, whole, of this version and consistent; it says which.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, expected a file of ClassScatter.save")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, expected a file of ClassScatter.save")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_identity(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut short or no safetensors file ({error}), expected a whole file of "
            "ClassScatter.save"
        ) from error
    full = _parse(path, metadata, "full", "True or False", {"True": True, "False": False}.get)
    _check_tensors(path, tensors, full)
    return {
        "version": STATE_VERSION,
        "products": None,
        **tensors,
        "resolution": _parse(path, metadata, "resolution", "a number >= 0", _resolution),
        "ignore_index": _parse(path, metadata, "ignore_index", "a whole number", int),
    }


def _check_identity(path: Path, metadata: dict[str, str]) -> None:
    """Check what a file says of itself; a foreign file's tensors are not even looked at."""
    for key, wanted in (("format", _FORMAT), ("version", str(STATE_VERSION))):
        found = metadata.get(key)
        if found != wanted:
            writer = metadata.get("deeprep", "unknown")
            by = f", written by deeprep {writer}" if key == "version" else ""
            raise ValueError(f"{path} has {key} {found!r} in its metadata{by}, expected {wanted!r}")


def _parse(path: Path, metadata: dict[str, str], key: str, wanted: str, parse: Any) -> Any:
    text = metadata.get(key, "")
    try:
        value = parse(text)
    except ValueError:
        value = None
    if value is None:
        raise ValueError(f"{path} has {key} {text!r} in its metadata, expected {wanted}")
    return value


def _resolution(text: str) -> float | None:
    value = float(text)
    return value if 0.0 <= value < math.inf else None


def _check_tensors(path: Path, tensors: dict[str, Tensor], full: bool) -> None:
    names = ["counts", "means", "sumsq", *(["products"] if full else [])]
    if sorted(tensors) != sorted(names):
        raise ValueError(
            f"{path} holds tensors {', '.join(sorted(tensors)) or '(none)'}, expected "
            f"{', '.join(names)}"
        )
    means = tensors["means"]
    if means.ndim != 2 or 0 in means.shape:
        raise ValueError(f"{path}: means has shape {tuple(means.shape)}, expected (K, d)")
    num_classes, num_features = means.shape
    expected = {
        "counts": ((num_classes,), torch.int64),
        "means": ((num_classes, num_features), torch.float64),
        "sumsq": ((num_classes,), torch.float64),
        "products": ((num_features, num_features), torch.float64),
    }
    for name in names:
        tensor, (shape, dtype) = tensors[name], expected[name]
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, "
                f"expected {shape} and {dtype}"
            )
    for name in ("counts", "sumsq"):
        negative = (tensors[name] < 0).nonzero()
        if negative.numel():
            k = int(negative[0])
            raise ValueError(f"{path}: {name}[{k}] is {tensors[name][k].item()}, expected >= 0")
