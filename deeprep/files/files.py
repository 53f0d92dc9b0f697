"""Statistics of features that lie on disk: read once, memory-mapped, block by block.

A block of rows, of however many files, is mapped, taken in and unmapped, so that what is resident
is a block and the state, whatever the size of the files. Labels are handled by NumPy alone: torch's
threads spin for a while after they have worked, and would take the cores from ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deeprep.base import validate
from deeprep.files.mapped_rows import Span
from deeprep.files.shards import ArrayFiles
from deeprep.state import ClassScatter

__all__ = ["BATCH_BYTES", "class_scatter_of_files"]

# Below 64 MiB starting and merging a batch shows; far above nothing is gained but resident memory.
BATCH_BYTES = 2**27
_LABEL_BYTES = 8  # of a label as the core takes it, whatever it is in the file
_LABEL_CHECK_BYTES = 32  # with what is kept beside it while labels are checked


def class_scatter_of_files(
    features: str | Path,
    labels: str | Path,
    num_classes: int | None = None,
    *,
    full: bool = False,
    ignore_index: int = -100,
    batch_bytes: int = BATCH_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> ClassScatter:
    """Class-scatter statistics of features and labels on disk, of any size, in one pass.

    Everything that can be wrong with the files is checked before anything is computed; for this the
    labels, though not the features, are read twice.

    Parameters
    ----------
    features
        (N, d) float64/32/16 or bfloat16: a .npy file in C order; a .safetensors file,
        ``file.safetensors:name`` where it holds several arrays of two axes; a directory or a glob
        of such files, in natural order. A .npy of JAX's bfloat16, which NumPy stores as two-byte
        void, is read as bfloat16.
    labels
        (N,) of any integer type but uint64, in [0, K) or `ignore_index`, in files likewise, which
        need not be cut at the same rows.
    num_classes
        K; default: the largest label + 1, which is refused where the state would take more than
        1 GiB and fewer than one class in ten has a sample: such a label is more likely a stray one.
    full
        Also accumulate the (d, d) pooled within-class scatter.
    ignore_index
        Label of rows to skip.
    batch_bytes
        Features and labels taken in at once, and about what is resident besides the state; the last
        bits of the result depend on it, and on how the features are cut into files. Each batch
        reads and writes the means of its classes: where K*d is so large that a batch has few rows
        of a class, a larger one is faster.
    progress
        Called with (rows done, N) after every batch.

    Returns
    -------
    ClassScatter on the CPU.

    Raises
    ------
    FileNotFoundError
        Where a source is nowhere or matches no file.
    ValueError, TypeError
        On files, shapes, dtypes or labels that do not fit, naming the file.
    MemoryError
        Where the state of so many classes and features is too large.

    Examples
    --------
    >>> import tempfile, numpy as np, deeprep
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/features.npy", np.eye(4, dtype=np.float32))
    ...     np.save(f"{folder}/labels.npy", np.array([0, 0, 1, 1]))
    ...     s = deeprep.class_scatter_of_files(f"{folder}/features.npy", f"{folder}/labels.npy")
    >>> s.trace_within, s.trace_between()
    (0.5, 0.25)
    """
    validate.check_positive("batch_bytes", batch_bytes)
    if num_classes is not None:
        validate.check_num_classes(num_classes)
    x, y = ArrayFiles("features", features), ArrayFiles("labels", labels)
    if x.num_rows != y.num_rows:
        raise ValueError(
            f"labels {labels} has {y.num_rows} rows, expected {x.num_rows}: one label for each row "
            f"of features {features}"
        )
    label_rows = max(1, batch_bytes // _LABEL_CHECK_BYTES)
    inferred = num_classes is None
    num_classes = _check_labels(y, num_classes, ignore_index, label_rows)
    if inferred:
        _refuse_stray_label(y, num_classes, x.num_columns, ignore_index, label_rows)
    scatter = _empty_state(num_classes, x.num_columns, full, ignore_index)
    max_rows = max(1, batch_bytes // (x.row_bytes + _LABEL_BYTES))
    blocks = x.blocks(max_rows)
    with ThreadPoolExecutor(1) as reader:
        if blocks:
            reader.submit(x.prefetch, *blocks[0])
        for block, following in itertools.zip_longest(blocks, blocks[1:]):
            batch = _batch(x, y, block, ignore_index)
            if following is not None:
                reader.submit(x.prefetch, *following)
            scatter.update(*batch)
            del batch  # or it would stay mapped beside the next one
            if progress is not None:
                progress(block[1], x.num_rows)
    return scatter


def _empty_state(
    num_classes: int, num_features: int, full: bool, ignore_index: int
) -> ClassScatter:
    try:
        return ClassScatter(num_classes, num_features, full=full, ignore_index=ignore_index)
    except RuntimeError as error:  # torch's, where it cannot have the memory
        raise MemoryError(
            f"there is no memory for {num_classes} classes of {num_features} features"
        ) from error


def _batch(
    features: ArrayFiles, labels: ArrayFiles, block: tuple[int, int], ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return rows of features, with others between them perhaps, and the labels that skip those."""
    rows, spans = features.read_apart(*block)
    values = _read_labels(labels, block)
    if len(values) < len(rows):
        values = _spread(values, spans, len(rows), ignore_index)
    if values.dtype not in (np.int32, np.int64):
        values = values.astype(np.int64)
    return rows, validate.as_tensor("labels", values)


