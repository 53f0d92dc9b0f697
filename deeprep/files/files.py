"""Statistics of features that lie on disk or in a store: read once, block by block.

A block of rows, of however many files, is mapped, or brought in by a thread while the last one is
summed up; what is resident is a block or two and the state, whatever the size of the files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deeprep.base import validate
from deeprep.base.ranks import Ranks
from deeprep.files.labelled import LabelledFiles
from deeprep.files.many import scatter_in_parts
from deeprep.state import ClassScatter

__all__ = ["BATCH_BYTES", "class_scatter_of_files"]

# Below 64 MiB starting and merging a batch shows; far above nothing is gained but resident memory.
BATCH_BYTES = 2**27


def class_scatter_of_files(
    features: str | Path,
    labels: str | Path,
    num_classes: int | None = None,
    *,
    full: bool = False,
    ignore_index: int = -100,
    batch_bytes: int = BATCH_BYTES,
    progress: Callable[[int, int], None] | None = None,
    all_reduce: bool = False,
    group: Any = None,
    parts: str | Path | None = None,
) -> ClassScatter:
    """Class-scatter statistics of features and labels on disk, of any size, in one pass.

    What can be wrong with the files is checked before anything is computed; for this the labels,
    though not the features, are read twice. Only nulls and lists of another length among Parquet
    features are found on the way.

    Parameters
    ----------
    features
        (N, d) float64/32/16 or bfloat16: a .npy file in C order; a .safetensors file,
        ``file.safetensors:name`` where it holds several arrays of two axes; a .parquet file,
        ``file.parquet:column`` where it has several columns of lists, ``file.parquet:glob`` for
        columns of numbers side by side; a directory or a glob of such files, in natural order; or a
        URL of any of these, where the name follows a query: ``https://host/file.parquet?key:column``.
        A .npy of JAX's bfloat16, which NumPy stores as two-byte void, is read
        as bfloat16. Parquet needs ``deeprep[parquet]``, URLs ``deeprep[remote]`` and the library of
        their store, such as s3fs for s3://.
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
        Features and labels taken in at once. About as much is resident besides the state; of URLs
        and Parquet twice as much and up to 150 MiB. The last bits of the result depend on it, and
        on how the features are cut into files. Each batch reads and writes the means of its
        classes: where K*d is so large that a batch has few rows of a class, a larger one is faster.
    progress
        Called with (rows done, N) after every batch; of many processes, with those of this one.
    all_reduce
        Whether all processes of a torch.distributed group, which must all call this, share the work
        and all get the state of all samples. Files are cut into parts, and the states of these are
        merged in one order: the bits are the same for any number of processes, and where there is
        one part, of files up to 64 MiB say, those of a single process without `parts`.
    group
        With `all_reduce`, a torch.distributed group; default: all processes.
    parts
        A directory for the states of the parts that are finished, on a disk of each machine or on a
        shared one. If a process dies, a further call with the same files and settings, by any
        number of processes, reads the rest alone. It is not removed.

    Returns
    -------
    ClassScatter on the CPU.

    Raises
    ------
    FileNotFoundError
        Where a source is nowhere or matches no file.
    ValueError, TypeError
        On files, shapes, dtypes or labels that do not fit, naming the file; for a `group` without
        `all_reduce`.
    OSError
        Where a file or a store cannot be read.
    ImportError
        Where a library is missing, naming the extra that brings it.
    MemoryError
        Where the state of so many classes and features is too large.
    OtherRankError
        Where any of this has happened in another process; a RuntimeError.
    RankLostError
        Where another process is lost.

    Notes
    -----
    In parts, a process has one state, and four while it merges two. Without a directory `parts` it
    also keeps those that it cannot merge yet: two for each doubling of its number of parts at most.
    One that is done waits for the others for as long as the group's timeout, which
    torch.distributed.init_process_group sets.

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
    if group is not None and not all_reduce:
        raise ValueError("group is given with all_reduce=False, expected all_reduce=True")

    def empty_state(num_classes: int, num_features: int) -> ClassScatter:
        return _empty_state(num_classes, num_features, full, ignore_index)

    def open_files() -> LabelledFiles:
        return LabelledFiles(features, labels, ignore_index, batch_bytes)

    if all_reduce or parts is not None:
        return scatter_in_parts(
            open_files,
            num_classes,
            empty_state,
            batch_bytes=batch_bytes,
            directory=None if parts is None else Path(parts),
            ranks=Ranks.of(group, "class_scatter_of_files") if all_reduce else None,
            progress=progress,
        )
    files = open_files()
    num_rows = files.features.num_rows
    num_classes = files.checked_num_classes(num_classes, files.label_range(0, num_rows))
    scatter = empty_state(num_classes, files.features.num_columns)
    done = 0

    def after_batch(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, num_rows)

    files.take_in(scatter, 0, num_rows, after_batch)
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
