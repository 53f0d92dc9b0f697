"""A LayerReport as a table: in a terminal, as wide as that is, or in a notebook."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from deeprep.base.console import UNLIMITED, stdout_console
from deeprep.report.layer_metrics import LayerMetrics

if TYPE_CHECKING:
    from rich.table import Table

# Heading, field of LayerMetrics, format; the most telling first: the last ones give way where
# there is no room, the first two never.
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
    ("fuzziness", "separation_fuzziness", ".3g"),
    ("VCI", "vci", ".3g"),
    ("ETF", "etf_error", ".3f"),
    ("stable rank", "stable_rank", ".2f"),
    ("RankMe", "rankme", ".1f"),
    ("part. ratio", "participation_ratio", ".1f"),
    ("alpha", "alpha_req", ".2f"),
    ("LiDAR", "lidar", ".1f"),
    ("H-score", "h_score", ".3g"),
    ("equinorm", "equinorm", ".3f"),
    ("equiangular", "equiangularity", ".3f"),
    ("GNC2", "gnc2", ".3f"),
)
_NEVER_LEFT_OUT = 2


class Column(NamedTuple):
    """A metric, what stands above it, and its cells, one a layer."""

    name: str
    heading: str
    cells: list[str]


@dataclass(frozen=True)
class Content:
    """What a table shows: a row a layer, the classes' names if they have any, and a caption.

    `test` holds the same layers on test data.
    """

    layers: Sequence[LayerMetrics]
    class_names: Sequence[str] | None
    caption: str
    test: Sequence[LayerMetrics] | None = None

    def columns(self) -> list[Column]:
        """The metrics that some layer has, the most telling first, and beside each that of test."""
        return [
            Column(name, heading + added, [self._cell(layer, name, spec) for layer in layers])
            for heading, name, spec in _METRICS
            for added, layers in (("", self.layers), (", test", self.test or ()))
            if any(vars(layer)[name] is not None for layer in layers)
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


def rich_table(
    content: Content, title: str | None, width: int | None, keep: Collection[str]
) -> Table:
    """Return a table of the columns that have a value and fit into `width`.

    Those of the metrics in `keep` stay where they do not fit: in a table below.
    """
    from rich.table import Table

    width = stdout_console().width if width is None else width
    columns, left_out = content.columns(), list[str]()
    while not _fits(content, columns, width):
        spare = [c for c in columns[_NEVER_LEFT_OUT:] if c.name not in keep]
        if not spare:
            break
        columns.remove(spare[-1])
        left_out.insert(0, spare[-1].heading)
    parts = list[Table]()
    while columns or not parts:
        shown = next(
            (n for n in range(len(columns), 1, -1) if _fits(content, columns[:n], width)), 1
        )
        part, columns = columns[:shown], columns[shown:]
        caption = content.caption + f"; no room for {', '.join(left_out)}" * bool(left_out)
        parts.append(
            _rich_table(
                content, part, None if parts else title, None if columns else caption, width
            )
        )
    if len(parts) == 1:
        return parts[0]
    stacked = Table.grid()
    for each in parts:
        stacked.add_row(each)
    return stacked


def _fits(content: Content, columns: Sequence[Column], width: int) -> bool:
    from rich.console import Console
    from rich.measure import Measurement

    unlimited = Console(width=UNLIMITED, force_terminal=False)  # a dumb terminal has 80 always
    table = _rich_table(content, columns, None, None, width)
    return Measurement.get(unlimited, unlimited.options, table).maximum <= width


def html_table(content: Content) -> str:
    """Return an HTML table of all columns that have a value."""
    names = [layer.name for layer in content.layers]
    columns = [
        ("l", [str(layer.index) for layer in content.layers]),
        ("layer", names),
        ("d", [str(layer.num_features) for layer in content.layers]),
        *((column.heading, column.cells) for column in content.columns()),
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
    columns: Sequence[Column],
    title: str | None,
    caption: str | None,
    width: int,
) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("l", justify="right", no_wrap=True)
    table.add_column("layer", overflow="fold", max_width=max(12, width // 3))
    for heading in ("d", *(column.heading for column in columns)):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, layer in enumerate(content.layers):
        first = (str(layer.index), escape(layer.name), str(layer.num_features))
        table.add_row(*first, *(escape(column.cells[index]) for column in columns))
    return table
