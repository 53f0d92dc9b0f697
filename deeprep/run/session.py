"""A run from its settings to its results: train a network and watch its layers compress.

Results go to a new directory; `deeprep.run.record` says what it holds. SIGINT (Ctrl-C) or SIGTERM
finishes the epoch and leaves a directory that can be continued; a second one stops at once.

`torchrun --nproc-per-node 4 -m deeprep.run --arch linear` trains the same network with four
processes, by the same flags: `--batch-size` is the batch of all of them together, of which each
takes its part, so losses and layers are those of one process up to rounding (but see
`deeprep.run.train` for dropout, and below for BatchNorm). The first process prints and writes; a
signal, or a loss that is not finite, in any of them stops all. A directory can be continued with
another number of processes.

BatchNorm takes its statistics from all processes on GPUs; on the CPU, where PyTorch cannot, from
the part of the batch that a process has.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import default_threads, joined, together
from deeprep.base.validate import chosen, require
from deeprep.data import Data, load_configured_data
from deeprep.probe import analyze
from deeprep.run.defaults import resolve
from deeprep.run.job import Job, pin_settings, prepare, prepare_device, wrap_parallel
from deeprep.run.record import Checkpoint, Measurement, RunDirectory
from deeprep.run.settings import Settings
from deeprep.run.tracker import Tracker, require_tracker
from deeprep.run.train import NonFiniteLossError, evaluate, measurement_epochs, train

__all__ = ["RunStopped", "run"]

_CHECKPOINT_SECONDS = 20.0
_ECHO_SECONDS = 5.0  # torchrun passes on to its processes the Ctrl-C that they got already


class RunStopped(Exception):  # noqa: N818  it is no error: the run can go on
    """A signal stopped a run; its directory can be continued."""

    def __init__(self, signal_number: int, directory: Path) -> None:
        super().__init__(f"stopped; continue with: python -m deeprep.run --resume {directory}")
        self.signal_number = signal_number


def run(start: Settings | RunDirectory, console: Console | None = None) -> RunDirectory:
    """Train, measure and record: a new run from settings, or an old one from its directory.

    Parameters
    ----------
    start
        Settings, which are resolved here, or the opened directory of a run to continue.
    console
        Where progress and results are printed, by the first process if there are many; default:
        nowhere.

    Raises
    ------
    ValueError
        Settings that do not fit together or do not fit the data; a tracker that is not installed or
        cannot be started; a directory to continue whose files are damaged or do not fit one
        another.
    FileNotFoundError
        The files of the data set are not found.
    FileExistsError
        The named run directory exists.
    OSError
        A file cannot be written; names it. What it held before is still there, so that the run can
        be continued.
    NonFiniteLossError
        The loss became NaN or infinite; the run directory is kept.
    RunStopped
        SIGINT or SIGTERM came; the run directory is complete up to the epoch it came in.
    OtherRankError, RankLostError
        Another of many processes failed and says why, or has died.
    """
    with joined() as ranks:
        if console is None or (ranks is not None and ranks.rank > 0):
            console = Console(quiet=True)
        return _run(start, console, ranks)


def _run(start: Settings | RunDirectory, console: Console, ranks: Ranks | None) -> RunDirectory:
    """Run in this process, with the others of `ranks` if there are any."""
    session = _open_session(start, console, ranks)
    directory = session.directory
    checkpoint = together(ranks, session.restore)
    begin = -1 if checkpoint is None else checkpoint.epoch
    together(ranks, lambda: directory.forget_after(begin) if session.first else None)
    console.print(escape(session.description()), soft_wrap=True, highlight=False)
    is_logging = session.first and not (checkpoint is not None and checkpoint.finished)
    with ExitStack() as stack:
        together(ranks, lambda: stack.enter_context(session.tracker) if is_logging else None)
        stopped = session.train(checkpoint)
        session.tracker.is_stopped = bool(stopped)
    files = together(ranks, lambda: directory.write_summaries() if session.first else [])
    if session.first:
        _print_results(directory, files, console)
    if stopped:
        raise RunStopped(stopped, directory.path)
    return directory


def _open_session(
    start: Settings | RunDirectory, console: Console, ranks: Ranks | None
) -> _Session:
    """Return all that a run works with; what cannot be run leaves no directory behind."""
    settings = together(
        ranks, lambda: start.settings() if isinstance(start, RunDirectory) else resolve(start)
    )
    together(ranks, lambda: require_tracker(settings.run.tracker))
    if settings.run.threads is not None:
        torch.set_num_threads(settings.run.threads)
    elif ranks is not None:
        torch.set_num_threads(default_threads())
    device = together(ranks, lambda: prepare_device(settings, ranks))
    data = together(
        ranks, lambda: load_configured_data(settings.data, settings.run.seed), in_turn=True
    )
    job = together(ranks, lambda: prepare(settings, data, device, ranks))
    directory = _open_directory(start, settings, device, ranks)
    tracker = Tracker(settings.run.tracker, directory, settings)
    return _Session(settings, data, device, job, directory, tracker, console, ranks)


def _open_directory(
    start: Settings | RunDirectory, settings: Settings, device: torch.device, ranks: Ranks | None
) -> RunDirectory:
    """Return the directory to go on in, or a new one, which the first process makes."""
    if isinstance(start, RunDirectory):
        return start
    pinned = pin_settings(settings, device)
    if ranks is None:
        return RunDirectory.create(pinned, device)
    made = together(ranks, lambda: None if ranks.rank else RunDirectory.create(pinned, device))
    path: Path = ranks.gather(made and made.path)[0]
    return made or RunDirectory(path)


@dataclass(frozen=True)
class _Session:
    """A run under way in this process; of many processes, each has one."""

    settings: Settings
    data: Data
    device: torch.device
    job: Job
    directory: RunDirectory
    tracker: Tracker
    console: Console
    ranks: Ranks | None

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.ranks is None or self.ranks.rank == 0

    def description(self) -> str:
        """Say in a line what is trained, on what, where, and into which directory."""
        data, device, ranks = self.data, self.device, self.ranks
        samples = (
            f"{len(data.labels)} samples of shape {data.input_shape} in {data.num_classes} classes"
        )
        place = f"{torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
        place += f" in each of {ranks.size} processes" if ranks is not None else ""
        arch, path = self.settings.model.arch, self.directory.path
        return f"{arch} on {data.name} ({samples}), {place}, into {path}"

    def restore(self) -> Checkpoint | None:
        """Put the state of the last checkpoint in place and return it; None where there is none.

        Raises
        ------
        ValueError
            It cannot be read, or does not fit the settings or the measurements.
        """
        directory, checkpoint = self.directory, self.directory.load_checkpoint()
        if checkpoint is None:
            return None
        path, epoch = directory.checkpoint_path, checkpoint.epoch
        epochs = chosen(self.settings.optimization.epochs)
        last = epochs if checkpoint.finished else epochs - 1
        try:
            require("its epoch", epoch, 0 <= epoch <= last, f"in 0..{last} for this run")
            self.job.restore(checkpoint)
        except ValueError as error:
            raise ValueError(f"{path} does not fit config.json: {error}") from None
        if not any(measured.epoch <= epoch for measured in directory.measurements):
            metrics = directory.path / "metrics.jsonl"
            wanted = f"one of epoch 0 at least, as {path} is of epoch {epoch}"
            raise ValueError(f"{metrics} is without measurements, expected {wanted}")
        return checkpoint

    def train(self, checkpoint: Checkpoint | None) -> int:
        """Train from a checkpoint, or from the start, to the end or to a signal.

        Returns
        -------
        The signal that stopped it before the end; 0 for none.
        """
        ranks, optimization = self.ranks, self.settings.optimization
        epochs = chosen(optimization.epochs)
        schedule = measurement_epochs(epochs, self.settings.measurement.measurements)
        first_epoch = 1 if checkpoint is None else checkpoint.epoch + 1
        with (
            _name_directory(self.directory),
            _stop_requests(_ECHO_SECONDS if ranks is not None else 0.0) as request,
            _progress_bar(self.console) as progress,
        ):
            task = progress.add_task(
                "", total=epochs, completed=first_epoch - 1, loss=0.0, accuracy=0.0
            )
            if checkpoint is None:
                self._measure(0)
                self._save(0, finished=False)
            saved_at = time.monotonic()
            finished = checkpoint is not None and checkpoint.finished
            remaining = train(
                self.job.model if ranks is None else wrap_parallel(self.job.model, self.device),
                self.job.optimizer,
                self.job.batches,
                optimization,
                seed=self.settings.run.seed,
                first_epoch=first_epoch,
                ranks=ranks,
            )
            stopped = request.agreed(ranks)
            while not finished and not stopped:
                result = next(remaining)
                finished = result.finished
                progress.update(
                    task, completed=result.epoch, loss=result.loss, accuracy=result.accuracy
                )
                due = finished or result.epoch in schedule
                if due:
                    self._measure(result.epoch)
                stopped = request.agreed(ranks)
                if due or stopped or time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                    self._save(result.epoch, finished)
                    saved_at = time.monotonic()
        return 0 if finished else stopped

    def _measure(self, epoch: int) -> None:
        """Measure the model and add a line to the record and to the screen."""
        model, measured, ranks = self.job.model, self.job.measured, self.ranks
        loss, accuracy = evaluate(model, measured, self.settings.optimization, ranks)
        report = analyze(
            model,
            measured,
            self.data.num_classes,
            reduce=self.settings.measurement.reduce,
            full="auto",
            accuracy=True,
            weighting=self.settings.measurement.weighting,
            all_reduce=ranks is not None,
        )
        measurement = Measurement(epoch, loss, accuracy, report)
        together(ranks, lambda: self._record(measurement) if self.first else None)
        self.console.print(
            f"epoch {epoch:5d}  loss {loss:.4g}  accuracy {accuracy:.2%}", highlight=False
        )

    def _record(self, measurement: Measurement) -> None:
        self.directory.add_measurement(measurement)
        self.tracker.add(measurement)

    def _save(self, epoch: int, finished: bool) -> None:
        if self.first:
            model, optimizer = self.job.model.state_dict(), self.job.optimizer.state_dict()
            self.directory.save_checkpoint(Checkpoint(epoch, finished, model, optimizer))


def _progress_bar(console: Console) -> Progress:
    """Return a live bar, or nothing at all where output goes to a file or nowhere."""
    return Progress(
        BarColumn(),
        TextColumn("epoch {task.completed}/{task.total}"),
        TextColumn("loss {task.fields[loss]:.4g}"),
        TextColumn("accuracy {task.fields[accuracy]:.2%}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.quiet,
    )


def _print_results(directory: RunDirectory, files: list[Path], console: Console) -> None:
    last = directory.measurements[-1]
    console.print(last.report.table(escape(f"{directory.path.name}, epoch {last.epoch}")))
    console.print(last.report.summary(), soft_wrap=True, highlight=False)
    for message in last.report.warnings:
        console.print(f"warning: {escape(message)}", style="yellow", soft_wrap=True)
    paths = (escape(str(file)) for file in files)
    console.print("written:", *paths, sep="\n  ", soft_wrap=True, highlight=False)


@contextmanager
def _name_directory(directory: RunDirectory) -> Iterator[None]:
    """Say in the error of a diverging run where what was measured until then is."""
    try:
        yield
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{error}; {directory.path} is kept") from None


@dataclass
class _Request:
    """The signal that asks this process to stop; 0 if none has come."""

    signal_number: int = 0
    until: float = 0.0  # until then, another one counts as the same

    def agreed(self, ranks: Ranks | None) -> int:
        """Return the signal that any process has got; 0 for none."""
        return self.signal_number if ranks is None else ranks.maximum(self.signal_number)


@contextmanager
def _stop_requests(echo_seconds: float) -> Iterator[_Request]:
    """Note the first SIGINT or SIGTERM and go on; a second raises KeyboardInterrupt.

    One within `echo_seconds` of the first counts as the same.
    """
    request = _Request()

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not request.signal_number:
            request.signal_number, request.until = number, now + echo_seconds
        elif now >= request.until:
            raise KeyboardInterrupt

    # Only the main thread may set handlers; elsewhere signals keep their usual effect.
    main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main_thread else ()
    previous = [signal.signal(number, note) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
