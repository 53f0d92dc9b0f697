"""A LayerReport as a table: in a terminal, as wide as that is, or in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeprep.report.layer_metrics import LayerMetrics

if TYPE_CHECKING:
    from rich.table import Table

# Heading, field of LayerMetrics, format; the most telling first: the last ones give way where
# there is no room.
_METRICS = (
    ("C_l", "compression", ".3g"),
    ("D_l", "discrimination", ".4f"),
    ("closest", "closest_classes", ""),
    ("NC1", "nc1", ".3g"),
    ("rank", "numerical_rank", "d"),
    ("probe", "probe_accuracy", ".1%"),
    ("NCC", "ncc_accuracy", ".1%"),
    ("CDNV", "cdnv", ".3g"),
    ("dir. CDNV", "directional_cdnv", ".3g"),
    ("eff. rank", "effective_rank", ".1f"),
    ("ETF", "etf_error", ".3f"),
    ("stable rank", "stable_rank", ".2f"),
    ("RankMe", "rankme", ".1f"),
    ("equinorm", "equinorm", ".3f"),
    ("equiangular", "equiangularity", ".3f"),
    ("GNC2", "gnc2", ".3f"),
)


@dataclass(frozen=True)
class Content:
    """What a table shows: a row a layer, the classes' names if they have any, and a caption."""

    layers: Sequence[LayerMetrics]
    class_names: Sequence[str] | None
    caption: str

    def columns(self) -> list[tuple[str, list[str]]]:
        """Heading and cells of every metric that some layer has."""
        return [
            (heading, [self._cell(layer, name, spec) for layer in self.layers])
            for heading, name, spec in _METRICS
            if any(vars(layer)[name] is not None for layer in self.layers)
        ]

    def _cell(self, layer: LayerMetrics, name: str, spec: str) -> str:
        value = vars(layer)[name]
        if value is None:
            return "-"
        if name == "closest_classes":
            if self.class_names is None:
                return ",".join(map(str, value))
            return ", ".join(self.class_names[index] for index in value)
        error = vars(layer).get(f"{name}_error")
        return format(value, spec) + ("" if error is None else f" ±{error:.1g}")


def rich_table(content: Content, title: str | None, width: int | None) -> Table:
    """Return a table of the columns that have a value and fit into `width`."""
    from rich import get_console
    from rich.console import Console
    from rich.measure import Measurement

    width = get_console().width if width is None else width
    unlimited = Console(width=10_000)
    columns = content.columns()
    for shown in range(len(columns), 0, -1):
        left_out = [heading for heading, _ in columns[shown:]]
        table = _rich_table(content, columns[:shown], title, left_out, width)
        if Measurement.get(unlimited, unlimited.options, table).maximum <= width:
            return table
    return _rich_table(content, columns[:2], title, [heading for heading, _ in columns[2:]], width)


def html_table(content: Content) -> str:
    """Return an HTML table of all columns that have a value."""
    names = [layer.name for layer in content.layers]
    columns = [
        ("l", [str(layer.index) for layer in content.layers]),
        ("layer", names),
        ("d", [str(layer.num_features) for layer in content.layers]),
        *content.columns(),
    ]
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading, _ in columns)
    body = ""
    for row in zip(*(cells for _, cells in columns), strict=True):
        body += "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n"
    return (
        f"<table>\n<caption>{html.escape(content.caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"
    )


def _rich_table(
    content: Content,
    columns: list[tuple[str, list[str]]],
    title: str | None,
    left_out: list[str],
    width: int,
) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    below = content.caption
    if left_out:
        below += f"; no room for {', '.join(left_out)}"
    table = Table(
        title=title, caption=below, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("l", justify="right", no_wrap=True)
    table.add_column("layer", overflow="fold", max_width=max(12, width // 3))
    for heading in ("d", *(heading for heading, _ in columns)):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = (
        zip(*(cells for _, cells in columns), strict=True)
        if columns
        else [()] * len(content.layers)
    )
    for layer, cells in zip(content.layers, rows, strict=True):
        first = (str(layer.index), escape(layer.name), str(layer.num_features))
        table.add_row(*first, *(escape(cell) for cell in cells))
    return table
