"""One array in a column of Parquet files, local or in a store, decoded block by block.

Features are a column of lists, all of one length, or several columns of numbers; labels a column of
integers. Of a file no more is in memory than some pages of its columns and some decoded rows, 60 to
150 MiB in all, however long its groups of rows are.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprep.base.paths import natural_order
from deeprep.files.arrays import DTYPES, Argument, Bytes, Filler, Shard, StreamedArray
from deeprep.files.remote import CONNECTIONS, StreamedFile, open_files
from deeprep.files.sources import Found, library

__all__ = ["ParquetArray"]

# Decoded at a time, and, of a file, read at a time: in a store the latter is eight ranges.
_DECODED_BYTES = 2**22
_LOCAL_BUFFER = 2**20
_STORE_BUFFER = 2**25
_CODES = {
    **dict.fromkeys(("halffloat", "float16"), "F16"),
    **{"float": "F32", "double": "F64", "int8": "I8", "int16": "I16", "int32": "I32"},
    **{"int64": "I64", "uint8": "U8", "uint16": "U16", "uint32": "U32"},
}
_NUMPY = {codes[1]: codes[0] for codes in DTYPES.values()}


class ParquetArray(StreamedArray):
    """An array (N, d) or (N,) in columns of Parquet files.

    Parameters
    ----------
    argument
        "features": a column of lists, or columns of numbers side by side, in natural order;
        "labels": a column of integers.
    found
        The files; the column, a glob of columns, or None for the only one of its kind.

    Raises
    ------
    ImportError
        Without pyarrow.
    ValueError, TypeError
        On files that are not what their names say, columns that are not there and such as do not
        fit, naming the file.
    """

    def __init__(self, argument: Argument, found: Found) -> None:
        self._arrow = library("pyarrow.parquet", f"{argument} {found.url(0)}", "parquet")
        self._argument = argument
        self._inputs: Sequence[Any] = found.paths
        if found.store is not None:
            self._inputs = open_files(found)
            if isinstance(self._inputs[0], StreamedFile):
                raise ValueError(
                    f"{argument} {found.url(0)} is on a server that does not serve ranges of "
                    "bytes, expected one that does: Parquet is read from its end; download it first"
                )
        self._urls = [found.url(index) for index in range(len(found.paths))]
        self._buffer_bytes = _LOCAL_BUFFER if found.store is None else _STORE_BUFFER
        with ThreadPoolExecutor(CONNECTIONS if found.store is not None else 1) as pool:
            opened = list(pool.map(lambda i: self._open(i, found.array), range(len(self._urls))))
        shards, self.columns, self._groups = map(list, zip(*opened, strict=True))
        super().__init__(argument, self._of_one_width(shards))

    @property
    def edges(self) -> list[int]:
        """Rows at which a file or a group of rows begins, and N."""
        edges = {self.num_rows}
        for start, groups in zip(self._starts, self._groups, strict=False):
            for rows in groups:
                edges.add(start)
                start += rows
        return sorted({0, *edges})

    def filler(self) -> Filler:
        """Return what decodes the rows of one pass."""
        return _Decoder(self)

    def decoded(self, shard: int, begin: int) -> Iterator[NDArray[Any]]:
        """Yield the rows of a file from `begin` on, some at a time."""
        with self.errors(shard), self._file(shard) as file:
            group, skipped = 0, 0
            while skipped + self._groups[shard][group] <= begin:
                skipped += self._groups[shard][group]
                group += 1
            row = skipped
            for batch in file.iter_batches(
                batch_size=max(1, _DECODED_BYTES // self.row_bytes),
                row_groups=range(group, len(self._groups[shard])),
                columns=self.columns[shard],
                use_threads=False,  # the cores are for the sums
            ):
                if row + len(batch) > begin:
                    rows = self._numbers(shard, batch, row)
                    yield rows[max(0, begin - row) :]
                row += len(batch)

    def _numbers(self, shard: int, batch: Any, first_row: int) -> NDArray[Any]:
        """Return the rows (n, d) or (n,) of a batch of records."""
        # By name: pyarrow gives them in the order of the file.
        named = [batch.column(name) for name in self.columns[shard]]
        columns = [self._flat(shard, column, first_row) for column in named]
        code = self.shards[shard].dtype
        arrays = [column.to_numpy(zero_copy_only=False).view(_NUMPY[code]) for column in columns]
        if len(arrays) > 1:
            return np.stack(arrays, axis=1)
        numbers: NDArray[Any] = arrays[0]
        return numbers if self._argument == "labels" else numbers.reshape(len(batch), -1)

    def _flat(self, shard: int, column: Any, first_row: int) -> Any:
        """Return the numbers of a column one after the other, having checked that all are there."""
        column = _storage(column)
        self._require_no_null(shard, column, first_row, 1)
        if not _is_list(column.type):
            return column
        width = self.num_columns
        if not hasattr(column.type, "list_size"):
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(lengths != width)
            if len(wrong):
                raise ValueError(
                    f"row {first_row + wrong[0]} of {self.shards[shard].name} has "
                    f"{lengths[wrong[0]]} numbers, expected {width} as in the first row"
                )
        flat = column.flatten()
        self._require_no_null(shard, flat, first_row, width)
        return flat

    def _require_no_null(self, shard: int, column: Any, first_row: int, width: int) -> None:
        if column.null_count:
            nulls = column.is_null().to_numpy(zero_copy_only=False)
            row = first_row + int(nulls.argmax()) // width
            wanted = "an integer" if self._argument == "labels" else "numbers"
            raise ValueError(
                f"row {row} of {self.shards[shard].name} has a null, expected {wanted}"
            )

    def _open(self, index: int, pattern: str | None) -> tuple[Shard, list[str], list[int]]:
        """Return what the footer of a file says, the columns, and the rows of its groups.

        Where the schema does not say how long lists are, the first one does.
        """
        with self.errors(index), self._file(index) as file:
            metadata = file.metadata
            groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            fields = list(file.schema_arrow)
            chosen = self._choose(index, fields, pattern)
            kind = _storage_type(chosen[0].type)
            shape: tuple[int, ...] = (sum(groups),)
            if self._argument == "features":
                width = len(chosen)
                if _is_list(kind):
                    width = getattr(kind, "list_size", None) or _first_length(file, chosen[0].name)
                shape = (sum(groups), width)
            version = f"{metadata.serialized_size} {metadata.num_rows} {self._version(index)}"
        item = kind.value_type if len(shape) == 2 and _is_list(kind) else kind
        code = _CODES.get(str(item), str(item))
        shard = Shard(f"{self._urls[index]}:{pattern or chosen[0].name}", shape, code, 0, version)
        return shard, [field.name for field in chosen], groups

    def _version(self, index: int) -> str:
        source = self._inputs[index]
        if isinstance(source, str):
            return str(os.stat(source).st_mtime_ns)
        version: str = source.version
        return version

    def _choose(self, index: int, fields: list[Any], pattern: str | None) -> list[Any]:
        """Return the fields of the columns that are asked for, or the only one that can be."""
        is_label = self._argument == "labels"
        called = f"{self._argument} {self._urls[index]}"
        if pattern is None:
            fits = _is_label if is_label else _is_features
            fitting = [field for field in fields if fits(field)]
            wanted = "one column of " + ("integers" if is_label else "lists of numbers")
        else:
            exact = [field for field in fields if field.name == pattern]
            fitting = exact or sorted(
                (field for field in fields if fnmatch.fnmatchcase(field.name, pattern)),
                key=lambda field: natural_order(field.name),
            )
            wanted = repr(pattern)
        several = pattern is not None and not is_label
        if len(fitting) != 1 and not (several and fitting):
            listed = ", ".join(f"{field.name} ({field.type})" for field in fields) or "nothing"
            raise ValueError(
                f"{called} holds {listed}, expected {wanted}"
                + (f", or {self._urls[index]}:COLUMN" if pattern is None else "")
            )
        types = {str(field.type) for field in fitting}
        if len(fitting) > 1 and (len(types) > 1 or _is_list(_storage_type(fitting[0].type))):
            raise TypeError(
                f"{called}:{pattern} is columns of {', '.join(sorted(types))}, expected one column "
                "of lists, or columns of one type of number"
            )
        return fitting

    def _of_one_width(self, shards: list[Shard]) -> list[Shard]:
        """Give files without rows, whose lists have no length, that of the others."""
        widths = [each.shape[1] for each in shards if len(each.shape) > 1 and each.shape[1]]
        if self._argument == "labels" or not widths:
            return shards
        return [
            each if each.shape[1] else Shard(each.name, (0, widths[0]), each.dtype, 0, each.version)
            for each in shards
        ]

    def _file(self, index: int) -> Any:
        source = self._inputs[index]
        if not isinstance(source, str):
            source.seek(0)
        # Not pre-buffered: whole groups of rows would be in memory.
        return self._arrow.ParquetFile(source, buffer_size=self._buffer_bytes, pre_buffer=False)

    @contextlib.contextmanager
    def errors(self, index: int) -> Iterator[None]:
        """Have pyarrow's errors name the file."""
        url = self._urls[index]
        try:
            yield
        except (ValueError, TypeError, OSError) as error:
            if url in str(error):
                raise
            if isinstance(error, OSError) and error.errno is not None:
                raise OSError(error.errno, error.strerror, url) from error
            raise ValueError(
                f"{self._argument} {url} is cut short, damaged or no Parquet file ({error})"
            ) from error


