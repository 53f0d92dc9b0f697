"""Draw results.json as GB/s of features per shape: the core, the floor that bounds it, the peers.

`python -m benchmarks.roofline [results.json [roofline.png]]` draws again without measuring.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, StrMethodFormatter

from deeprep.base import strict_json
from deeprep.plots.canvas import save

_OURS = "#1f5fa8"
_MARKERS = "ovs^DPXv<"


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the figure: one panel a dtype, one line a shape, shuffled labels, log axis.

    A hollow marker is an upper bound: the competitor was stopped at its time budget.
    """
    cells = [cell for cell in results["cells"] if cell["labelling"] == "shuffled"]
    if not cells:
        return
    dtypes = list(dict.fromkeys(cell["dtype"] for cell in cells))
    names = list(dict.fromkeys(peer["name"] for cell in cells for peer in cell["peers"]))
    colours = {name: colormaps["tab10"]((i + 1) % 10) for i, name in enumerate(names)}
    markers = {name: _MARKERS[i % len(_MARKERS)] for i, name in enumerate(names)}
    height = 1.8 + 0.42 * max(sum(cell["dtype"] == dtype for cell in cells) for dtype in dtypes)
    figure = Figure(figsize=(6.2 * len(dtypes) + 1.6, height + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(dtypes), sharex=True, squeeze=False)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        chosen = [cell for cell in cells if cell["dtype"] == dtype]
        for y, cell in enumerate(chosen):
            rate = cell["feature_bytes"] / 1e9
            axes.barh(y, rate / cell["timing"]["ours"], height=0.55, color=_OURS, alpha=0.85)
            floor = rate / cell["timing"]["floor"]
            axes.plot([floor, floor], [y - 0.42, y + 0.42], color="black", linewidth=2.2)
            for peer in cell["peers"]:
                if peer["seconds"] is None:
                    continue
                bound = peer["status"] == "over budget"
                axes.plot(
                    rate / peer["seconds"],
                    y,
                    markers[peer["name"]],
                    color=colours[peer["name"]],
                    markerfacecolor="none" if bound else colours[peer["name"]],
                    markeredgecolor=colours[peer["name"]] if bound else "white",
                    markersize=8,
                    markeredgewidth=1.4 if bound else 0.6,
                )
        shapes = [cell["shape"] for cell in chosen]
        labels = [
            f"{s['num_rows']:,} x {s['num_features']:,}, K = {s['num_classes']:,}" for s in shapes
        ]
        axes.set_yticks(range(len(chosen)), labels)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(StrMethodFormatter(""))
        axes.set_xlabel("GB of features per second")
        axes.set_title(dtype)
        axes.grid(axis="x", which="major", alpha=0.3)
        axes.set_axisbelow(True)
    handles = [
        Line2D([], [], color=_OURS, linewidth=8, label="deeprep"),
        Line2D([], [], color="black", linewidth=2.2, label="floor: read features, update means"),
    ]
    handles += [
        Line2D([], [], color=colours[name], marker=markers[name], linestyle="none", label=name)
        for name in names
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    machine = results["machine"]
    figure.suptitle(f"{machine['cpu']}, {results['threads']} threads", fontsize=10, color="0.3")
    save(figure, path)


if __name__ == "__main__":
    source = (
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results/results.json"
    )
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else source.with_name("roofline.png")
    draw(strict_json.read(source), target)
