"""JSON that every reader accepts: NaN and infinities, which strict JSON lacks, are strings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeprep.base.paths import write_text

_NON_FINITE = ("nan", "inf", "-inf")


def encode(value: Any) -> Any:
    """Return plain data in which NaN and infinities are "nan", "inf", "-inf"; tuples become lists.

    >>> encode({"C": float("inf"), "pair": (3, 5)})
    {'C': 'inf', 'pair': [3, 5]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """Return plain data in which the strings of `encode` are numbers again.

    >>> decode(["inf", "a"])
    [inf, 'a']
    """
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return float(value) if value in _NON_FINITE else value


def dumps(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Return data as JSON text.

    >>> dumps({"loss": float("nan")})
    '{"loss": "nan"}'
    """
    return json.dumps(encode(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def parse(text: str | bytes, where: object) -> Any:
    """Return the data of a JSON text that stands `where`, as it is written there.

    Raises
    ------
    ValueError
        Where the text is not JSON; says where it stands and what is wrong.

    >>> parse('{"a": 1', "config.json")
    Traceback (most recent call last):
        ...
    ValueError: config.json is not valid JSON: Expecting ',' delimiter, line 1 column 8
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg}, line {error.lineno} column {error.colno}"
        raise ValueError(f"{where} is not valid JSON: {found}") from None
    except RecursionError:
        raise ValueError(f"{where} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:  # no text at all, or a number of thousands of digits
        raise ValueError(f"{where} is not valid JSON: {error}") from None


def read(path: Path) -> Any:
    """Return the data in a JSON file, as it is written there.

    Raises
    ------
    OSError
        Where there is no file to read.
    ValueError
        Where it is not JSON; names the file and what is wrong.
    """
    return parse(path.read_bytes(), path)


def write(path: Path, value: Any, *, indent: int = 1, sort_keys: bool = False) -> None:
    """Write data to a JSON file, atomically.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder) / "a.json", {"a": float("inf")})
    ...     read(Path(folder) / "a.json")
    {'a': 'inf'}
    """
    write_text(path, dumps(value, indent=indent, sort_keys=sort_keys) + "\n")
