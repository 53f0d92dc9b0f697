"""The curves of a run in an experiment tracker: `python -m deeprep.run --tracker wandb`.

What is logged after an epoch is its loss, its accuracy and `LayerReport.scalars`, at the epoch as
step. tracker.json in the run directory says which run of the tracker it is, and which epoch was
logged last; so a run that goes on continues the same curves and logs no epoch twice. Where a
tracker is found, and as whom, each takes from its own settings and environment variables.
"""

from __future__ import annotations

import importlib
import time
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from deeprep.base import strict_json
from deeprep.base.console import print_warning
from deeprep.run.record import Measurement, RunDirectory
from deeprep.run.settings import Settings, TrackerName, to_dict

__all__ = ["Tracker", "require_tracker"]

_PROJECT = "deeprep"
_MLFLOW_BATCH = 1000  # metrics that it takes at once


def require_tracker(name: TrackerName | None) -> None:
    """Check that a tracker is installed.

    Raises
    ------
    ValueError
        It is not.

    >>> require_tracker(None)
    """
    if name is not None and find_spec(name) is None:
        raise ValueError(
            f"tracker is {name!r}, expected a package that is installed: "
            f"pip install 'deeprep[{name}]'"
        )


_Ending = Literal["FINISHED", "FAILED", "KILLED"]  # MLflow's words


class _Log(Protocol):
    """One run of a tracker, open for writing."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self, ending: _Ending) -> None: ...


class Tracker:
    """The tracker of one run; a context manager. Without a name it does nothing.

    Parameters
    ----------
    name
        Which one; None: none.
    directory, settings
        Of the run.

    Attributes
    ----------
    is_stopped
        Whether a signal has stopped the run, which tells its tracker how it ended.

    Raises
    ------
    ValueError
        On entering, where the tracker cannot be reached, or tracker.json is damaged.
    """

    def __init__(
        self, name: TrackerName | None, directory: RunDirectory, settings: Settings
    ) -> None:
        self._name, self._directory, self._settings = name, directory, settings
        self._path = directory.path / "tracker.json"
        self._note: dict[str, Any] = {"tracker": name, "run": None, "epoch": -1}
        self._log: _Log | None = None
        self.is_stopped = False

    def __enter__(self) -> Tracker:
        if self._name is None:
            return self
        if self._path.is_file():
            note = strict_json.read(self._path)
            if not _is_note(note):
                raise ValueError(
                    f"{self._path} is another kind of data, expected {', '.join(self._note)}; "
                    "remove it to begin new curves"
                )
            if note["tracker"] == self._name:  # else config.json has been changed since
                self._note = note
        try:
            self._log = _OPEN[self._name](self._directory.path, self._settings, self._note)
        except Exception as error:  # whatever the package raises without a network or an account
            raise ValueError(
                f"tracker is {self._name!r}, which cannot be started: {error}"
            ) from error
        strict_json.write(self._path, self._note)
        for measurement in self._directory.measurements:  # of before a crash, or of no tracker yet
            self.add(measurement)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._log is not None:
            log, self._log = self._log, None
            stopped = self.is_stopped or kind is KeyboardInterrupt
            ending: _Ending = "KILLED" if stopped else "FINISHED" if kind is None else "FAILED"
            self._or_warn(lambda: log.close(ending))

    def add(self, measurement: Measurement) -> None:
        """Log a measurement, unless its epoch has been; a tracker that fails ends no run."""
        log = self._log
        if log is None or measurement.epoch <= self._note["epoch"]:
            return
        # Noted before: a run that is killed in between lacks a point rather than having it twice.
        self._note["epoch"] = measurement.epoch
        strict_json.write(self._path, self._note)
        values = {"loss": measurement.loss, "accuracy": measurement.accuracy}
        values |= measurement.report.scalars()
        self._or_warn(lambda: log.log(values, measurement.epoch))

    def _or_warn(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            print_warning(f"{self._name}: {error}; what it lacks is in metrics.jsonl")


def _is_note(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and values.keys() == {"tracker", "run", "epoch"}
        and isinstance(values["run"], str)
        and isinstance(values["epoch"], int)
    )


class _TensorBoard:
    def __init__(self, directory: Path, settings: Settings, note: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        note["run"] = "tensorboard"
        self._writer = SummaryWriter(str(directory / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, ending: _Ending) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, directory: Path, settings: Settings, note: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        note["run"] = note["run"] or uuid.uuid4().hex
        self._run = wandb.init(
            project=_PROJECT,
            name=directory.name,
            id=note["run"],
            resume="allow",
            dir=str(directory),
            config=to_dict(settings),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        # Without commit it would keep the values until those of the next step come.
        self._run.log(values, step=step, commit=True)

    def close(self, ending: _Ending) -> None:
        self._run.finish(exit_code=int(ending != "FINISHED"))


class _MLflow:
    def __init__(self, directory: Path, settings: Settings, note: dict[str, Any]) -> None:
        self._entities = importlib.import_module("mlflow.entities")
        self._client = importlib.import_module("mlflow").MlflowClient()
        if note["run"] is None:
            number = self._experiment()
            note["run"] = self._client.create_run(number, run_name=directory.name).info.run_id
            for group, values in to_dict(settings).items():
                for name, value in values.items():
                    self._client.log_param(note["run"], f"{group}.{name}", value)
        else:
            self._client.update_run(note["run"], "RUNNING")
        self._run = note["run"]

    def _experiment(self) -> str:
        """Return the number of the project's experiment, which the first run makes."""
        experiment = self._client.get_experiment_by_name(_PROJECT)
        if experiment is None:
            try:
                return str(self._client.create_experiment(_PROJECT))
            except Exception:  # another run of a sweep may have made it just now
                experiment = self._client.get_experiment_by_name(_PROJECT)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)

    def log(self, values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, v, now, step) for name, v in values.items()]
        for begin in range(0, len(metrics), _MLFLOW_BATCH):
            self._client.log_batch(self._run, metrics[begin : begin + _MLFLOW_BATCH])

    def close(self, ending: _Ending) -> None:
        self._client.set_terminated(self._run, ending)


class _Trackio:
    def __init__(self, directory: Path, settings: Settings, note: dict[str, Any]) -> None:
        trackio = importlib.import_module("trackio")
        # Its runs are found again by name, which many directories may share.
        note["run"] = note["run"] or f"{directory.name}-{uuid.uuid4().hex[:8]}"
        self._run = trackio.init(
            project=_PROJECT,
            name=note["run"],
            resume="allow",
            config=to_dict(settings),
            embed=False,
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self, ending: _Ending) -> None:
        self._run.finish()


_OPEN: dict[str, Callable[[Path, Settings, dict[str, Any]], _Log]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}
