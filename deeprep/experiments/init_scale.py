"""The scale of the initialisation, at the setting of figure 4a.

The smaller the orthogonal initialisation, the stronger each layer compresses, by eps^2, and the
longer the loss stays on its first plateau: at eps = 0.1 a network of six layers does not leave it.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from deeprep.experiments.deep_linear import Synthetic, train_directly
from deeprep.experiments.experiment import (
    Check,
    Experiment,
    Options,
    Setting,
    check_close,
    check_that,
)
from deeprep.experiments.layer_panels import Curve, layer_panels
from deeprep.experiments.workspace import Numbers, Workspace
from deeprep.theory import dln_compression_ratio

SCALES = (0.1, 0.3, 0.5)
SEEDS = (5, 20)
TRAINED = SCALES[1:]
FIRST_LOSS = 1.0  # |Y|^2 / N: the loss of a network whose output is zero


def settings(options: Options) -> list[Setting]:
    """List every setting with its source."""
    return [
        Setting("data, network, training", "those of figure 4a, alpha 1", "authors"),
        Setting("scale eps of the orthogonal initialisation", list(SCALES), "ours"),
        Setting("seeds", EXPERIMENT.num_seeds(options), "ours"),
    ]


def compute(options: Options, workspace: Workspace) -> Numbers:
    """Train and measure; a part for each scale."""
    seeds = list(range(EXPERIMENT.num_seeds(options)))
    numbers = {}
    for scale in SCALES:
        run = replace(Synthetic(), init_scale=scale)
        numbers[f"{scale:g}"] = workspace.part(
            f"eps-{scale:g}",
            {**asdict(run), "seeds": seeds},
            partial(train_directly, run, seeds, options.device),
        )
    return numbers


def check(numbers: Numbers) -> list[Check]:
    """Judge the factor a layer where training converges, and that it does not at 0.1."""
    run = Synthetic()
    checks = []
    for scale in TRAINED:
        curves = numbers[f"{scale:g}"]
        trained = curves["converged"]
        quantity = f"runs with a loss below {run.descent.stop_loss:g}, eps {scale:g}"
        checks.append(check_that(quantity, all(trained), len(trained), sum(trained), "every run"))
        logs = np.log(curves["compression"]).mean(0)
        ratio = float(np.exp((logs[-1] - logs[1]) / (run.depth - 2)))
        predicted = dln_compression_ratio(scale, run.depth, run.samples_per_class)
        quantity = f"factor of C_l a layer, l >= 1, eps {scale:g} (closed form)"
        checks.append(check_close(quantity, predicted, ratio, 0.03))
    least = min(numbers["0.1"]["losses"])
    quantity = f"least loss after {run.descent.epochs} epochs, eps 0.1"
    stuck = least > 0.99 * FIRST_LOSS
    tolerance = f"above {0.99 * FIRST_LOSS:g}: it does not train"
    checks.append(check_that(quantity, stuck, FIRST_LOSS, least, tolerance))
    logs = np.log(numbers["0.1"]["compression"]).mean(0)
    change = float(np.abs(np.exp(logs - logs[0]) - 1).max())
    quantity = "relative change of C_l over all layers, eps 0.1"
    checks.append(check_that(quantity, change < 0.01, 0.0, change, "below 0.01: no compression"))
    return checks


def plot(numbers: Numbers) -> Figure:
    """C_l and D_l for every scale, with the closed form from C_1 on."""
    run = Synthetic()
    curves = []
    for scale in SCALES:
        measured = numbers[f"{scale:g}"]
        first = float(np.exp(np.log(measured["compression"]).mean(0))[1])
        ratio = dln_compression_ratio(scale, run.depth, run.samples_per_class)
        predicted = {layer: first * ratio ** (layer - 1) for layer in range(1, run.depth)}
        curves.append(
            Curve(
                rf"$\epsilon$ = {scale:g}",
                measured["compression"],
                measured["discrimination"],
                predicted_compression=predicted if scale in TRAINED else {},
            )
        )
    return layer_panels(r"The scale $\epsilon$ of the orthogonal initialisation", curves)


EXPERIMENT = Experiment(
    name="init-scale",
    title="the scale of the initialisation",
    claim=(
        "A smaller initialisation compresses more, by eps^2 a layer; one that is too small does "
        "not leave the first plateau of the loss."
    ),
    seeds=SEEDS,
    settings=settings,
    compute=compute,
    check=check,
    plot=plot,
)