class _Decoder(Filler):
    """Rows out of files that are decoded one after the other."""

    def __init__(self, array: ParquetArray) -> None:
        self._array = array
        self._rows: Iterator[NDArray[Any]] = iter(())
        self._left = np.empty(0, np.uint8)
        self._at = (-1, 0)  # the file, and the row of it that comes next

    def fill(self, begin: int, end: int, target: Bytes) -> None:
        """Write rows [begin, end) to an array of as many bytes."""
        filled, row_bytes = 0, self._array.row_bytes
        for run in self._array.runs(begin, end):
            if self._at != (run.shard, run.begin):
                self._rows = self._array.decoded(run.shard, run.begin)
                self._left = self._left[:0]
            stop = filled + (run.end - run.begin) * row_bytes
            while filled < stop:
                if not len(self._left):
                    self._left = self._next(run.shard)
                part = self._left[: stop - filled]
                target[filled : filled + len(part)] = part
                self._left = self._left[len(part) :]
                filled += len(part)
            self._at = (run.shard, run.end)

    def close(self) -> None:
        """Close the file."""
        self._rows = iter(())

    def _next(self, shard: int) -> Bytes:
        rows = next(self._rows, None)
        if rows is None:
            name = self._array.shards[shard].name
            raise ValueError(f"{name} has fewer rows than its footer says")
        return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)


def _first_length(file: Any, column: str) -> int:
    """Return the length of the first list of a column that is no null; 0 where there is none."""
    for batch in file.iter_batches(batch_size=1, columns=[column], use_threads=False):
        length = _storage(batch.column(0)).value_lengths()[0].as_py()
        if length is not None:
            return int(length)
    return 0


def _storage(column: Any) -> Any:
    return getattr(column, "storage", column)


def _storage_type(kind: Any) -> Any:
    return getattr(kind, "storage_type", kind)


def _is_list(kind: Any) -> bool:
    return hasattr(kind, "value_type") and "list" in str(kind).partition("<")[0]


def _is_label(field: Any) -> bool:
    return str(field.type).lstrip("u").startswith("int")


def _is_features(field: Any) -> bool:
    return _is_list(_storage_type(field.type))
