"""`--show-settings`: every setting that a command line comes to, and why it has its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deeprep.run.defaults import DEFAULTS, choices, resolve
from deeprep.run.settings import Settings

__all__ = ["Shown", "explain", "show_defaults", "show_settings"]

_SHOWN_VALUES = 6  # of a setting that many runs have otherwise


class Shown(NamedTuple):
    """A setting as it is shown: its value, and where that comes from."""

    value: str
    source: str


def explain(settings: Settings, sources: Mapping[str, str]) -> dict[str, dict[str, Shown]]:
    """Return, by group and name, every setting of a run and where it comes from.

    Parameters
    ----------
    settings
        As they were given, or resolved.
    sources
        Where those come from that are not left at their defaults: {"lr": "given"}.

    Raises
    ------
    ValueError
        As `resolve` does.

    >>> explain(Settings(), {"seed": "given"})["run"]["seed"]
    Shown(value='0', source='given')
    >>> explain(Settings(), {})["optimization"]["lr"]
    Shown(value='0.0002', source='row 6')
    """
    chosen = choices(settings)
    groups: dict[str, dict[str, Shown]] = {}
    for group, values in vars(resolve(settings)).items():
        groups[group] = shown = {}
        for name, value in vars(values).items():
            source = "default"
            if getattr(getattr(settings, group), name) is None and name in chosen:
                source = chosen[name].source
            shown[name] = Shown(_text(value), sources.get(name, source))
    return groups


def show_defaults(console: Console) -> None:
    """Print the table of defaults that depend on architecture and data set."""
    table = Table(title="defaults by architecture and data set", box=box.SIMPLE_HEAD)
    table.add_column("row", justify="right")
    table.add_column("architecture on data set, and why")
    table.add_column("settings", no_wrap=True)
    for row, entry in enumerate(DEFAULTS, start=1):
        archs = ", ".join(entry.archs).replace("vision", "a torchvision classifier")
        where = f"{archs or 'any architecture'} on {', '.join(entry.datasets) or 'any data'}"
        flags = "\n".join(f"{_flag(name)} {_text(v)}" for name, v in entry.values.items())
        table.add_row(str(row), f"{where}\n[dim]{escape(entry.why)}[/]", flags)
    console.print(table)
    console.print("Where several rows fit, the last of them decides.\n", highlight=False)


def show_settings(runs: Sequence[dict[str, dict[str, Shown]]], console: Console) -> None:
    """Print what `explain` says of a run; of several, what differs side by side."""
    table = Table(title="what this command line comes to", box=box.SIMPLE_HEAD)
    for column in ("setting", "value", "from"):
        table.add_column(column)
    for group, names in runs[0].items():
        for name in names:
            shown = [run[group][name] for run in runs]
            values = list(dict.fromkeys(each.value for each in shown))
            if len(values) > _SHOWN_VALUES:
                values = [*values[:_SHOWN_VALUES], f"... ({len(values)} in all)"]
            sources = dict.fromkeys(each.source for each in shown)
            table.add_row(_flag(name), escape(", ".join(values)), escape(", ".join(sources)))
        table.add_section()
    console.print(table)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _text(value: Any) -> str:
    """Return a value as it is written after a flag; "-" where there is none."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)
