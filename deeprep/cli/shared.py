"""What the commands have in common: their results, `--json`, and progress on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tyro.conf import FlagCreatePairsOff

__all__ = ["ERRORS", "Json", "Result", "progress_bar"]

# What ends a command with one line; ImportError is of a library that only some models need.
ERRORS = (ValueError, TypeError, OSError, MemoryError, ImportError)
_PROGRESS_AFTER = 1.0  # seconds

Json = Annotated[bool, FlagCreatePairsOff]


@dataclass(frozen=True)
class Result:
    """What a command prints.

    Attributes
    ----------
    data
        Plain data, for --json.
    shown
        Tables and lines, otherwise.
    warnings
        For stderr, where it is not JSON.
    failed
        Whether a part of it went wrong, of which an error was printed: the exit status is 1.
    """

    data: dict[str, Any]
    shown: list[RenderableType]
    warnings: list[str] = field(default_factory=list)
    failed: bool = False


@contextmanager
def progress_bar(unit: str, what: str = "") -> Iterator[Callable[[int, int | None], None]]:
    """Give a function (done, total) that draws a bar on a terminal once it has taken a while.

    Parameters
    ----------
    unit
        What is counted.
    what
        What it is counted of.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(escape(what), total=None, count="")
    begin = time.monotonic()

    def show(done: int, total: int | None) -> None:
        count = f"{unit} {done:,}" + ("" if total is None else f" of {total:,}")
        bar.update(task, completed=done, total=total, count=count)
        if not bar.live.is_started and time.monotonic() - begin > _PROGRESS_AFTER:
            bar.start()

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()
