"""The report in docs/reproduction.md, from the JSON of real runs: `... experiments report`.

It collects what `python -m deeprep.experiments` left behind (see `collection.py`) and writes
reproduction.md, all of it: pictures, tables, settings, machines, errata (see `page.py`).

With --redraw it draws and judges anew what was collected before. With --check it writes nothing: it
says whether reproduction.md is what the results collected give, and whether the verdicts in them
are those of today's code.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import FlagCreatePairsOff

from deeprep.base.console import print_error
from deeprep.base.paths import write_text
from deeprep.base.validate import require
from deeprep.experiments import EXPERIMENTS, load_experiment
from deeprep.experiments.collection import collect, kept_pictures, kept_result, redraw
from deeprep.experiments.page import render, verdict_row

__all__ = ["find_differences", "main"]

_COMMAND = "python -m deeprep.experiments"


@dataclass(frozen=True)
class _CommandLine:
    out: Path = Path("runs/experiments")
    """Where the results are; those that are not there are kept as they are in --docs."""
    docs: Path = Path("docs")
    """Directory of the documentation."""
    check: Annotated[bool, FlagCreatePairsOff] = False
    """Write nothing; exit with status 1 if the report is not what its results give."""
    redraw: Annotated[bool, FlagCreatePairsOff] = False
    """Take nothing from --out: draw and judge the results in --docs anew, from their numbers."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 1 for an error or a difference."""
    about = "Write docs/reproduction.md from the results of real runs, or check it."
    command = tyro.cli(_CommandLine, prog=f"{_COMMAND} report", description=about, args=arguments)
    console = Console(highlight=False)
    try:
        found = command.docs.is_dir()
        require("docs", command.docs, found, "the directory of the documentation")
        if command.check:
            differences = find_differences(command.docs)
            for difference in differences:
                print_error(difference)
            return int(bool(differences))
        if command.redraw:
            names = redraw(command.docs)
            console.print(f"drawn and judged anew: {', '.join(names) or 'nothing'}")
        else:
            names = collect(command.out, command.docs)
            out = escape(str(command.out))
            console.print(f"collected from {out}: {', '.join(names) or 'nothing'}")
        path = command.docs / "reproduction.md"
        write_text(path, render(command.docs))
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    console.print(f"written: {escape(str(path))}")
    return 0


def find_differences(docs: Path) -> list[str]:
    """Say in which ways the report is not what its results give; nothing if it is.

    Raises
    ------
    ValueError
        A result that cannot be read.
    """
    differences = []
    path = docs / "reproduction.md"
    wanted = render(docs)
    found = path.read_text(encoding="utf-8") if path.is_file() else ""
    if found != wanted:
        lines = difflib.unified_diff(
            found.splitlines(), wanted.splitlines(), str(path), "its results", n=0, lineterm=""
        )
        first = "\n".join(list(lines)[:12])
        differences.append(f"{path} is not what its results give; run {_COMMAND} report\n{first}")
    for name in EXPERIMENTS:
        result = kept_result(docs, name)
        if result is None:
            continue
        today = load_experiment(name).check(result.numbers)
        if [verdict_row(check) for check in today] != [
            verdict_row(check) for check in result.checks
        ]:
            differences.append(
                f"{name}: the verdicts of its result are not those of this code; run {_COMMAND} "
                "report --redraw"
            )
        if not kept_pictures(docs, name):
            differences.append(f"{name}: there is no picture of it")
    return differences
