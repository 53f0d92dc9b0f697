"""The command line `python -m deeprep.experiments`."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, arg

from deeprep.base.console import print_error, stdout_console
from deeprep.experiments import EXPERIMENTS, load_experiment, report
from deeprep.experiments.collection import forget_failure, note_failure
from deeprep.experiments.experiment import Options
from deeprep.experiments.results import perform
from deeprep.run.device import choose_device

__all__ = ["main"]

_ABOUT = """Reproduce the figures of "Understanding Deep Representation Learning via Layerwise
Feature Compression and Discrimination" (JMLR 26(220), 2025). Without a name, list them.

Each figure leaves a picture, its numbers as JSON and a table paper | ours | verdict. A verdict that
fails is printed as failed, with what is known of the reason, and is no error: the exit status is 1
only if a figure could not be computed, or with --strict if a verdict is not as it is known to be.

`report` writes docs/reproduction.md from the results; see `report --help`.

Examples:
  python -m deeprep.experiments
  python -m deeprep.experiments fig4a
  python -m deeprep.experiments all --resume
  python -m deeprep.experiments fig6 --full --out results
  python -m deeprep.experiments report [--check | --redraw]"""

_Flag = Annotated[bool, FlagCreatePairsOff]


@dataclass(frozen=True)
class _CommandLine:
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME...")] = ()
    """Figures to reproduce, or `all`."""
    full: _Flag = False
    """The paper's sizes; default: a reduced size for two cores, with the same claim."""
    resume: _Flag = False
    """Do not compute again what is found in --out with the same settings."""
    seeds: int | None = None
    """Number of seeds; default: each figure's own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU where there is one."""
    data: Path | None = None
    """Labelled sentences for `text`, .tsv, .csv or .jsonl; default: what Debian's apt has."""
    out: Path = Path("runs/experiments")
    """Results go to a directory in here for each figure; an earlier result is replaced."""
    strict: _Flag = False
    """Exit with status 1 also if a verdict failed that is not known to fail, or passed that is."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for an error, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["report"]:
        return report.main(arguments[1:])
    prog = "python -m deeprep.experiments"
    command = tyro.cli(_CommandLine, prog=prog, description=_ABOUT, args=arguments)
    console = stdout_console()

    if not command.names:
        console.print(_list())
        return 0
    try:
        if command.seeds is not None and command.seeds < 1:
            raise ValueError(f"seeds is {command.seeds}, expected >= 1")
        names = list(EXPERIMENTS) if "all" in command.names else dict.fromkeys(command.names)
        experiments = [load_experiment(name) for name in names]
        if command.data and not any(experiment.takes_data for experiment in experiments):
            raise ValueError(f"data is {command.data}, which {', '.join(names)} cannot use")
        options = Options(command.full, command.seeds, choose_device(command.device), command.data)
    except ValueError as error:
        print_error(error)
        return 1
    failed = 0
    for experiment in experiments:
        try:
            result = perform(experiment, options, command.out, console, resume=command.resume)
        except KeyboardInterrupt:
            Console(stderr=True).print("stopped; --resume goes on")
            return 128 + signal.SIGINT
        except (ValueError, ArithmeticError, OSError, ImportError, MemoryError) as error:
            # The other figures do not depend on this one.
            print_error(f"{experiment.name}: {error}")
            note_failure(command.out, experiment.name, error)
            failed += 1
        else:
            forget_failure(command.out, experiment.name)
            failed += command.strict and bool(result.surprises)
    return int(failed > 0)


def _list() -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="python -m deeprep.experiments NAME")
    table.add_column("name", no_wrap=True)
    table.add_column("claim")
    for name in EXPERIMENTS:
        experiment = load_experiment(name)
        table.add_row(name, f"[bold]{escape(experiment.title)}[/]\n{escape(experiment.claim)}")
    return table


if __name__ == "__main__":
    sys.exit(main())
