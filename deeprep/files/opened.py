"""The array that a source holds, whatever its kind: local or in a store, mapped or decoded."""

from __future__ import annotations

from pathlib import Path

from deeprep.files.arrays import Argument, Array
from deeprep.files.shards import ArrayFiles
from deeprep.files.sources import PARQUET, find

__all__ = ["open_array"]


def open_array(argument: Argument, source: str | Path) -> Array:
    """Open features or labels, see `deeprep.class_scatter_of_files`."""
    found = find(argument, str(source))
    if found.suffix == PARQUET:
        from deeprep.files.parquet import ParquetArray  # pyarrow is an extra

        return ParquetArray(argument, found)
    if found.store is not None:
        from deeprep.files.remote import RemoteArray

        return RemoteArray(argument, found)
    return ArrayFiles(argument, found)
