"""The runs of a sweep: every combination of the values of its flags, for every seed."""

from __future__ import annotations

import io
import re
import typing
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import tyro

from deeprep.base.validate import require
from deeprep.run.defaults import resolve
from deeprep.run.settings import FORMER_NAMES, Settings

# Why a flag of run cannot be in a grid, or on the command line of a sweep.
NOT_SWEPT = {
    "seed": "to be given as --seeds, such as 0..4",
    "runs-dir": "to be left out: runs go to DIRECTORY/runs",
    "name": "to be left out: a run is named by its values",
}


@dataclass(frozen=True)
class Axis:
    """A flag of run and the values it takes.

    Attributes
    ----------
    flag
        Without dashes in front: init-scale.
    values
        As they were written -> as the settings hold them.
    """

    flag: str
    values: dict[str, Any]

    def apply(self, settings: Settings, text: str) -> Settings:
        """Return settings in which the flag has a value, which is checked there."""
        group, name = _field(self.flag)
        changed = replace(getattr(settings, group), **{name: self.values[text]})
        return replace(settings, **{group: changed})


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes
    ----------
    name
        Of its directory: the values and the seed.
    values
        Flag -> its value, as it was written.
    settings
        What the run is started with.
    invalid
        Why no run can have these settings; empty for one that can.
    """

    name: str
    values: dict[str, str]
    settings: Settings
    invalid: str = ""


def _fields_by_flag() -> dict[str, tuple[str, str]]:
    return {
        field.name.replace("_", "-"): (group, field.name)
        for group, cls in typing.get_type_hints(Settings).items()
        for field in fields(cls)
    }


_FIELDS = _fields_by_flag()
# Of sweeps that an earlier version began: the flag is part of the names of their runs.
_FORMER_FIELDS = {
    old.replace("_", "-"): _FIELDS[new.replace("_", "-")] for old, new in FORMER_NAMES.items()
}


def axis_field(flag: str) -> str:
    """Return the name of the setting that a flag of a grid stands for.

    >>> axis_field("init-scale")
    'init_scale'
    """
    return _field(flag)[1]


def parse_axis(text: str) -> Axis:
    """Read FLAG=VALUE,VALUE,...; parts of one value, such as several classes, by spaces.

    Raises
    ------
    ValueError
        An unknown flag, one that the sweep sets itself, a value of the wrong type, or one twice.

    >>> parse_axis("depth=4,6").values
    {'4': 4, '6': 6}
    >>> parse_axis("classes=3,0 7").values
    {'3': (3,), '0 7': (0, 7)}
    """
    flag, _, values = text.partition("=")
    flag = flag.strip().removeprefix("--").replace("_", "-")
    texts = [" ".join(value.split()) for value in values.split(",")]
    require("grid", repr(text), all((flag, *texts)), "FLAG=VALUE,VALUE,... such as depth=4,6")
    require(flag, text, flag not in NOT_SWEPT, NOT_SWEPT.get(flag, ""))
    known = ", ".join(each for each in _FIELDS if each not in NOT_SWEPT)
    is_known = flag in _FIELDS or flag in _FORMER_FIELDS
    require("grid", flag, is_known, f"one of the flags of run: {known}")
    axis = Axis(flag, {each: _parse(flag, each) for each in texts})
    distinct = len(set(axis.values.values())) == len(texts)
    require(f"grid {flag}", values, distinct, "distinct values")
    for each in axis.values:
        axis.apply(Settings(), each)  # which says if it is out of range
    return axis


def _field(flag: str) -> tuple[str, str]:
    """Return the group and the name of the setting that a flag stands for."""
    return _FIELDS.get(flag) or _FORMER_FIELDS[flag]


def _parse(flag: str, text: str) -> Any:
    """Return the value of a flag from its text, by the type of its field."""
    group, name = _field(flag)
    hint = typing.get_type_hints(typing.get_type_hints(Settings)[group])[name]
    # The parser takes True and False for what users write as the flag --bias or --no-bias.
    words = [text.capitalize()] if hint is bool else text.split()
    try:
        with redirect_stderr(io.StringIO()):
            return tyro.cli(hint, args=words)
    except SystemExit:
        shown = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise ValueError(f"grid {flag} is {text!r}, expected values of {shown}") from None


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds and ranges of seeds, both ends included.

    Raises
    ------
    ValueError
        Anything else, an empty range, or a seed twice.

    >>> parse_seeds("0..2,7")
    (0, 1, 2, 7)
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", part)
        if match is None:
            raise ValueError(f"seeds is {text!r}, expected numbers and ranges such as 0..4")
        first, last = int(match[1]), int(match[2] or match[1])
        require("seeds", repr(text), first <= last, "ranges that rise")
        seeds += range(first, last + 1)
    require("seeds", repr(text), len(set(seeds)) == len(seeds), "distinct")
    return tuple(seeds)


def make_runs(base: Settings, axes: Sequence[Axis], seeds: Iterable[int]) -> list[Run]:
    """Return the runs of a grid, the last axis running fastest and the seeds faster still.

    Parameters
    ----------
    base
        What all runs share: the flags that are not in the grid.
    axes
        The flags that are, each once.
    seeds
        Of which each point of the grid has one run each.

    Raises
    ------
    ValueError
        A flag that is there twice, or two values whose runs would have one name. Values that do not
        fit one another are no error here: such a run is `invalid`.

    >>> [run.name for run in make_runs(Settings(), [parse_axis("depth=4,6")], [0, 1])]
    ['depth=4,seed=0', 'depth=4,seed=1', 'depth=6,seed=0', 'depth=6,seed=1']
    """
    _check_once(base, axes)
    runs = []
    for texts in product(*(axis.values for axis in axes)):
        settings, values = base, {}
        for axis, text in zip(axes, texts, strict=True):
            settings = axis.apply(settings, text)
            values[axis.flag] = text
        invalid = ""
        try:
            resolve(settings)
        except ValueError as error:
            invalid = str(error)
        for seed in seeds:
            parts = {**values, "seed": str(seed)}
            # Of paths and lists, characters that do not belong into the name of a directory.
            name = ",".join(
                f"{k}={re.sub(r'[^A-Za-z0-9_.+-]+', '_', text)}" for k, text in parts.items()
            )
            seeded = replace(settings, run=replace(settings.run, seed=seed))
            runs.append(Run(name, values, seeded, invalid))
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    require("grid", twice, twice is None, "values that differ in letters and digits")
    return runs


def _check_once(base: Settings, axes: Sequence[Axis]) -> None:
    """Check that no flag is given twice, and none that the sweep sets itself."""
    unset = Settings()
    swept = [_field(axis.flag) for axis in axes]
    for flag, (group, name) in _FIELDS.items():
        given = getattr(getattr(base, group), name)
        is_set = given != getattr(getattr(unset, group), name)
        if is_set and flag in NOT_SWEPT:
            raise ValueError(f"{flag} is {given}, expected {NOT_SWEPT[flag]}")
        count = swept.count((group, name)) + is_set
        require(flag, f"given {count} times", count <= 1, "once, as a flag or in one --grid")