def _spread(
    labels: NDArray[Any], spans: Sequence[Span], num_rows: int, ignore_index: int
) -> NDArray[np.int64]:
    """Place labels at the rows of their features; rows between are skipped."""
    spread = np.empty(num_rows, np.int64)
    end = taken = 0
    for span in spans:
        spread[end : span.begin] = ignore_index
        end = span.begin + span.rows
        spread[span.begin : end] = labels[taken : taken + span.rows]
        taken += span.rows
    spread[end:] = ignore_index
    return spread


def _read_labels(labels: ArrayFiles, block: tuple[int, int]) -> NDArray[Any]:
    return labels.read(*block).numpy()


def _check_labels(
    labels: ArrayFiles, num_classes: int | None, ignore_index: int, max_rows: int
) -> int:
    """Check that every label is a class or ignored; return K."""
    low, high = 0, -1
    for block in labels.blocks(max_rows):
        values = _read_labels(labels, block)
        least, most = int(values.min()), int(values.max())
        if least <= ignore_index <= most:
            values = values[values != ignore_index]
            if values.size == 0:
                continue
            least, most = int(values.min()), int(values.max())
        low, high = min(low, least), max(high, most)
    if num_classes is None:
        if high < 0 <= low:
            raise ValueError("num_classes is None and there is no label to infer it from")
        num_classes = max(1, high + 1)
    if low < 0 or high >= num_classes:
        _refuse_label(labels, num_classes, ignore_index, max_rows)
    return num_classes


def _refuse_label(labels: ArrayFiles, num_classes: int, ignore_index: int, max_rows: int) -> None:
    """Raise for the first label that is no class, saying in which file it is."""

    def is_wrong(values: NDArray[Any]) -> NDArray[Any]:
        values = values.astype(np.int64)
        wrong: NDArray[Any] = (values < 0) | (values >= num_classes)
        wrong &= values != ignore_index
        return wrong

    row, label, name = _first_label(labels, is_wrong, max_rows)
    message = validate.label_out_of_range(row, label, num_classes, ignore_index, f" of {name}")
    raise ValueError(message)


def _refuse_stray_label(
    labels: ArrayFiles, num_classes: int, num_features: int, ignore_index: int, max_rows: int
) -> None:
    """Raise where K, the largest label + 1, must be due to a stray one, saying where it is."""

    def count_classes() -> int:
        seen = np.zeros(num_classes, np.bool_)
        for block in labels.blocks(max_rows):
            values = _read_labels(labels, block)
            seen[values[values != ignore_index]] = True
        return int(np.count_nonzero(seen))

    if not validate.is_inferable(num_classes, num_features, labels.num_rows, count_classes):
        row, label, name = _first_label(labels, lambda values: values == num_classes - 1, max_rows)
        raise ValueError(validate.stray_label(row, label, num_features, f" of {name}"))


def _first_label(
    labels: ArrayFiles, is_wanted: Callable[[NDArray[Any]], NDArray[Any]], max_rows: int
) -> tuple[int, int, str]:
    """Return row and value of the first label of a kind, which there is, and the file it is in."""
    for block in labels.blocks(max_rows):
        values = _read_labels(labels, block)
        wanted = is_wanted(values)
        if wanted.any():
            row = int(wanted.argmax())
            name, row_in_file = labels.locate(block[0] + row)
            return row_in_file, int(values[row]), name
    raise ValueError("the labels changed while they were read")
