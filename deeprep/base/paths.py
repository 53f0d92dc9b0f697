"""Files: their order by name, and writing them so that a reader never finds half of one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a path to write to, which then replaces `path` in one step, or on an error is removed.

    Raises
    ------
    OSError
        Where the file cannot be written; names `path`, which is as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "a.txt") as partial:
    ...         _ = partial.write_text("whole")
    ...     (Path(folder) / "a.txt").read_text()
    'whole'
    """
    # The suffix stays last: writers choose the format by it.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    with errors_naming(path, instead_of=partial):
        try:
            yield partial
            partial.replace(path)
        finally:
            with contextlib.suppress(OSError):  # else it would hide the error that led here
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def errors_naming(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Have an OSError name `path` where it names no file, as on a full disk, or `instead_of`.

    >>> with errors_naming(Path("a.txt")):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
        ...
    OSError: [Errno 28] No space left on device: 'a.txt'
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(instead_of):
            raise
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def natural_order(path: str) -> tuple[list[str | int], str]:
    """Return a sort key under which 2 comes before 10, and 02 beside it.

    >>> sorted(["part-10", "part-2"], key=natural_order)
    ['part-2', 'part-10']
    """
    parts = re.split(r"(\d+)", path)  # text and digits in turn
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path
