"""Figure 4b: the same experiment with nonlinear layers.

A network of ten layers, nine of them Linear + BatchNorm + ReLU, on the data of figure 4a: C_l
falls and D_l rises layer by layer, more slowly than in a linear network. The authors released no
settings for this one; those of figure 4a with alpha = 1, used here, give their numbers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.func import replace_all_batch_norm_modules_

from deeprep.data import Batches
from deeprep.experiments.deep_linear import Synthetic, one_thread
from deeprep.experiments.experiment import (
    Check,
    Experiment,
    Options,
    Setting,
    check_close,
    check_inside,
    check_that,
)
from deeprep.experiments.fig4a import FIRST_SAMPLE_FACTOR
from deeprep.experiments.layer_panels import Curve, layer_panels
from deeprep.experiments.workspace import Numbers, Workspace
from deeprep.models import LayerStack
from deeprep.probe import analyze
from deeprep.run.settings import OptimizationSettings
from deeprep.run.train import make_optimizer, train
from deeprep.theory import fit_line

RUN = replace(Synthetic(), depth=10)
SEEDS = (10, 20)

# Read off the figure, one draw; C carries the factor 1 - 1/n, see figure 4a.
FIGURE_COMPRESSION = (12, 11.5, 12.5, 9.5, 8.6, 7.9, 6.4, 4.7, 3.0, 1.75)
FIGURE_DISCRIMINATION = (0.22, 0.218, 0.26, 0.26, 0.27, 0.335, 0.36, 0.525, 0.63)  # l = 1 .. 9
READING_ERROR = 0.05


def settings(options: Options) -> list[Setting]:
    """List every setting with its source."""
    unreleased = "not released; as in figure 4a"
    return [
        Setting("data", "those of figure 4a", "authors"),
        Setting("layers", "9 Linear + BatchNorm + ReLU and a classifier", "authors"),
        Setting("width", RUN.width, "ours", unreleased),
        Setting("alpha", RUN.alpha, "ours", unreleased),
        Setting("orthogonal initialisation, scale eps", RUN.init_scale, "ours", unreleased),
        Setting("full-batch gradient descent, lr, cosine to", "0.1, 0.01", "ours", unreleased),
        Setting("epochs, or stop at a loss below", "5000, 1e-11", "ours", unreleased),
        Setting(
            "BatchNorm while measuring",
            "statistics of the batch, which holds all samples",
            "authors",
            "they measure without eval mode",
        ),
        Setting("seeds", EXPERIMENT.num_seeds(options), "ours", "the authors show one"),
    ]


def compute(options: Options, workspace: Workspace) -> Numbers:
    """Train and measure; a part for each seed."""
    parts = [
        workspace.part(
            f"seed-{seed}", {**asdict(RUN), "seed": seed}, partial(_train, seed, options.device)
        )
        for seed in range(EXPERIMENT.num_seeds(options))
    ]
    return {name: [part[name] for part in parts] for name in parts[0]}


@one_thread()
def _train(seed: int, device: torch.device) -> Numbers:
    """C_l and D_l of l = 0 .. 9 after training from a seed, and the last loss."""
    descent = RUN.descent
    optimization = OptimizationSettings(
        loss="mse",
        alpha=RUN.alpha,
        optimizer="sgd",
        lr=descent.lr,
        momentum=0.0,
        weight_decay=0.0,
        schedule="cosine",
        final_lr_fraction=descent.final_lr_fraction,
        epochs=descent.epochs,
        stop_loss=descent.stop_loss,
    )
    torch.manual_seed(seed)
    model = LayerStack(
        (RUN.dimension,),
        RUN.num_classes,
        depth=RUN.depth,
        width=RUN.width,
        init="orthogonal",
        init_scale=RUN.init_scale,
    ).to(device, torch.float64)
    # Without running statistics, eval mode takes those of the batch too.
    replace_all_batch_norm_modules_(model)
    inputs, labels = RUN.draw_inputs(seed).to(device), RUN.labels().to(device)
    batches = Batches(inputs, labels, batch_size=0)
    optimizer = make_optimizer(model, optimization)
    for result in train(model, optimizer, batches, optimization, seed=seed):
        last = result
    layers = analyze(model, [(inputs, labels)], RUN.num_classes).layers
    return {
        "compression": [layer.compression for layer in layers],
        "discrimination": [layer.discrimination for layer in layers],
        "loss": last.loss,
        "epochs": last.epoch,
    }


def check(numbers: Numbers) -> list[Check]:
    """Judge the shape, and the figure's one draw against the spread of ours."""
    ours = np.array(numbers["compression"]) * FIRST_SAMPLE_FACTOR
    apart = np.array(numbers["discrimination"])
    trained = [loss < RUN.descent.stop_loss for loss in numbers["loss"]]
    checks = [
        check_that(
            "runs with a loss below 1e-11", all(trained), len(trained), sum(trained), "every run"
        )
    ]
    means = np.log(ours).mean(0)
    for quantity, signs, paper in (
        (
            "layers l = 2 .. 9 at which C_l falls",
            -np.diff(means[1:]),
            -np.diff(FIGURE_COMPRESSION[1:]),
        ),
        (
            "layers l = 2 .. 9 at which D_l rises",
            np.diff(apart.mean(0)[1:]),
            np.diff(FIGURE_DISCRIMINATION),
        ),
    ):
        theirs, found = int((paper > 0).sum()), int((signs > 0).sum())
        checks.append(check_that(quantity, found >= theirs, theirs, found, "as many or more"))
    ratio = float(np.exp(fit_line(range(1, RUN.depth), means[1:].tolist()).slope))
    logs = np.log(FIGURE_COMPRESSION[1:]).tolist()
    paper_ratio = math.exp(fit_line(range(1, RUN.depth), logs).slope)
    checks.append(check_close("factor of C_l a layer, fit to l >= 1", paper_ratio, ratio, 0.05))
    explanation = "the authors' draw is outside of ours; their settings are unknown"
    for name, values, figure, first in (
        (f"{FIRST_SAMPLE_FACTOR:g} C", ours, FIGURE_COMPRESSION, 0),
        ("D", apart, FIGURE_DISCRIMINATION, 1),
    ):
        for layer, value in enumerate(figure, start=first):
            checks.append(
                check_inside(
                    f"{name}_{layer}",
                    value,
                    float(values[:, layer].mean()),
                    float(values[:, layer].min()) * (1 - READING_ERROR),
                    float(values[:, layer].max()) * (1 + READING_ERROR),
                    f"{len(values)} draws +- {READING_ERROR:.0%} of reading",
                    explanation,
                )
            )
    return checks


def plot(numbers: Numbers) -> Figure:
    """C_l and D_l next to the paper's."""
    curve = Curve(
        "10 layers",
        numbers["compression"],
        numbers["discrimination"],
        {layer: c / FIRST_SAMPLE_FACTOR for layer, c in enumerate(FIGURE_COMPRESSION)},
        dict(enumerate(FIGURE_DISCRIMINATION, start=1)),
    )
    return layer_panels("A nonlinear network of 10 layers; paper's C divided by 0.9", [curve])


EXPERIMENT = Experiment(
    name="fig4b",
    title="a nonlinear network on the same data",
    claim=(
        "With BatchNorm and ReLU in every layer, C_l still falls and D_l rises from one hidden "
        "layer to the next."
    ),
    seeds=SEEDS,
    settings=settings,
    compute=compute,
    check=check,
    plot=plot,
)
