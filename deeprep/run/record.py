"""The directory that a run leaves: how it was made, what it measured, how to continue it.

config.json          settings, versions, commit, device, threads, processes, how the core was built
metrics.jsonl        one line per measurement: epoch, loss, accuracy, report
layers.csv           the last measurement, one row per layer
compression.png, discrimination.png    the last measurement; evolution.png    all of them
checkpoint.pt        weights and optimiser
tracker.json         with --tracker: which run of the tracker it is, and the last epoch logged

Every file is written under another name and then renamed, so a run killed at any moment leaves
whole files. JSON is strict: where a report holds NaN or infinity, there is a string instead, as
`LayerReport.to_dict` says.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from deeprep import plots
from deeprep.base import strict_json
from deeprep.base.machine import available_cores, processor
from deeprep.base.paths import atomic_path, write_text
from deeprep.base.validate import require
from deeprep.ops import build_info
from deeprep.report import LayerReport
from deeprep.run.defaults import resolve
from deeprep.run.settings import Settings, from_dict, to_dict

__all__ = ["Checkpoint", "Measurement", "RunDirectory", "environment"]


@dataclass(frozen=True)
class Measurement:
    """What was measured after an epoch, on the training data in eval mode.

    Attributes
    ----------
    epoch
        Epochs of training completed; 0 is the initialisation.
    loss
        Mean loss per sample.
    accuracy
        Share of samples that the network classifies correctly.
    report
        The layers' statistics.
    """

    epoch: int
    loss: float
    accuracy: float
    report: LayerReport


@dataclass(frozen=True)
class Checkpoint:
    """All that training needs to go on: see `deeprep.run.train`.

    Attributes
    ----------
    epoch
        Epochs completed.
    finished
        Whether training has ended, at the last epoch or at stop_loss.
    model
        State dict of the model.
    optimizer
        State dict of the optimiser.
    """

    epoch: int
    finished: bool
    model: dict[str, Any]
    optimizer: dict[str, Any]


class RunDirectory:
    """The directory of one run; make one with `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.measurements: list[Measurement] = []

    @classmethod
    def create(cls, settings: Settings, device: torch.device) -> RunDirectory:
        """Make a new directory under `settings.run.runs_dir` and write its config.json.

        An existing one is never touched: a name that was given is then an error, the default name,
        <arch>-<dataset>-seed<seed>, gets -2, -3, ... appended.

        Raises
        ------
        FileExistsError
            The directory `settings.run.name` exists.
        OSError
            Nothing can be written under `settings.run.runs_dir`.
        """
        self = cls(_make_directory(settings))
        config = {"settings": to_dict(settings), "environment": environment(device)}
        try:
            strict_json.write(self.path / "config.json", config, indent=2)
        except OSError:
            with contextlib.suppress(OSError):
                self.path.rmdir()  # else its name would be taken
            raise
        return self

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open the directory of an earlier run with the measurements it holds.

        Raises
        ------
        FileNotFoundError
            The path is not a run directory.
        ValueError
            A line of metrics.jsonl is no measurement.
        """
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"resume is {path}, expected a run directory with a config.json"
            )
        self = cls(path)
        metrics = path / "metrics.jsonl"
        lines = metrics.read_bytes().splitlines() if metrics.is_file() else []
        self.measurements = [
            _read_measurement(line, f"{metrics}, line {number}")
            for number, line in enumerate(lines, start=1)
        ]
        return self

    @property
    def checkpoint_path(self) -> Path:
        """Where the checkpoint is, or will be."""
        return self.path / "checkpoint.pt"

    def settings(self) -> Settings:
        """Return the settings in config.json.

        Raises
        ------
        ValueError
            It does not hold the settings of a run, each of its type and in its range.
        """
        path = self.path / "config.json"
        config = strict_json.read(path)
        try:
            settings = from_dict(config.get("settings") if isinstance(config, dict) else None)
            _check_resolved(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return settings

    def add_measurement(self, measurement: Measurement) -> None:
        """Add a line to metrics.jsonl."""
        self.measurements.append(measurement)
        self._write_metrics()

    def forget_after(self, epoch: int) -> None:
        """Drop measurements of later epochs: a run that goes on from `epoch` takes them again."""
        kept = [measured for measured in self.measurements if measured.epoch <= epoch]
        if len(kept) < len(self.measurements):
            self.measurements = kept
            self._write_metrics()

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace checkpoint.pt; it is on the disk, not just in its cache, when this returns."""
        with atomic_path(self.checkpoint_path) as path:
            try:
                with path.open("wb") as file:
                    torch.save(vars(checkpoint), file)
                    file.flush()
                    os.fsync(file.fileno())
            except RuntimeError as error:
                # torch covers the error of a full disk with one about its own positions.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(self) -> Checkpoint | None:
        """Return the last checkpoint, on the CPU; None if the run was stopped before its first.

        Raises
        ------
        ValueError
            The file is damaged, or no checkpoint of a run.
        """
        path = self.checkpoint_path
        if not path.is_file():
            return None
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles, which the error says better
            try:
                values = torch.load(file, map_location="cpu", weights_only=True)
            except MemoryError:
                raise
            except Exception as error:  # whatever unpickling raises on bytes that mean other things
                raise ValueError(f"{path} is damaged, {_WANTED_CHECKPOINT}") from error
        types = {"epoch": int, "finished": bool, "model": dict, "optimizer": dict}
        if not _has_fields(values, types):
            raise ValueError(f"{path} is another kind of data, {_WANTED_CHECKPOINT}")
        return Checkpoint(**values)

    def write_summaries(self) -> list[Path]:
        """Write layers.csv and figures from the measurements so far; return all files' paths."""
        if self.measurements:
            last = self.measurements[-1].report
            evolution = [(each.epoch, each.report) for each in self.measurements]
            last.to_csv(self.path / "layers.csv")
            plots.plot_compression(last, self.path / "compression.png")
            plots.plot_discrimination(last, self.path / "discrimination.png")
            plots.plot_evolution(evolution, self.path / "evolution.png")
        return sorted(path for path in self.path.iterdir() if not path.name.startswith("."))

    def _write_metrics(self) -> None:
        lines = []
        for measurement in self.measurements:
            values = {**vars(measurement), "report": measurement.report.to_dict()}
            lines.append(strict_json.dumps(values))
        write_text(self.path / "metrics.jsonl", "".join(f"{line}\n" for line in lines))


_WANTED_CHECKPOINT = (
    "expected a checkpoint of deeprep.run; remove it to train anew from the first epoch"
)


def _has_fields(values: Any, types: dict[str, Any]) -> bool:
    """Whether these are the fields of something that was written, each of its type."""
    return (
        isinstance(values, dict)
        and values.keys() == types.keys()
        and all(isinstance(values[name], wanted) for name, wanted in types.items())
    )


def _read_measurement(line: bytes, where: str) -> Measurement:
    """Return the measurement in a line of metrics.jsonl."""
    values = strict_json.parse(line, where)
    number = (int, float)
    if not _has_fields(values, {"epoch": int, "loss": number, "accuracy": number, "report": dict}):
        wanted = "a measurement of deeprep.run: epoch, loss, accuracy and report"
        raise ValueError(f"{where} is another kind of data, expected {wanted}")
    try:
        report = LayerReport.from_dict(values["report"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is no measurement of deeprep.run: {error}") from error
    return Measurement(**{**values, "report": report})


def _check_resolved(settings: Settings) -> None:
    """Check that no setting is open that a run chooses: training would ask for it later."""
    for group, values in to_dict(resolve(settings)).items():
        for name, value in values.items():
            found = getattr(getattr(settings, group), name)
            wanted = f"a value, such as {value}"
            require(f"{group}.{name}", "null", found is not None or value is None, wanted)


def _make_directory(settings: Settings) -> Path:
    runs_dir, name = settings.run.runs_dir, settings.run.name
    stem = f"{settings.model.arch}-{settings.data.dataset}-seed{settings.run.seed}"
    counted = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        for each in counted if name is None else (name,):
            with contextlib.suppress(FileExistsError):
                (runs_dir / each).mkdir()
                return runs_dir / each
    except OSError as error:
        wanted = f"a directory that can be written to ({error.strerror})"
        raise type(error)(f"runs_dir is {runs_dir}, expected {wanted}") from error
    path = runs_dir / str(name)
    advice = f"go on with --resume {path}, or remove it"
    raise FileExistsError(f"{path} exists, expected a new name: {advice}")


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a result depends on besides its settings: versions, commit, device, threads.

    >>> sorted(environment(torch.device("cpu")))
    ['commit', 'core', 'device', 'numpy', 'platform', 'processes', 'processor', 'python']
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "core": build_info(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": f"{processor()}, {available_cores()} cores",
        "commit": _commit(),
        "processes": distributed.get_world_size() if distributed.is_initialized() else 1,
        "device": str(device) if gpu is None else f"{device} ({gpu})",
    }


def _commit() -> str | None:
    """Return the git commit of the checkout that deeprep runs from; None if it runs from none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        describe = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
