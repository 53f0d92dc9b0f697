"""The command line `python -m deeprep.sweep`."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from rich.markup import escape
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from deeprep.base.console import print_error, stdout_console
from deeprep.base.flags import given_fields, parse_flags
from deeprep.base.validate import require
from deeprep.run.settings import Settings, from_dict
from deeprep.run.show import explain, show_defaults, show_settings
from deeprep.sweep.drive import drive, local_launcher, locked
from deeprep.sweep.grid import Run, axis_field, make_runs, parse_axis, parse_seeds
from deeprep.sweep.results import collect, figure, table, write_csv
from deeprep.sweep.runs import SweepDirectory
from deeprep.sweep.slurm import parse_slurm_options, slurm_launcher

__all__ = ["main"]

_ABOUT = """Run `python -m deeprep.run` for every combination of some values of its flags and for
every seed, and put the results side by side: a table and a figure, mean and spread over the seeds.

A --grid gives a flag of run several values; all other flags of run hold for every run.
--show-settings prints what they come to.

Examples:
  python -m deeprep.sweep runs/depth --grid depth=4,6,8 --seeds 0..4
  python -m deeprep.sweep runs/scale --grid depth=4,6 --grid init-scale=0.1,0.3
      --seeds 0,1 --jobs 4 --arch linear --dataset orthogonal --epochs 2000
  python -m deeprep.sweep runs/depth              (continues the first one)
  python -m deeprep.sweep runs/vision --grid arch=resnet18,resnet34
      --dataset cifar10 --executor slurm --slurm time=240
      --slurm gpus_per_node=1 --slurm partition=gpu

Ctrl-C stops the runs at the end of their epoch. The same command again, or DIRECTORY alone, skips
the finished runs and continues the stopped ones; a larger grid or more seeds add runs. A run that
fails does not stop the others; the exit status is then 1."""

_Flag = Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")]


@dataclass(frozen=True)
class _CommandLine(Settings):
    directory: Annotated[Positional[Path], arg(metavar="DIRECTORY")] = Path("runs/sweep")
    """Where the sweep is, or will be."""

    grid: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FLAG=VALUE,VALUE,...")] = ()
    """A flag of run and its values. May be given several times: then all combinations run. Parts of
    one value are separated by spaces: --grid "classes=3,0 7"."""

    seeds: str | None = None
    """Seeds of every combination, such as 0..4 or 0,3,7. Default: 0."""

    jobs: int = 1
    """How many runs at a time; on this machine they share its cores, and take turns on its GPUs."""

    retry_failed: _Flag = False
    """Continue failed runs, too."""

    dry_run: _Flag = False
    """Check everything, list the runs, and start none."""

    show_settings: _Flag = False
    """Print the table of defaults and every setting that the runs come to, and why; start none."""

    executor: Literal["local", "slurm"] = "local"
    """Where runs go: processes on this machine, or jobs of a Slurm cluster (pip install
    submitit)."""

    slurm: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE")] = ()
    """An option of sbatch, such as time=120 (minutes); may be given several times."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    The exit status: 0, 1 for an error or a run that failed or is invalid, 128 + n after signal n.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = parse_flags(_CommandLine, "python -m deeprep.sweep", _ABOUT, arguments)
    console = stdout_console()
    try:
        return _main(command, given_fields(arguments), console)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print_error(error)
        return 1


def _main(command: _CommandLine, given: set[str], console: Console) -> int:
    require("jobs", command.jobs, command.jobs >= 1, ">= 1")
    options = parse_slurm_options(command.slurm)
    wanted = command.executor == "slurm" or not options
    require("slurm", " ".join(command.slurm), wanted, "to be left out unless --executor is slurm")
    sweep = SweepDirectory(command.directory)
    base, grid, seeds = _definition(command, sweep)
    runs = make_runs(base, [parse_axis(text) for text in grid], parse_seeds(seeds))
    if all(run.invalid for run in runs):
        raise ValueError(f"no run of the grid is possible: {runs[0].invalid}")
    if command.show_settings:
        continues = not command.grid and command.seeds is None
        _show(sweep, runs, _changed(base) if continues else given, continues, console)
        return 0
    for run in runs:
        sweep.check_settings(run)
    todo = _select(sweep, runs, retry_failed=command.retry_failed)
    states = Counter("invalid" if r.invalid else sweep.outcome(r.name).status for r in runs)
    counted = ", ".join(f"{count} {status}" for status, count in states.items())
    console.print(
        f"{len(runs)} runs in {escape(str(sweep.path))}: {counted}; {len(todo)} to do",
        highlight=False,
    )
    if command.dry_run:
        for run in runs:
            status = f"invalid: {run.invalid}" if run.invalid else sweep.outcome(run.name).status
            console.print(escape(f"{run.name}  {status}"), highlight=False, soft_wrap=True)
        return int(states["invalid"] > 0)
    with locked(sweep):
        if command.executor == "slurm":
            launch = slurm_launcher(sweep, options)
        else:
            launch = local_launcher(sweep, command.jobs)
        sweep.write(base, grid, seeds, runs)
        jobs = len(todo) if command.executor == "slurm" else command.jobs
        signal_number = drive(sweep, [run.name for run in todo], launch, jobs, console)
    return _conclude(sweep, runs, signal_number, console)


