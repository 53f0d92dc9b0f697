"""The runs of a sweep as jobs of a Slurm cluster, through submitit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deeprep.base.validate import require
from deeprep.sweep.drive import Launched
from deeprep.sweep.runs import SweepDirectory


def parse_slurm_options(options: Sequence[str]) -> dict[str, str | int]:
    """Read KEY=VALUE options of sbatch, such as time=120 (minutes) and gpus_per_node=1.

    Raises
    ------
    ValueError
        Anything else.

    >>> parse_slurm_options(["time=120", "partition=gpu"])
    {'slurm_time': 120, 'slurm_partition': 'gpu'}
    """
    parsed: dict[str, str | int] = {}
    for option in options:
        key, _, value = option.partition("=")
        require("slurm", repr(option), bool(key and value), "KEY=VALUE such as time=120")
        name = key.removeprefix("--").replace("-", "_")
        parsed[f"slurm_{name}"] = int(value) if value.isdigit() else value
    return parsed


class Job:
    """What submitit sends to the cluster: one run, which goes on after a time limit."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name

    def __call__(self) -> str:
        """Do the run, or go on with it; return its status."""
        return SweepDirectory(self.directory).perform(self.name).status

    def checkpoint(self) -> Any:
        """Return what submitit puts into the queue when the time is up: the same once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmJob:
    """A run in the queue of the cluster, or under way there."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def done(self) -> bool:
        """Whether the job has ended."""
        return bool(self._job.done())

    def stop(self) -> None:
        """Cancel the job: Slurm asks it to stop, and kills it half a minute later."""
        self._job.cancel(check=False)

    def why(self) -> str:
        """Say how the job ended."""
        return f"job {self._job.job_id}: {self._job.state}; see {self._job.paths.stderr}"


def slurm_launcher(
    sweep: SweepDirectory, options: dict[str, str | int], cluster: str = "slurm"
) -> Callable[[str], Launched]:
    """Return what submits a run to the cluster.

    Parameters
    ----------
    sweep
        On a file system that the nodes share.
    options
        Of `parse_slurm_options`.
    cluster
        submitit's name of where jobs go; "local" tries the same on this machine.

    Raises
    ------
    ImportError
        Without submitit.
    RuntimeError
        Without Slurm.
    ValueError
        An option that submitit does not know.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("--executor slurm needs submitit: pip install submitit") from error
    path = sweep.path.resolve()
    executor = submitit.AutoExecutor(folder=path / "slurm" / "%j", cluster=cluster)
    try:
        executor.update_parameters(name=f"sweep-{path.name}", **options)
    except (NameError, TypeError) as error:
        raise ValueError(f"slurm has an option that submitit does not know: {error}") from error

    def launch(name: str) -> Launched:
        return SlurmJob(executor.submit(Job(path, name)))

    return launch
