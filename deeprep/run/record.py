"""What a run leaves behind: a directory that says how it was made, and from which it can go on.

config.json          settings, versions, commit, device, threads, processes, how the core was built
metrics.jsonl        one line per measurement: epoch, loss, accuracy, report
layers.csv           the last measurement, one row per layer
compression.png, discrimination.png    the last measurement; evolution.png    all of them
checkpoint.pt        weights and optimiser

Every file is written under another name and then renamed, so a run killed at any moment leaves
whole files. JSON is strict: where a report holds NaN or infinity, there is a string instead, as
`LayerReport.to_dict` says.
"""

from __future__ import annotations

import os
import platform
import subprocess
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
from deeprep.ops import build_info
from deeprep.report import LayerReport
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
        """
        self = cls(_make_directory(settings))
        config = {"settings": to_dict(settings), "environment": environment(device)}
        strict_json.write(self.path / "config.json", config, indent=2)
        return self

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open the directory of an earlier run with the measurements it holds.

        Raises
        ------
        FileNotFoundError
            The path is not a run directory.
        """
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"resume is {path}, expected a run directory with a config.json"
            )
        self = cls(path)
        metrics = path / "metrics.jsonl"
        for line in metrics.read_text().splitlines() if metrics.is_file() else []:
            values = strict_json.parse(line, metrics)
            report = LayerReport.from_dict(values.pop("report"))
            self.measurements.append(Measurement(**values, report=report))
        return self

    def settings(self) -> Settings:
        """Return the settings in config.json."""
        return from_dict(strict_json.read(self.path / "config.json")["settings"])

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
        with atomic_path(self.path / "checkpoint.pt") as path, path.open("wb") as file:
            torch.save(vars(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self) -> Checkpoint | None:
        """Return the last checkpoint, on the CPU; None if the run was stopped before its first."""
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            return None
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))

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


def _make_directory(settings: Settings) -> Path:
    runs_dir, name = settings.run.runs_dir, settings.run.name
    if name is not None:
        path = runs_dir / name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            advice = f"go on with --resume {path}, or remove it"
            raise FileExistsError(f"{path} exists, expected a new name: {advice}") from None
        return path
    stem = f"{settings.model.arch}-{settings.data.dataset}-seed{settings.run.seed}"
    number = 1
    while True:
        path = runs_dir / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


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
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        describe = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
