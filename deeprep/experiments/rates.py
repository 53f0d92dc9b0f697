"""The rate of the theorem over a grid that the paper does not show.

C_{l+1} / C_l -> eps^2 / n^(1/L): scales of the initialisation, samples per class, depths and
numbers of classes, of which the last must make no difference. Networks of width 200, trained as
the small networks they are equivalent to; see `deeprep.theory.reduce_deep_linear`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from itertools import product

import numpy as np
import torch
from matplotlib.figure import Figure

from deeprep.experiments.deep_linear import Synthetic, layer_metrics, train_reduced
from deeprep.experiments.experiment import (
    Check,
    Experiment,
    Options,
    Setting,
    check_close,
    check_that,
)
from deeprep.experiments.workspace import Numbers, Workspace
from deeprep.theory import dln_compression_ratio

SCALES = {False: (0.3, 0.4), True: (0.2, 0.3, 0.4)}  # eps, by --full
SAMPLES = (5, 10, 20)
DEPTHS = (3, 4, 6)
CLASSES = (2, 3, 5)
SEEDS = (5, 20)
WIDTH = 200
TOLERANCE = 0.03


def _run(samples: int, depth: int, classes: int) -> Synthetic:
    """Figure 4a's experiment at another size, at the same noise and learning rate per sample."""
    paper = Synthetic()
    share = samples * classes / (paper.samples_per_class * paper.num_classes)
    return replace(
        paper,
        num_classes=classes,
        samples_per_class=samples,
        dimension=samples * classes + 20,
        noise=math.sqrt(share),
        width=WIDTH,
        depth=depth,
        descent=replace(paper.descent, lr=paper.descent.lr * share, epochs=50_000),
    )


def settings(options: Options) -> list[Setting]:
    """List every setting with its source."""
    return [
        Setting("scale eps of the orthogonal initialisation", SCALES[options.full], "ours"),
        Setting("samples per class n", SAMPLES, "ours"),
        Setting("depth L", DEPTHS, "ours"),
        Setting("classes K", CLASSES, "ours"),
        Setting("width, input dimension", f"{WIDTH}, N + 20", "ours"),
        Setting("noise, Frobenius norm", "sqrt(N / 30)", "ours", "figure 4a's for each sample"),
        Setting("lr", "0.1 N / 30", "ours", "figure 4a's for each sample"),
        Setting("epochs, or stop at a loss below", "50000, 1e-11", "ours"),
        Setting("seeds", EXPERIMENT.num_seeds(options), "ours"),
    ]


def compute(options: Options, workspace: Workspace) -> Numbers:
    """Train and measure; a part for each shape, all scales and seeds of it together."""
    seeds = list(range(EXPERIMENT.num_seeds(options)))
    scales = SCALES[options.full]
    points = []
    for samples, depth, classes in product(SAMPLES, DEPTHS, CLASSES):
        run = _run(samples, depth, classes)
        part = workspace.part(
            f"n{samples}-L{depth}-K{classes}",
            {**asdict(run), "scales": scales, "seeds": seeds},
            partial(_measure, run, scales, seeds, options.device),
        )
        points += part["points"]
    return {"points": points}


def _measure(
    run: Synthetic, scales: tuple[float, ...], seeds: list[int], device: torch.device
) -> Numbers:
    """Mean factor of C_l a layer, l >= 1, for every scale."""
    networks = [
        replace(run, init_scale=scale).draw_reduced(seed) for scale in scales for seed in seeds
    ]
    trained, inputs = train_reduced(networks, run, device)
    # The small networks' features have the wide ones' norms and products.
    measured = layer_metrics(trained.weights, inputs, run.labels().to(device))
    logs = np.log(measured["compression"]).reshape(len(scales), len(seeds), run.depth)
    factors = np.exp((logs[..., -1] - logs[..., 1]) / (run.depth - 2))
    converged = trained.converged.reshape(len(scales), len(seeds)).all(1)
    return {
        "points": [
            {
                "eps": scale,
                "n": run.samples_per_class,
                "L": run.depth,
                "K": run.num_classes,
                "predicted": dln_compression_ratio(scale, run.depth, run.samples_per_class),
                "measured": float(factor.mean()),
                "spread": float(factor.std()),
                "converged": bool(done),
            }
            for scale, factor, done in zip(scales, factors, converged, strict=True)
        ]
    }


def check(numbers: Numbers) -> list[Check]:
    """Judge the factor for every value of every one of the four, the worst point of each."""
    points = numbers["points"]
    trained = [point["converged"] for point in points]
    checks = [
        check_that(
            "points with a loss below 1e-11", all(trained), len(trained), sum(trained), "every one"
        )
    ]
    for name in ("eps", "n", "L", "K"):
        for value in sorted({point[name] for point in points}):
            group = [point for point in points if point[name] == value]
            worst = max(group, key=lambda p: abs(p["measured"] / p["predicted"] - 1))
            where = ", ".join(f"{key} {worst[key]:g}" for key in ("eps", "n", "L", "K"))
            quantity = f"factor of C_l a layer, {name} = {value:g}, worst at {where}"
            checks.append(check_close(quantity, worst["predicted"], worst["measured"], TOLERANCE))
    return checks


def plot(numbers: Numbers) -> Figure:
    """Measured against predicted factor, and what is left over."""
    points = numbers["points"]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(r"$C_{l+1}/C_l$ of trained deep linear networks, $l \geq 1$")
    left, right = figure.subplots(1, 2)
    for depth, color, marker in zip(DEPTHS, ("#1f5fa8", "#c2571a", "#3a8f5c"), "osD", strict=True):
        group = [point for point in points if point["L"] == depth]
        predicted = [point["predicted"] for point in group]
        style = {"color": color, "linestyle": "none", "markersize": 4}
        left.plot(predicted, [p["measured"] for p in group], marker, label=f"L = {depth}", **style)
        rest = [p["measured"] / p["predicted"] - 1 for p in group]
        spreads = [p["spread"] / p["predicted"] for p in group]
        right.errorbar(predicted, rest, spreads, marker=marker, elinewidth=0.7, **style)
    ends = [min(p["predicted"] for p in points), max(p["predicted"] for p in points)]
    left.plot(ends, ends, "--", color="0.3", linewidth=1)
    left.set(xscale="log", yscale="log", ylabel="measured")
    left.legend(frameon=False)
    right.axhspan(-TOLERANCE, TOLERANCE, color="0.9")
    right.set(xscale="log", ylabel="measured / predicted - 1")
    for axes in (left, right):
        axes.set_xlabel(r"predicted: $\epsilon^2 / n^{1/L}$")
        axes.grid(alpha=0.25)
    return figure


EXPERIMENT = Experiment(
    name="rates",
    title="the rate of the theorem over a grid",
    claim="C_l falls by eps^2 / n^(1/L) a layer for any eps, n, L, and K makes no difference.",
    seeds=SEEDS,
    settings=settings,
    compute=compute,
    check=check,
    plot=plot,
)
