"""Tables of results: for the terminal and for Markdown, and how numbers read in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table as RichTable

Record = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A title, a header, rows of text, and notes below."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def rich(self) -> RichTable:
        """Lay it out for the terminal."""
        table = RichTable(
            title=self.title,
            caption="\n".join(self.notes),
            title_justify="left",
            caption_justify="left",
        )
        for index, name in enumerate(self.header):
            table.add_column(name, justify="left" if index == 0 else "right", no_wrap=index == 0)
        for row in self.rows:
            table.add_row(*(_coloured(cell) for cell in row))
        return table

    def markdown(self) -> str:
        """Lay it out for docs/speed.md."""
        lines = ["| " + " | ".join(self.header) + " |"]
        lines.append("|---|" + "---:|" * (len(self.header) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *self.notes])


def _coloured(cell: str) -> str:
    colour = {"pass": "green", "miss": "red"}.get(cell)
    return f"[{colour}]{cell}[/]" if colour else cell


def shape_text(record: Record) -> str:
    """N x d, K."""
    shape = record["shape"]
    return f"{shape['num_rows']:,} x {shape['num_features']:,}, {shape['num_classes']:,}"


def verdict(passed: bool) -> str:
    """Of a comparison with a target."""
    return "pass" if passed else "miss"


def seconds_text(value: float) -> str:
    """Seconds, or milliseconds below one."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def bytes_text(value: int | None) -> str:
    """Whole MiB."""
    return "-" if value is None else f"{value / 2**20:.0f} MiB"
