"""Features and their labels in files: what can be wrong with the labels, and taking both in.

Labels are handled by NumPy alone: torch's threads spin for a while after they have worked, and
would take the cores from ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deeprep.base import validate
from deeprep.files.arrays import Array, Span
from deeprep.files.opened import open_array
from deeprep.files.sources import shown
from deeprep.state import ClassScatter

__all__ = ["LabelRange", "LabelledFiles"]

_LABEL_BYTES = 8  # of a label as the core takes it, whatever it is in the file
_LABEL_CHECK_BYTES = 32  # with what is kept beside it while labels are checked


class LabelRange(NamedTuple):
    """The least label, 0 where none is below, and the largest, -1 where there is none."""

    low: int = 0
    high: int = -1


class LabelledFiles:
    """Features and labels of the same samples.

    Parameters
    ----------
    features, labels
        Where they are, see `deeprep.class_scatter_of_files`.
    ignore_index
        Label of rows to skip.
    batch_bytes
        Of features and labels that are taken in at once.

    Raises
    ------
    OSError, ValueError, TypeError, ImportError
        On files that cannot be read or do not fit together, naming the file.
    """

    def __init__(
        self, features: str | Path, labels: str | Path, ignore_index: int, batch_bytes: int
    ) -> None:
        self.features = open_array("features", features)
        self.labels = open_array("labels", labels)
        if self.features.num_rows != self.labels.num_rows:
            raise ValueError(
                f"labels {shown(str(labels))} has {self.labels.num_rows} rows, expected "
                f"{self.features.num_rows}: one label for each row of features "
                f"{shown(str(features))}"
            )
        self.ignore_index = ignore_index
        self.max_rows = max(1, batch_bytes // (self.features.row_bytes + _LABEL_BYTES))
        self._label_rows = max(1, batch_bytes // _LABEL_CHECK_BYTES)

    # ------------------------------------------------ checking labels

    def label_range(self, begin: int, end: int) -> LabelRange:
        """Return the range of the labels of rows [begin, end), those to ignore left out."""
        low, high = LabelRange()
        for values in self._each_label(begin, end):
            least, most = int(values.min()), int(values.max())
            if least <= self.ignore_index <= most:
                values = values[values != self.ignore_index]
                if values.size == 0:
                    continue
                least, most = int(values.min()), int(values.max())
            low, high = min(low, least), max(high, most)
        return LabelRange(low, high)

    def checked_num_classes(self, num_classes: int | None, found: LabelRange) -> int:
        """Return K, given or inferred, having checked that all labels are classes.

        Raises
        ------
        ValueError
            For the first label that is none, or K must be due to, saying in which file it is.
        """
        inferred = num_classes is None
        if num_classes is None:
            if found.high < 0 <= found.low:
                raise ValueError("num_classes is None and there is no label to infer it from")
            num_classes = max(1, found.high + 1)
        if found.low < 0 or found.high >= num_classes:
            self._refuse_label(num_classes)
        if inferred:
            self._refuse_stray_label(num_classes)
        return num_classes

    def _refuse_label(self, num_classes: int) -> None:
        def is_wrong(values: NDArray[Any]) -> NDArray[Any]:
            values = values.astype(np.int64)
            wrong: NDArray[Any] = (values < 0) | (values >= num_classes)
            wrong &= values != self.ignore_index
            return wrong

        row, label, name = self._first_label(is_wrong)
        raise ValueError(
            validate.label_out_of_range(row, label, num_classes, self.ignore_index, f" of {name}")
        )

    def _refuse_stray_label(self, num_classes: int) -> None:
        """Raise where K, the largest label + 1, must be due to a stray one."""
        num_features = self.features.num_columns

        def count_classes() -> int:
            seen = np.zeros(num_classes, np.bool_)
            for values in self._each_label():
                seen[values[values != self.ignore_index]] = True
            return int(np.count_nonzero(seen))

        if not validate.is_inferable(
            num_classes, num_features, self.labels.num_rows, count_classes
        ):
            row, label, name = self._first_label(lambda values: values == num_classes - 1)
            raise ValueError(validate.stray_label(row, label, num_features, f" of {name}"))

    def _first_label(
        self, is_wanted: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> tuple[int, int, str]:
        """Return row and value of the first label of a kind, which there is, and its file."""
        begin = 0
        for values in self._each_label():
            wanted = is_wanted(values)
            if wanted.any():
                row = int(wanted.argmax())
                name, row_in_file = self.labels.locate(begin + row)
                return row_in_file, int(values[row]), name
            begin += len(values)
        raise ValueError("the labels changed while they were read")

    def _each_label(self, begin: int = 0, end: int | None = None) -> Any:
        """Yield the labels of a block of rows after the other."""
        with closing(
            self.labels.read_each(self.labels.blocks(self._label_rows, begin, end))
        ) as blocks:
            for block in blocks:
                yield block.numpy()

    # ------------------------------------------------ taking samples in

    def take_in(
        self, scatter: ClassScatter, begin: int, end: int, after_batch: Callable[[int], object]
    ) -> None:
        """Take rows [begin, end) in, and call after_batch(rows) after each batch."""
        blocks = self.features.blocks(self.max_rows, begin, end)
        with (
            closing(self.features.read_each_apart(blocks)) as rows,
            closing(self.labels.read_each(blocks)) as labels,
        ):
            for first, last in blocks:
                batch = self._batch(*next(rows), next(labels))
                scatter.update(*batch)
                del batch  # or it would stay mapped beside the next one
                after_batch(last - first)

    def _batch(self, rows: Tensor, spans: Sequence[Span], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows of features, with others between them perhaps, and labels that skip those."""
        values = labels.numpy()
        if len(values) < len(rows):
            values = _spread(values, spans, len(rows), self.ignore_index)
        if values.dtype not in (np.int32, np.int64):
            values = values.astype(np.int64)
        return rows, validate.as_tensor("labels", values)

    @property
    def arrays(self) -> tuple[Array, Array]:
        """Features and labels."""
        return self.features, self.labels


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
