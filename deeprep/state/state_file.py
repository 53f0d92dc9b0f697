"""The state of a ClassScatter as a file: safetensors, written whole, read with suspicion.

Tensors counts, means, sumsq and, of a full state, products, as in `ClassScatter.state_dict`; in the
metadata, as text, what they mean and where they come from. Safetensors and not torch.save, so that
reading a stranger's file runs no code.

The metadata also hold a checksum of every tensor, and one of the header: of the names, types and
shapes of the tensors and of all the other metadata, the checksums of the tensors among them. Files
of version 1, from before there were any, are still read.
"""

from __future__ import annotations

import hashlib
import math
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deeprep.base import strict_json
from deeprep.base.paths import atomic_path
from deeprep.base.warn import warn

STATE_VERSION = 1  # of a state_dict; goes up with any change of what the tensors mean

_FILE_VERSION = "2"  # goes up with any change of the file, of what the tensors mean as well
_WITHOUT_CHECKSUM = "1"
_FORMAT = "deeprep.ClassScatter"
_CHECKSUM = "checksum"
_CONVENTION = (
    "z_ki: sample i of n_k of class k; counts[k] = n_k; means[k] = mu_k = (1/n_k) sum_i z_ki; "
    "sumsq[k] = sum_i |z_ki - mu_k|^2, not divided by anything; products = sum_k sum_i "
    "(z_ki - mu_k)(z_ki - mu_k)', of all classes together, not divided; samples labelled "
    "ignore_index are in none; resolution: relative rounding of the features' arithmetic; "
    "checksum.X: BLAKE2b, 128 bits, of the bytes of tensor X"
)
_TYPE_NAMES = {torch.int64: "I64", torch.float64: "F64"}  # as safetensors calls them


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a `ClassScatter.state_dict`; `path` holds the whole of it or what it held before.

    Raises
    ------
    OSError
        Where it cannot be written; names `path`.
    """
    tensors = {
        name: value.cpu().contiguous() for name, value in state.items() if isinstance(value, Tensor)
    }
    metadata = {
        "format": _FORMAT,
        "version": _FILE_VERSION,
        "convention": _CONVENTION,
        "deeprep": version("deeprep"),
        "full": str("products" in tensors),
        "ignore_index": str(state["ignore_index"]),
        "resolution": repr(state["resolution"]),
        **{_checksum_of(name): _tensor_checksum(tensor) for name, tensor in tensors.items()},
    }
    metadata[_CHECKSUM] = _header_checksum(tensors, metadata)
    # By hand, as safetensors' own writer does not say that the disk was full (an OSError).
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(_header(tensors, metadata))
        for tensor in tensors.values():
            file.write(_bytes_of(tensor))
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return what a safetensors file begins with: the length of a JSON object, and that."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {**_type_and_shape(tensor), "data_offsets": [begin, end]}
    text = strict_json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # aligns the numbers
    return len(text).to_bytes(8, "little") + text


def _type_and_shape(tensor: Tensor) -> dict[str, Any]:
    dtype = _TYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
    return {"dtype": dtype, "shape": list(tensor.shape)}


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor, not a copy of it."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _tensor_checksum(tensor: Tensor) -> str:
    return _checksum(_bytes_of(tensor))


def _header_checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    content = {
        "tensors": {name: _type_and_shape(tensor) for name, tensor in tensors.items()},
        "metadata": {key: value for key, value in metadata.items() if key != _CHECKSUM},
    }
    text = strict_json.dumps(content, sort_keys=True)
    return _checksum(text.encode())


def _checksum(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16, usedforsecurity=False).hexdigest()


def _checksum_of(name: str) -> str:
    return f"{_CHECKSUM}.{name}"


def read_state(path: Path) -> dict[str, Any]:
    """Read a file written by `write_state` into a `ClassScatter.state_dict`, on the CPU.

    Warns of a file that is too old to hold checksums.

    Raises
    ------
    OSError
        Where there is no file to read.
    ValueError
        Where it is not such a file, whole, undamaged, of a known version and consistent; it says
        which.
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
    _check_checksums(path, tensors, metadata)
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
    for key, wanted in (("format", (_FORMAT,)), ("version", (_FILE_VERSION, _WITHOUT_CHECKSUM))):
        found = metadata.get(key)
        if found not in wanted:
            writer = metadata.get("deeprep", "unknown")
            by = f", written by deeprep {writer}" if key == "version" else ""
            raise ValueError(
                f"{path} has {key} {found!r} in its metadata{by}, expected "
                f"{' or '.join(map(repr, wanted))}"
            )


def _check_checksums(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Check that nothing has changed since the file was written."""
    # With a checksum in it, a file is not older than checksums, whatever it says.
    if metadata["version"] == _WITHOUT_CHECKSUM and _CHECKSUM not in metadata:
        warn(
            f"{path} was written by an older deeprep, without a checksum: damage to it would go "
            "unnoticed; load it and save it again to add one"
        )
        return
    found = {_CHECKSUM: _header_checksum(tensors, metadata)}
    found |= {_checksum_of(name): _tensor_checksum(tensor) for name, tensor in tensors.items()}
    for key, value in found.items():
        if metadata.get(key) != value:
            what = key.removeprefix(_CHECKSUM).removeprefix(".") or "its header"
            raise ValueError(
                f"{path} is damaged: {what} has checksum {value}, expected {metadata.get(key)}, "
                "which it records itself"
            )


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
