"""What an experiment is: its settings, its verdicts, and the functions that make it.

A module of this package tells the whole story of one figure: the claim, the settings with their
source, what the paper shows, the computation, the verdicts and the plot. Its `EXPERIMENT` is all
that the command line sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from deeprep.experiments.workspace import Numbers, Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = [
    "Check",
    "Experiment",
    "Options",
    "Setting",
    "check_close",
    "check_inside",
    "check_that",
]


@dataclass(frozen=True)
class Setting:
    """A setting of an experiment, and whether the authors published it or it is our choice."""

    name: str
    value: Any
    source: Literal["authors", "ours"]
    note: str = ""


@dataclass(frozen=True)
class Check:
    """A verdict: a number of the paper, or a claim, next to ours.

    Attributes
    ----------
    quantity
        What is compared.
    paper, ours
        The two values, numbers or words.
    passed
        The verdict.
    tolerance
        In words, what difference counts as agreement.
    explanation
        Why the two may differ; printed with a failed verdict.
    known
        It is known to fail, for the reason in `explanation`: shown as failed all the same, but no
        surprise. To pass would be one: then the reason no longer holds.
    """

    quantity: str
    paper: float | str
    ours: float | str
    passed: bool
    tolerance: str
    explanation: str = ""
    known: bool = False

    @property
    def verdict(self) -> str:
        """The verdict in words: passed, failed, or passed although it is known to fail."""
        if not self.passed:
            return "failed"
        return "passed, known to fail" if self.known else "passed"

    @property
    def is_surprise(self) -> bool:
        """Whether it failed and is not known to, or is known to fail and passed."""
        return self.passed == self.known


def check_close(
    quantity: str, paper: float, ours: float, relative: float, explanation: str = ""
) -> Check:
    """Judge whether |ours - paper| <= relative * |paper|; NaN fails.

    >>> check_close("C_1", paper=2.0, ours=2.03, relative=0.02).passed
    True
    """
    passed = abs(ours - paper) <= relative * abs(paper)
    return Check(quantity, paper, ours, passed, f"{relative:.1%}", explanation)


def check_inside(
    quantity: str,
    paper: float,
    ours: float,
    low: float,
    high: float,
    what: str,
    explanation: str = "",
) -> Check:
    """Judge whether the paper's one value lies among ours, in [low, high]; NaN fails.

    >>> check_inside("D_1", 0.97, 0.98, 0.95, 0.99, "20 draws").tolerance
    '0.95 to 0.99: 20 draws'
    """
    passed = low <= paper <= high
    return Check(quantity, paper, ours, passed, f"{low:.4g} to {high:.4g}: {what}", explanation)


def check_that(
    quantity: str,
    holds: bool,
    paper: float | str,
    ours: float | str,
    tolerance: str,
    explanation: str = "",
) -> Check:
    """Judge a claim by its truth."""
    return Check(quantity, paper, ours, bool(holds), tolerance, explanation)


@dataclass(frozen=True)
class Options:
    """What the user of an experiment chooses.

    Attributes
    ----------
    full
        The paper's sizes; else a size for two cores with the same claim.
    seeds
        How many seeds; None for the experiment's own number.
    device
        Where to compute.
    data
        A file of labelled sentences, for the one experiment that takes data of one's own.
    """

    full: bool = False
    seeds: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    data: Path | None = None


@dataclass(frozen=True)
class Experiment:
    """One figure of the paper: all that is needed to run, judge and draw it.

    Attributes
    ----------
    name
        On the command line and as the directory.
    title
        What the figure shows.
    claim
        What the paper says that it shows.
    seeds
        Number of seeds by default, and with --full.
    settings
        Every setting, with its source.
    compute
        The numbers; long computations divide themselves into parts of the workspace.
    check
        The verdicts, from the numbers alone.
    plot
        The figure, from the numbers alone.
    takes_data
        Whether it computes on the file `Options.data`.
    remarks
        How settings and tolerances were found, where results had a part in it; the report has them.
    """

    name: str
    title: str
    claim: str
    seeds: tuple[int, int]
    settings: Callable[[Options], list[Setting]]
    compute: Callable[[Options, Workspace], Numbers]
    check: Callable[[Numbers], list[Check]]
    plot: Callable[[Numbers], Figure]
    takes_data: bool = False
    remarks: tuple[str, ...] = ()

    def num_seeds(self, options: Options) -> int:
        """Return the number of seeds that these options mean."""
        return options.seeds or self.seeds[options.full]
