"""Work through many runs, some at a time, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Protocol

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from deeprep.base.machine import available_cores
from deeprep.sweep.runs import Outcome, Status, SweepDirectory

_POLL_SECONDS = 0.2
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not on every system


class Launched(Protocol):
    """A run that is under way somewhere."""

    def done(self) -> bool:
        """Whether its process has ended."""

    def stop(self) -> None:
        """Ask it to stop, the first time at the end of the epoch."""

    def why(self) -> str:
        """Say how it ended, where it left no outcome."""


class LocalProcess:
    """A run in a process on this machine, whose output goes to the log.

    Ctrl-C in a terminal does not reach it: the sweep stops it, so that each is asked once.
    """

    def __init__(self, sweep: SweepDirectory, name: str, environment: dict[str, str]) -> None:
        log = sweep.log_path(name)
        command = [sys.executable, "-m", "deeprep.sweep.runs", str(sweep.path), name]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                start_new_session=True,
                pass_fds=[lock.fileno() for lock in _held],
            )
        self._asked = 0

    def done(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Ask it to stop: at the end of the epoch, the second time at once, then kill it."""
        self._asked += 1
        if self._asked <= 2:
            self._process.terminate()
        else:
            self._process.kill()

    def why(self) -> str:
        """Say how the process ended."""
        code = self._process.returncode
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}{', perhaps out of memory' if name == 'SIGKILL' else ''}"
        return f"ended with status {code}"


def local_launcher(sweep: SweepDirectory, jobs: int) -> Callable[[str], Launched]:
    """Return a function that starts a run here, with its share of the cores and one of the GPUs."""
    environment = {}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, available_cores() // jobs))
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if gpus == [""]:
        gpus = [str(index) for index in range(torch.cuda.device_count())]
    started = 0

    def launch(name: str) -> Launched:
        nonlocal started
        # Runs of a sweep take about as long, so turns spread them over the GPUs.
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[started % len(gpus)]} if len(gpus) > 1 else {}
        started += 1
        return LocalProcess(sweep, name, {**environment, **gpu})

    return launch


def drive(
    sweep: SweepDirectory,
    names: Sequence[str],
    launch: Callable[[str], Launched],
    jobs: int,
    console: Console,
) -> int:
    """Do the runs of these names, at most `jobs` at a time; each leaves an outcome.

    After the first signal no more are started, and those under way are asked to stop at the end of
    their epoch; the second asks them to stop at once, the third kills them.

    Returns
    -------
    The first signal that came, 0 for none.
    """
    waiting, active = deque(names), dict[str, Launched]()
    asked = ended = 0
    with _signals() as received, _Display(sweep, len(names), console) as display:
        while active or (waiting and not received):
            while waiting and len(active) < jobs and not received:
                name = waiting.popleft()
                sweep.forget_outcome(name)
                active[name] = launch(name)
                display.begin(name)
            if len(received) > asked:
                asked = len(received)
                console.print(f"stopping {len(active)} runs; again: at once", highlight=False)
                for launched in active.values():
                    launched.stop()
            for name in [name for name, launched in active.items() if launched.done()]:
                launched = active.pop(name)
                # Without an outcome of its own it had no chance to write one.
                if not sweep.has_outcome(name):
                    status: Status = "stopped" if asked else "failed"
                    sweep.set_outcome(name, Outcome(status, launched.why()))
                ended += 1
                display.end(name, sweep.outcome(name), ended)
            display.refresh()
            time.sleep(_POLL_SECONDS)
    return received[0] if received else 0


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask to stop."""
    received: list[int] = []
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    handlers = [signal.signal(number, lambda n, _: received.append(n)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


_held: list[IO[bytes]] = []  # locks that the processes started here hold too


@contextmanager
def locked(sweep: SweepDirectory) -> Iterator[None]:
    """Lock the sweep's directory, so that no other sweep, and no run of one, works in it.

    The runs hold the lock too, so runs that outlive a killed sweep are not started a second time.

    Raises
    ------
    ValueError
        Another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield
        return
    sweep.path.mkdir(parents=True, exist_ok=True)
    with (sweep.path / ".lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"DIRECTORY is {sweep.path}, in use by a sweep or by some of its runs, expected "
                "one that nothing runs in"
            ) from None
        _held.append(lock)
        try:
            yield
        finally:
            _held.remove(lock)


class _Display:
    """A bar for the sweep and a line for each run under way; in a file, a line for each that ended.

    A run's line ends in the last line of its log.
    """

    def __init__(self, sweep: SweepDirectory, total: int, console: Console) -> None:
        self._sweep, self._console, self._total = sweep, console, total
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._whole = self._progress.add_task("sweep", total=total, note=f"0/{total}")
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def begin(self, name: str) -> None:
        self._tasks[name] = self._progress.add_task(escape(name), total=None, note="")

    def end(self, name: str, outcome: Outcome, ended: int) -> None:
        self._progress.remove_task(self._tasks.pop(name))
        self._progress.update(self._whole, completed=ended, note=f"{ended}/{self._total}")
        seconds = f", {outcome.seconds:.0f} s" if outcome.seconds else ""
        error = f": {outcome.error}" if outcome.error else ""
        style = "red" if outcome.status == "failed" else None
        text = f"{ended}/{self._total}  {name}  {outcome.status}{seconds}{error}"
        self._console.print(escape(text), style=style, highlight=False, soft_wrap=True)

    def refresh(self) -> None:
        if self._progress.disable:
            return
        for name, task in self._tasks.items():
            self._progress.update(task, note=escape(_last_line(self._sweep, name)))


def _last_line(sweep: SweepDirectory, name: str) -> str:
    path = sweep.log_path(name)
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 400))
        lines = file.read().decode(errors="replace").splitlines()
    return lines[-1].strip()[:60] if lines else ""
