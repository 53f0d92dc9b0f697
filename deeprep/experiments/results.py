"""What an experiment leaves behind, and how a later run goes on from it.

OUT/<name>/ holds

result.json    settings, numbers, verdicts, seconds, versions, command: what the report is made of
figure.png     laid out like the paper's
parts/*.json   the numbers of each finished part of the computation, which --resume does not repeat

each written under another name and then renamed, so that a run killed at any moment leaves whole
files. JSON is strict: NaN and infinities are the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from deeprep.base import strict_json
from deeprep.experiments.experiment import Check, Experiment, Options, Setting
from deeprep.experiments.workspace import Numbers, Workspace
from deeprep.plots.canvas import save
from deeprep.run.record import environment

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Result", "load_result", "perform"]


@dataclass(frozen=True)
class Result:
    """What result.json holds.

    Attributes
    ----------
    name, title, claim
        Of the experiment.
    full, seeds
        The size: the paper's or a reduced one, and the number of seeds.
    settings
        Every setting, with its source.
    numbers
        What was computed.
    checks
        The verdicts.
    seconds
        Of computing, all parts together, whether in this run or, resumed, in earlier ones.
    parts
        Name of each part -> its seconds.
    environment
        Versions, commit, device; see `deeprep.run.record.environment`.
    command
        How to get the same.
    """

    name: str
    title: str
    claim: str
    full: bool
    seeds: int
    settings: list[Setting]
    numbers: Numbers
    checks: list[Check]
    seconds: float
    parts: dict[str, float]
    environment: dict[str, Any]
    command: str

    @property
    def failed(self) -> list[Check]:
        """The verdicts that failed."""
        return [check for check in self.checks if not check.passed]

    @property
    def surprises(self) -> list[Check]:
        """The verdicts that failed and are not known to, and known failures that passed."""
        return [check for check in self.checks if check.is_surprise]

    def table(self) -> Table:
        """Return the table paper | ours | verdict."""
        table = Table(title=f"{self.name}: {self.title}", box=box.SIMPLE_HEAD)
        table.add_column("quantity")
        table.add_column("paper", justify="right")
        table.add_column("ours", justify="right")
        table.add_column("tolerance")
        table.add_column("verdict")
        for check in self.checks:
            style = "bold red" if check.is_surprise or not check.passed else "green"
            cells = (check.quantity, _text(check.paper), _text(check.ours), check.tolerance)
            table.add_row(*map(escape, cells), f"[{style}]{check.verdict}[/]")
        return table


def perform(
    experiment: Experiment,
    options: Options,
    out: Path,
    console: Console,
    *,
    resume: bool = False,
) -> Result:
    """Run an experiment, write its files into out/<name>/, print its table; return the result.

    Parameters
    ----------
    experiment, options
        What to run, and how.
    out
        Directory of all experiments' results; an earlier result of this one is replaced.
    console
        Where the progress and the table go.
    resume
        Do not compute again the parts found there that have the same settings.
    """
    seeds = experiment.num_seeds(options)
    console.print(f"[bold]{experiment.name}[/]  {escape(experiment.claim)}", highlight=False)
    directory = out / experiment.name

    def say(text: str) -> None:
        console.print(f"  {escape(text)}", style="dim", highlight=False)

    workspace = Workspace(directory, resume=resume, say=say)
    numbers = experiment.compute(options, workspace)
    size = " --full" if options.full else ""
    data = f" --data {options.data.name}" if options.data and experiment.takes_data else ""
    result = Result(
        name=experiment.name,
        title=experiment.title,
        claim=experiment.claim,
        full=options.full,
        seeds=seeds,
        settings=experiment.settings(options),
        numbers=numbers,
        checks=experiment.check(numbers),
        seconds=math.fsum(workspace.seconds.values()),
        parts=workspace.seconds,
        environment=environment(options.device),
        command=f"python -m deeprep.experiments {experiment.name}{size}{data} --seeds {seeds}",
    )
    strict_json.write(directory / "result.json", asdict(result))
    save(experiment.plot(numbers), directory / "figure.png")
    console.print(result.table())
    # Several verdicts may fail for one reason.
    for reason in dict.fromkeys(check.explanation for check in result.failed):
        quantities = "; ".join(c.quantity for c in result.failed if c.explanation == reason)
        line = f"[bold red]failed[/] {escape(quantities)}\n  {escape(reason or 'not explained')}"
        console.print(line, soft_wrap=True, highlight=False)
    for check in result.surprises:
        if check.passed:
            line = f"[bold red]known to fail, and passed:[/] {escape(check.quantity)}"
            console.print(line, soft_wrap=True, highlight=False)
    passed = len(result.checks) - len(result.failed)
    summary = f"{passed} of {len(result.checks)} verdicts passed, {result.seconds:.0f} s computing"
    console.print(f"{summary}, written to {escape(str(directory))}\n", highlight=False)
    return result


def load_result(path: Path) -> Result:
    """Read a result.json.

    Raises
    ------
    ValueError
        A file that is no result.
    """
    values = strict_json.read(path)
    try:
        values["settings"] = [Setting(**setting) for setting in values["settings"]]
        values["checks"] = [Check(**strict_json.decode(check)) for check in values["checks"]]
        return Result(**{**values, "numbers": strict_json.decode(values["numbers"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of an experiment: {error}") from error


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
