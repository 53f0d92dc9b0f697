"""Figure 6: what the theorem assumes of a network does hold after training.

Three distances, for depths L = 2 .. 5 at width 400 and widths 200 .. 700 at L = 5, ten seeds each:
from the minimum-norm map, from balanced layers, and of the trailing singular values from a common
one. The authors' script trains each network at its width, minutes a run; here all seeds and all
widths of a depth train as one batch of the small networks that they are equivalent to (see
`deeprep.theory.reduce_deep_linear`), whose size does not depend on the width. So three widths that
nobody could train directly are there too, the last with a W_2 of 80 GB.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from deeprep.experiments.deep_linear import GradientDescent, Synthetic, train_reduced
from deeprep.experiments.experiment import (
    Check,
    Experiment,
    Options,
    Setting,
    check_close,
    check_that,
)
from deeprep.experiments.workspace import Numbers, Workspace
from deeprep.plots.canvas import log_axis
from deeprep.theory import (
    balance_errors,
    minimum_norm_error,
    trailing_singular_values,
)

RUN = Synthetic(
    init_scale=0.1,
    width=400,
    depth=5,
    descent=GradientDescent(lr=0.1, final_lr_fraction=1e-3, epochs=100_000, stop_loss=1e-10),
)
DEPTHS = (2, 3, 4, 5)  # at width 400
WIDTHS = (200, 300, 400, 500, 600, 700)  # at depth 5
LARGE_WIDTHS = (1_000, 10_000, 100_000)
SEEDS = (3, 10)
PAPER_SEEDS = 10

# Read off the figure: means over ten seeds.
FIGURE = {
    "norm": {
        "depth": dict(zip(DEPTHS, (0.049, 0.047, 0.044, 0.040), strict=True)),
        "width": dict(zip(WIDTHS, (0.0587, 0.0475, 0.0395, 0.037, 0.034, 0.029), strict=True)),
    },
    "balance": {
        "depth": dict(zip(DEPTHS, (0.023, 0.0665, 0.048, 0.0375), strict=True)),
        "width": dict(zip(WIDTHS, (0.027, 0.033, 0.0375, 0.041, 0.044, 0.047), strict=True)),
    },
}
READING_ERROR = 0.05
LABELS = {
    "norm": r"$\|Y X^+ - W_{L:1}\|_F$",
    "balance": r"mean $\|W_{l+1}^\top W_{l+1} - W_l W_l^\top\|_F / \|W_l\|_F$",
    "variance": r"Var $\sigma_i(W_l)$, $K < i \leq d_x - K$",
}


def settings(options: Options) -> list[Setting]:
    """List every setting with its source."""
    return [
        Setting("data", "those of figure 4a", "authors"),
        Setting("depths at width 400", DEPTHS, "authors"),
        Setting("widths at depth 5", WIDTHS, "authors"),
        Setting("more widths at depth 5", LARGE_WIDTHS, "ours"),
        Setting("alpha, scale eps of the orthogonal initialisation", "1, 0.1", "authors"),
        Setting("full-batch gradient descent, lr, cosine to", "0.1, 0.0001", "authors"),
        Setting("epochs, or stop at a loss below", "100000, 1e-10", "authors"),
        Setting("precision", "float64", "ours", "the authors': float32"),
        Setting("trained as", "the equivalent network of width 33", "ours", "exact"),
        Setting("seeds", EXPERIMENT.num_seeds(options), "authors", "10 with --full, as theirs"),
    ]


def compute(options: Options, workspace: Workspace) -> Numbers:
    """Train and measure; a part for each depth, all its widths and seeds together."""
    seeds = list(range(1, EXPERIMENT.num_seeds(options) + 1))
    by_depth = {}
    for depth in DEPTHS:
        run = replace(RUN, depth=depth)
        widths = (*WIDTHS, *LARGE_WIDTHS) if depth == RUN.depth else (RUN.width,)
        by_depth[depth] = workspace.part(
            f"depth-{depth}",
            {**asdict(run), "widths": widths, "seeds": seeds},
            partial(_measure, run, widths, seeds, options.device),
        )
    return {
        "depth": {str(depth): by_depth[depth][str(RUN.width)] for depth in DEPTHS},
        "width": by_depth[RUN.depth],
    }


def _measure(
    run: Synthetic, widths: tuple[int, ...], seeds: list[int], device: torch.device
) -> Numbers:
    """Width -> name of each quantity -> its value for every seed."""
    networks = [replace(run, width=width).draw_reduced(seed) for width in widths for seed in seeds]
    trained, _ = train_reduced(networks, run, device)
    rebuilt = [
        network.rebuild([weight[index].cpu() for weight in trained.weights])
        for index, network in enumerate(networks)
    ]
    targets = torch.nn.functional.one_hot(run.labels()).double()
    inputs = torch.stack([run.draw_inputs(seed) for seed in seeds])
    numbers = {}
    for number, width in enumerate(widths):
        rows = slice(number * len(seeds), (number + 1) * len(seeds))
        weights = [torch.stack(same) for same in zip(*rebuilt[rows], strict=True)]
        # Beyond these dimensions, the layers are eps times the identity from first to last.
        idle, scale = width - weights[0].shape[1], run.init_scale
        trailing = trailing_singular_values(weights, idle=idle, idle_scale=scale)
        balance = balance_errors(weights, idle=idle, idle_scale=scale)
        numbers[str(width)] = {
            "norm": minimum_norm_error(weights, inputs, targets).tolist(),
            "balance": balance.mean(1).tolist(),
            "variance": trailing.flatten(1).var(1).tolist(),
            "epochs": trained.epochs[rows].tolist(),
            "converged": trained.converged[rows].tolist(),
        }
    return numbers


def check(numbers: Numbers) -> list[Check]:
    """Judge the three quantities on both sweeps, and that every run has trained."""
    runs = [*numbers["depth"].values(), *numbers["width"].values()]
    trained = [converged for run in runs for converged in run["converged"]]
    checks = [
        check_that(
            "runs with a loss below 1e-10", all(trained), len(trained), sum(trained), "every run"
        )
    ]
    for name, quantity in (("norm", "|Y X^+ - W_L:1|"), ("balance", "imbalance")):
        for sweep in ("depth", "width"):
            for value, paper in FIGURE[name][sweep].items():
                ours = np.array(numbers[sweep][str(value)][name])
                # Two means over seeds, read off to 5 %, differ by chance too.
                chance = (
                    ours.std(ddof=len(ours) > 1)
                    / ours.mean()
                    * np.sqrt(1 / len(ours) + 1 / PAPER_SEEDS)
                )
                relative = READING_ERROR + 2 * float(chance)
                label = f"{quantity}, {sweep} {value}"
                checks.append(check_close(label, paper, float(ours.mean()), relative))
    largest = max(max(run["variance"]) for run in runs)
    bound = 1e-4 * RUN.init_scale**2
    quantity = "largest variance of the trailing singular values"
    checks.append(check_that(quantity, largest < bound, 0.0, largest, f"below {bound:g}"))
    norms = [float(np.mean(numbers["width"][str(width)]["norm"])) for width in LARGE_WIDTHS]
    exponent = float(np.polyfit(np.log(LARGE_WIDTHS), np.log(norms), 1)[0])
    quantity = "|Y X^+ - W_L:1| from width 1,000 to 100,000 goes as width to the power"
    checks.append(check_that(quantity, abs(exponent + 0.5) < 0.05, -0.5, exponent, "+- 0.05"))
    return checks


def plot(numbers: Numbers) -> Figure:
    """Three quantities by depth, above, and by width, below."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    figure.suptitle("The theorem's assumptions after training: minimum norm, balance, low rank")
    for row, sweep in zip(figure.subplots(2, 3), ("depth", "width"), strict=True):
        for axes, (name, label) in zip(row, LABELS.items(), strict=True):
            positions = [int(value) for value in numbers[sweep]]
            values = np.array([run[name] for run in numbers[sweep].values()])
            mean, spread = values.mean(1), values.std(1)
            style = {"color": "#1f5fa8", "capsize": 3, "markersize": 4}
            axes.errorbar(positions, mean, spread, marker="o", label="ours", **style)
            if name in FIGURE:
                paper = FIGURE[name][sweep]
                drawn = [*(mean - spread), *(mean + spread), *paper.values()]
                axes.plot(
                    *zip(*paper.items(), strict=True),
                    "s",
                    color="#c2571a",
                    markerfacecolor="none",
                    markersize=8,
                    label="paper",
                )
                axes.legend(frameon=False)
                if sweep == "depth":
                    axes.set_ylim(0, None)
                else:
                    log_axis(axes, drawn)
            else:  # the paper's axis shows zero: the scale of what it could be is eps^2
                axes.set_ylim(-0.05 * RUN.init_scale**2, RUN.init_scale**2)
            if sweep == "width":
                axes.set_xscale("log")
                axes.set_xlabel("width, $L = 5$")
            else:
                axes.set_xticks(positions)
                axes.set_xlabel("depth $L$, width 400")
            axes.set_title(label, fontsize="medium")
            axes.grid(alpha=0.25)
    return figure


EXPERIMENT = Experiment(
    name="fig6",
    title="the assumptions of the theorem hold after training",
    claim=(
        "Trained deep linear networks are near the minimum-norm solution, balanced, and of rank K "
        "up to singular values that stay at eps, for every depth and width."
    ),
    seeds=SEEDS,
    settings=settings,
    compute=compute,
    check=check,
    plot=plot,
)
