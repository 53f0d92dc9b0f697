"""What the figures share: canvas, files, axes, and text that has to fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from deeprep.base.paths import atomic_path
from deeprep.plots.rows import LayerRow

_RESOLUTION = 150  # dots per inch
LETTER_WIDTH, _LINE_HEIGHT = 5.0, 12.0  # points, of a small font, with some room
_BRIGHTEST = 0.77  # of the colour map: beyond, it turns to a yellow that is lost on white


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_path(path: str | Path | None) -> None:
    """Check, before anything is drawn, that a figure can be written to `path`.

    Raises
    ------
    ValueError, FileNotFoundError
        For an unknown suffix, and a directory that does not exist.
    """
    if path is None:
        return
    path = Path(path)
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in formats:
        known = ", ".join(f".{name}" for name in sorted(formats))
        raise ValueError(f"path is {path}, expected one of the suffixes {known}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path is {path}, but there is no directory {path.parent}")


def save(figure: Figure, path: str | Path | None) -> Figure:
    """Write the figure, atomically, if there is a path; return it."""
    if path is not None:
        with atomic_path(Path(path)) as temporary:
            figure.savefig(temporary, dpi=_RESOLUTION)
    return figure


def shorten(text: str, length: int) -> str:
    """Cut the middle out of a text that is too long.

    >>> shorten("golden retriever puppy", 16)
    'golden r…r puppy'
    """
    # A dollar would begin a formula.
    if len(text) > length:
        begin = length // 2
        text = f"{text[:begin]}…{text[len(text) - (length - begin - 1) :]}"
    return text.replace("$", r"\$")


def shorten_layer(name: str, length: int) -> str:
    """Shorten the name of a layer: first its parents' names, then out of the middle.

    >>> shorten_layer("encoder.layer.11.output", 16)
    'e.l.11.output'
    >>> shorten_layer("encoder.layers.11.feed_forward", 16)
    'e.l.11.f…forward'
    """
    *parents, own = name.split(".")
    for index, parent in enumerate(parents):
        if len(name) > length and not parent.isdigit():
            parents[index] = parent[:1]
            name = ".".join((*parents, own))
    return shorten(name, length)


def evenly(total: int, count: int) -> list[int]:
    """Indices of at most `count` of `total` things at even steps, the first and last among them.

    >>> evenly(9, 3), evenly(2, 5), evenly(0, 5)
    ([0, 4, 8], [0, 1], [])
    """
    count = min(count, total)
    return [round(step * (total - 1) / max(1, count - 1)) for step in range(count)]


def scale_colors(count: int) -> list[tuple[float, float, float, float]]:
    """Return that many colours from dark to bright, all to be seen on white."""
    steps = [_BRIGHTEST * index / max(1, count - 1) for index in range(count)]
    return [colormaps["plasma"](step) for step in steps]


def legend_beside(figure: Figure, lines: Sequence[Any], names: Sequence[str], most: int) -> None:
    """List at most `most` lines, evenly chosen, at the right of a figure."""
    shown = evenly(len(lines), most)
    figure.legend(
        [lines[index] for index in shown],
        [names[index] for index in shown],
        loc="outside right center",
        frameon=False,
        fontsize="small",
    )


def index_axis(axis: Axis) -> None:
    """Put ticks on whole numbers."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def layer_axis(axes: Axes, layers: Sequence[LayerRow], name_length: int = 16) -> None:
    """Put the layers on the x axis: by index and name where there is room, else by index.

    Parameters
    ----------
    axes
        Of a figure whose subplots are all there: their number says how wide one is.
    layers
        A tick each.
    name_length
        To which names are shortened.
    """
    axes.set_xlabel("layer $l$")
    labels = [f"{layer.index}: {shorten_layer(layer.name, name_length)}" for layer in layers]
    room = _points_wide(axes) / max(1, len(labels))
    if not labels or room < _LINE_HEIGHT:
        index_axis(axes.xaxis)
        return
    axes.set_xticks([layer.index for layer in layers], labels, fontsize="small")
    if max(map(len, labels)) * LETTER_WIDTH > room:
        # The end of a name meets its tick.
        axes.tick_params(axis="x", rotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _points_wide(axes: Axes) -> float:
    return float(axes.get_window_extent().width) / axes.figure.dpi * 72


def log_axis(axes: Axes, values: Iterable[float]) -> None:
    """Make the y axis logarithmic, with enough labelled ticks to read off values also in a decade.

    Parameters
    ----------
    axes
        Whose y axis it is.
    values
        What is drawn.
    """
    axes.set_yscale("log")
    logs = [math.log10(value) for value in values]
    if logs and max(logs) - min(logs) < 1.5:
        wide, narrow = (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
        subs = wide if max(logs) - min(logs) > 0.5 else narrow
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        # Such an axis must reach over two ticks at least.
        middle = (max(logs) + min(logs)) / 2
        low, high = min(min(logs) - 0.05, middle - 0.3), max(max(logs) + 0.05, middle + 0.3)
        axes.set_ylim(10**low, 10**high)
