"""Train a network and watch its layers compress: `python -m deeprep.run --arch mlp`.

Flags are the fields of `deeprep.config.Settings`. Results go to a new directory under runs/;
`deeprep.record` says what it holds. Ctrl-C or SIGTERM finishes the epoch and leaves a directory
that --resume continues; a second one stops at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deeprep.config import Settings, chosen
from deeprep.data import Batches, Data, load_data
from deeprep.defaults import describe_defaults, resolve
from deeprep.models import build_model
from deeprep.ops import build_info
from deeprep.probe import analyze
from deeprep.record import Checkpoint, Measurement, RunDirectory
from deeprep.train import (
    NonFiniteLossError,
    evaluate,
    make_optimizer,
    measurement_epochs,
    train,
)

__all__ = ["RunStopped", "main", "run"]

_CHECKPOINT_SECONDS = 20.0
_MEASUREMENT_BATCH = 1024  # samples; bounds the memory that feature maps take while measuring


class RunStopped(Exception):  # noqa: N818  it is no error: the run can go on
    """A signal stopped a run; its directory can be continued."""

    def __init__(self, signal_number: int, directory: Path) -> None:
        super().__init__(f"stopped; continue with: python -m deeprep.run --resume {directory}")
        self.signal_number = signal_number


@dataclass(frozen=True)
class _CommandLine(Settings):
    resume: Path | None = None
    """Continue the stopped run in this directory, with the settings in its config.json. Takes no
    other flag."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for an error, 128 + n if signal n came."""
    about = "Train a network and measure, layer by layer, how it compresses and discriminates."
    command = tyro.cli(
        _CommandLine,
        prog="python -m deeprep.run",
        description=f"{about}\n\n{describe_defaults()}",
        args=arguments,
    )
    settings = Settings(**{each.name: getattr(command, each.name) for each in fields(Settings)})
    console = Console()
    try:
        if command.resume is None:
            run(settings, console)
        elif settings == Settings():
            run(RunDirectory.open(command.resume), console)
        else:
            raise ValueError("resume must be the only flag: settings come from its config.json")
    except (ValueError, OSError, NonFiniteLossError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except RunStopped as stopped:
        console.print(f"\n{escape(str(stopped))}", soft_wrap=True, highlight=False)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def run(start: Settings | RunDirectory, console: Console | None = None) -> RunDirectory:
    """Train, measure and record: a new run from settings, or an old one from its directory.

    Parameters
    ----------
    start
        Settings, which are resolved here, or the opened directory of a run to continue.
    console
        Where progress and results are printed; default: nowhere.

    Raises
    ------
    ValueError
        Settings that do not fit together or do not fit the data.
    FileNotFoundError
        A data set that is nowhere.
    FileExistsError
        The named run directory exists.
    NonFiniteLossError
        The loss became NaN or infinite; the run directory is kept.
    RunStopped
        SIGINT or SIGTERM came; the run directory is complete up to the epoch it came in.
    """
    console = console or Console(quiet=True)
    settings = start.settings() if isinstance(start, RunDirectory) else resolve(start)
    if settings.run.threads is not None:
        torch.set_num_threads(settings.run.threads)
    optimization, device = settings.optimization, _prepare_device(settings)
    data = _load(settings)
    torch.manual_seed(settings.run.seed)
    dtype = torch.float64 if optimization.dtype == "float64" else torch.float32
    model = build_model(settings.model, data.input_shape, data.num_classes).to(device, dtype)
    inputs, labels = data.inputs.to(device, dtype), data.labels.to(device)
    batches = Batches(inputs, labels, chosen(optimization.batch_size))
    measured_batches = Batches(inputs, labels, _MEASUREMENT_BATCH)
    optimizer = make_optimizer(model, optimization)

    if isinstance(start, RunDirectory):
        directory = start
    else:
        directory = RunDirectory.create(_pin(settings, device), device)
    checkpoint = directory.load_checkpoint()
    if checkpoint is not None:
        model.load_state_dict(checkpoint.model)
        optimizer.load_state_dict(checkpoint.optimizer)
    first_epoch = 1 if checkpoint is None else checkpoint.epoch + 1
    directory.forget_after(-1 if checkpoint is None else checkpoint.epoch)
    console.print(_describe(settings, data, device, directory), soft_wrap=True, highlight=False)

    def measure(epoch: int) -> None:
        loss, accuracy = evaluate(model, measured_batches, optimization)
        report = analyze(
            model,
            measured_batches,
            data.num_classes,
            reduce=settings.measurement.reduce,
            weighting=settings.measurement.weighting,
        )
        directory.add_measurement(Measurement(epoch, loss, accuracy, report))
        console.print(
            f"epoch {epoch:5d}  loss {loss:.4g}  accuracy {accuracy:.2%}", highlight=False
        )

    def save(epoch: int, finished: bool) -> None:
        state = Checkpoint(epoch, finished, model.state_dict(), optimizer.state_dict())
        directory.save_checkpoint(state)

    epochs = chosen(optimization.epochs)
    schedule = measurement_epochs(epochs, settings.measurement.measurements)
    with (
        _name_directory(directory),
        _stop_requests() as stop,
        _progress_bar(console) as progress,
    ):
        task = progress.add_task(
            "", total=epochs, completed=first_epoch - 1, loss=0.0, accuracy=0.0
        )
        if checkpoint is None:
            measure(0)
            save(0, finished=False)
        saved_at = time.monotonic()
        finished = checkpoint is not None and checkpoint.finished
        remaining = train(
            model,
            optimizer,
            batches,
            optimization,
            seed=settings.run.seed,
            first_epoch=first_epoch,
        )
        while not finished and stop.signal_number is None:
            result = next(remaining)
            finished = result.finished
            progress.update(
                task, completed=result.epoch, loss=result.loss, accuracy=result.accuracy
            )
            due = finished or result.epoch in schedule
            if due:
                measure(result.epoch)
            waited = time.monotonic() - saved_at
            if due or waited > _CHECKPOINT_SECONDS or stop.signal_number is not None:
                save(result.epoch, finished)
                saved_at = time.monotonic()

    files = directory.write_summaries()
    _print_results(directory, files, console)
    if not finished and stop.signal_number is not None:
        raise RunStopped(stop.signal_number, directory.path)
    return directory


def _prepare_device(settings: Settings) -> torch.device:
    name = settings.run.device
    lacks = "PyTorch finds no GPU" if not torch.cuda.is_available() else ""
    if not build_info()["cuda"]:  # then nothing on a GPU can be measured
        lacks = lacks or "the compiled core was built without CUDA"
    if name == "cuda" and lacks:
        raise ValueError(f"device must be cpu or auto where {lacks}, got cuda")
    if name == "cpu" or lacks:
        return torch.device("cpu")
    # cuBLAS is deterministic only with a workspace of fixed size, read when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device("cuda")


def _pin(settings: Settings, device: torch.device) -> Settings:
    """Settings that mean the same when the run goes on: there, later, in another directory.

    The number of threads is among them because the last bits of a sum depend on it.
    """
    data_dir = settings.data.data_dir
    return replace(
        settings,
        data=replace(settings.data, data_dir=data_dir and data_dir.expanduser().resolve()),
        run=replace(
            settings.run,
            device="cuda" if device.type == "cuda" else "cpu",
            threads=torch.get_num_threads(),
        ),
    )


def _load(settings: Settings) -> Data:
    data = settings.data
    return load_data(
        data.dataset,
        data_dir=data.data_dir,
        classes=data.classes,
        samples_per_class=data.samples_per_class,
        normalize=data.normalize,
        seed=settings.run.seed,
        download=data.download,
        image_size=data.image_size,
        dimension=data.dimension,
        noise=data.noise,
    )


def _describe(settings: Settings, data: Data, device: torch.device, directory: RunDirectory) -> str:
    samples = (
        f"{len(data.labels)} samples of shape {data.input_shape} in {data.num_classes} classes"
    )
    place = f"{torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    return f"{settings.model.arch} on {data.name} ({samples}), {place}, into {directory.path}"


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
    console.print(last.report.table(f"{directory.path.name}, epoch {last.epoch}"))
    console.print(last.report.summary(), soft_wrap=True, highlight=False)
    for message in last.report.warnings:
        console.print(f"warning: {escape(message)}", style="yellow", soft_wrap=True)
    console.print("written:", *map(str, files), sep="\n  ", soft_wrap=True, highlight=False)


@contextmanager
def _name_directory(directory: RunDirectory) -> Iterator[None]:
    """Say in the error of a diverging run where what was measured until then is."""
    try:
        yield
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{error}; {directory.path} is kept") from None


@dataclass
class _Stop:
    signal_number: int | None = None


@contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """Note the first SIGINT or SIGTERM and go on; a second raises KeyboardInterrupt."""
    stop = _Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal_number is not None:
            raise KeyboardInterrupt
        stop.signal_number = number

    # Only the main thread may set handlers; elsewhere signals keep their usual effect.
    main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main_thread else ()
    previous = [signal.signal(number, note) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
