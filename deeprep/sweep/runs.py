"""One run of a sweep, in a process of its own: started or continued, and how it ended.

`python -m deeprep.sweep.runs DIRECTORY NAME` does one run of the sweep in DIRECTORY.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from deeprep.base import strict_json
from deeprep.base.console import stdout_console
from deeprep.base.validate import require
from deeprep.run import RunStopped, run
from deeprep.run.defaults import resolve
from deeprep.run.record import RunDirectory
from deeprep.run.settings import Settings, from_dict, to_dict
from deeprep.sweep.grid import Run

Status = Literal["new", "stopped", "finished", "failed"]
# Settings in which a run may differ from its sweep: they change the last bits at most.
_FREE = ("device", "threads", "runs_dir", "name", "tracker")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    status
        "finished", "failed" or "stopped"; a stopped run can be continued.
    error
        Why a failed run failed.
    seconds
        How long its last process took.
    """

    status: Status
    error: str = ""
    seconds: float = 0.0


class SweepDirectory:
    """The directory of a sweep; `deeprep.sweep` says what it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run_path(self, name: str) -> Path:
        """Directory of a run."""
        return self.path / "runs" / name

    def log_path(self, name: str) -> Path:
        """What a run printed."""
        return self.path / "logs" / f"{name}.txt"

    def write(self, base: Settings, axes: Sequence[str], seeds: str, runs: Sequence[Run]) -> None:
        """Make the directory and write sweep.json."""
        for name in ("runs", "outcomes", "logs"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        content = {
            "base": to_dict(base),
            "grid": list(axes),
            "seeds": seeds,
            "runs": {run.name: to_dict(run.settings) for run in runs},
        }
        strict_json.write(self.path / "sweep.json", content)

    def read(self) -> dict[str, Any]:
        """Return what `write` was given, as plain data.

        Raises
        ------
        FileNotFoundError
            The path is no directory of a sweep.
        ValueError
            Its sweep.json is damaged or of another kind.
        """
        path = self.path / "sweep.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"DIRECTORY is {self.path}, which holds no sweep.json, expected a sweep that has "
                "one, or --grid or --seeds for a new one"
            )
        content = strict_json.read(path)
        types = {"base": dict, "grid": list, "seeds": str, "runs": dict}
        whole = isinstance(content, dict) and all(
            isinstance(content.get(name), wanted) for name, wanted in types.items()
        )
        require(str(path), "no description of a sweep", whole, ", ".join(types))
        try:
            from_dict(content["base"])
            for settings in content["runs"].values():
                from_dict(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        described: dict[str, Any] = content
        return described

    def outcome(self, name: str) -> Outcome:
        """Return how a run ended; "new" where there is nothing of it yet."""
        if self.has_outcome(name):
            path = self._outcome_path(name)
            try:
                return Outcome(**strict_json.read(path))
            except TypeError:
                wanted = "status, error and seconds; remove it to go on with the run"
                raise ValueError(f"{path} is no outcome of a run, expected {wanted}") from None
        return Outcome("stopped" if self._begun(name) else "new")

    def has_outcome(self, name: str) -> bool:
        """Whether it is written down how a run ended."""
        return self._outcome_path(name).is_file()

    def set_outcome(self, name: str, outcome: Outcome) -> None:
        """Write down how a run ended."""
        strict_json.write(self._outcome_path(name), asdict(outcome))

    def forget_outcome(self, name: str) -> None:
        """Forget how a run ended: it goes on."""
        self._outcome_path(name).unlink(missing_ok=True)

    def check_settings(self, run: Run) -> None:
        """Check that the directory of a run, if there is one, is of a run with these settings.

        Raises
        ------
        ValueError
            It is not; names the setting.
        """
        if run.invalid or not self._begun(run.name):
            return
        path = self.run_path(run.name)
        found = _comparable(RunDirectory.open(path).settings())
        for group, wanted in _comparable(resolve(run.settings)).items():
            for name, value in wanted.items():
                kept = found[group].get(name)
                flag = name.replace("_", "-")
                advice = f"{value} as given now; choose another DIRECTORY"
                require(f"{flag} of {path}", kept, kept == value, advice)

    def perform(self, name: str) -> Outcome:
        """Start or continue a run in this process; write down how it ended and return that.

        An error of any kind makes it a failed run; its traceback goes to the log.
        """
        begin = time.monotonic()
        path = self.run_path(name)
        status: Status = "finished"
        error = ""
        try:
            if self._begun(name):
                run(RunDirectory.open(path), stdout_console())
            else:
                _remove_partial(path)
                settings = from_dict(self.read()["runs"][name])
                place = replace(settings.run, runs_dir=path.parent, name=name)
                run(replace(settings, run=place), stdout_console())
        except (RunStopped, KeyboardInterrupt):
            status = "stopped"
        except Exception as raised:  # the other runs do not depend on this one
            traceback.print_exc()
            status, error = "failed", f"{type(raised).__name__}: {raised}"
        outcome = Outcome(status, error, time.monotonic() - begin)
        self.set_outcome(name, outcome)
        return outcome

    def _begun(self, name: str) -> bool:
        return (self.run_path(name) / "config.json").is_file()

    def _outcome_path(self, name: str) -> Path:
        return self.path / "outcomes" / f"{name}.json"


def _comparable(settings: Settings) -> dict[str, dict[str, Any]]:
    groups = to_dict(settings)
    for name in _FREE:
        del groups["run"][name]
    if (data_dir := settings.data.data_dir) is not None:
        groups["data"]["data_dir"] = str(data_dir.expanduser().resolve())
    return groups


def _remove_partial(path: Path) -> None:
    """Remove the directory of a run that was killed before it wrote its config.json."""
    if path.is_dir():
        for file in path.glob(".*.partial*"):
            file.unlink()
        path.rmdir()


if __name__ == "__main__":
    outcome = SweepDirectory(Path(sys.argv[1])).perform(sys.argv[2])
    sys.exit(outcome.status == "failed")