def _definition(command: _CommandLine, sweep: SweepDirectory) -> tuple[Settings, list[str], str]:
    """Return fixed settings, grid and seeds: of the command line, or of the sweep there is."""
    base = Settings(**{each.name: getattr(command, each.name) for each in fields(Settings)})
    if command.grid or command.seeds is not None:
        return base, list(command.grid), command.seeds or "0"
    content = sweep.read()
    if base != Settings():
        raise ValueError(
            "grid and seeds are left out, expected one of them beside flags of run; without flags "
            "a sweep continues as its sweep.json says"
        )
    return from_dict(content["base"]), content["grid"], content["seeds"]


def _changed(base: Settings) -> set[str]:
    """Names of the settings that are not as Settings() has them."""
    groups = [(getattr(base, each.name), getattr(Settings(), each.name)) for each in fields(base)]
    return {
        field.name
        for ours, default in groups
        for field in fields(ours)
        if getattr(ours, field.name) != getattr(default, field.name)
    }


def _show(
    sweep: SweepDirectory, runs: list[Run], given: set[str], continues: bool, console: Console
) -> None:
    """Print what would be run; `given` are the settings of the command line, or of sweep.json."""
    origin = "sweep.json" if continues else "given"
    explained = []
    for run in (run for run in runs if not run.invalid):
        place = replace(run.settings.run, runs_dir=sweep.path / "runs", name=run.name)
        swept = (axis_field(flag) for flag in run.values)
        sources = {
            **dict.fromkeys(given, origin),
            **dict.fromkeys(swept, "--grid"),
            **{"seed": "--seeds", "runs_dir": "DIRECTORY", "name": "its values"},
        }
        explained.append(explain(replace(run.settings, run=place), sources))
    show_defaults(console)
    show_settings(explained, console)


def _select(sweep: SweepDirectory, runs: list[Run], *, retry_failed: bool) -> list[Run]:
    done = ("finished",) if retry_failed else ("finished", "failed")
    return [r for r in runs if not r.invalid and sweep.outcome(r.name).status not in done]


def _conclude(sweep: SweepDirectory, runs: list[Run], signal_number: int, console: Console) -> int:
    """Write and print what there is; return the exit status."""
    points = collect(sweep, runs)
    if any(point.measurements for point in points):
        paths = [sweep.path / "table.csv", sweep.path / "figure.png"]
        write_csv(points, paths[0])
        figure(points, paths[1])
        console.print(table(points))
        shown = (escape(str(path)) for path in paths)
        console.print("written:", *shown, sep="\n  ", soft_wrap=True, highlight=False)
    failed = [run for run in runs if not run.invalid and sweep.outcome(run.name).status == "failed"]
    invalid = [run for run in runs if run.invalid]
    for run in invalid:
        line = f"[bold red]invalid[/] {escape(f'{run.name}: {run.invalid}')}"
        console.print(line, soft_wrap=True, highlight=False)
    for run in failed:
        text = escape(f"{run.name}: {sweep.outcome(run.name).error}")
        line = f"[bold red]failed[/] {text}\n  log: {escape(str(sweep.log_path(run.name)))}"
        console.print(line, soft_wrap=True, highlight=False)
    if failed:
        console.print("--retry-failed goes on with failed runs", highlight=False)
    if signal_number:
        again = f"stopped; continue with: python -m deeprep.sweep {escape(str(sweep.path))}"
        console.print(again, soft_wrap=True, highlight=False)
        return 128 + signal_number
    return int(bool(failed or invalid))


if __name__ == "__main__":
    sys.exit(main())
