"""Figure 5: compression and discrimination of the layers of an MLP and a hybrid network.

The networks of figure 1, on its data: see `fig1.py` for how they are trained. C_l falls from layer
to layer about geometrically and D_l rises, in the nonlinear layers as in the linear ones.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deeprep.experiments import fig1
from deeprep.experiments.experiment import (
    Check,
    Experiment,
    Options,
    Setting,
    check_close,
    check_that,
)
from deeprep.experiments.layer_panels import Curve, layer_panels
from deeprep.experiments.training import as_numbers
from deeprep.experiments.workspace import Numbers, Workspace
from deeprep.run.record import RunDirectory
from deeprep.theory import fit_line

# Read off the figure, layers 1 .. 7, CIFAR-10.
FIGURE_COMPRESSION = {
    "mlp": (23.5, 12.8, 4.0, 1.28, 0.65, 0.96, 0.17),
    "hybrid": (17.5, 9.3, 2.3, 0.85, 0.14, 0.026, 0.010),
}
FIGURE_DISCRIMINATION = {
    "mlp": (0.015, 0.035, 0.118, 0.338, 0.496, 0.55, 0.496),
    "hybrid": (0.013, 0.018, 0.09, 0.24, 0.45, 0.665, 0.852),
}
# D_l of the paper's MLP levels off too: it is largest at layer 6, and 90 % of that at layer 7.
LEAST_PEAK, KEPT = 5, 0.85
LINEAR = slice(
    fig1.DEPTH - 1 - fig1.LINEAR_LAYERS, None
)  # of layers 0 .. 7: what 4 .. 7 start from


def settings(options: Options) -> list[Setting]:
    """List every setting with its source."""
    *shared, seeds = fig1.settings(options)
    networks = [setting for setting in shared if "probe" not in setting.name]
    measured = "uniform weights of the classes, eval mode"
    note = "the authors measure in train mode, BatchNorm by batches of 1000"
    return [*networks, Setting("C_l, D_l", measured, "ours", note), seeds]


def compute(options: Options, workspace: Workspace) -> Numbers:
    """Train, or take what figure 1 has trained, and read what was measured then."""
    return {"full": options.full, "networks": fig1.look_at_networks(options, workspace, _look)}


def _look(directory: RunDirectory, device: torch.device) -> Numbers:
    """Before and after training."""
    first, last = directory.measurements[0], directory.measurements[-1]
    return {"first": as_numbers(first), "last": as_numbers(last)}


def check(numbers: Numbers) -> list[Check]:
    """Judge the trend of C_l and D_l, and that linear layers continue it."""
    checks: list[Check] = []
    slopes = {}
    for arch, runs in numbers["networks"].items():
        logs = _log_compression(runs)
        apart = fig1.layers_of(runs, "discrimination")
        paper_logs = np.log(FIGURE_COMPRESSION[arch])
        theirs, found = (int((np.diff(c) < 0).sum()) for c in (paper_logs, logs[1:]))
        quantity = f"layers 2 .. 7 at which C_l falls, {arch}"
        checks.append(check_that(quantity, found >= theirs, theirs, found, "as many or more"))
        peak, paper_peak = int(apart.argmax()), int(np.argmax(FIGURE_DISCRIMINATION[arch])) + 1
        rises = bool((np.diff(apart[1 : peak + 1]) > 0).all())
        checks.append(
            check_that(
                f"layer up to which D_l rises, {arch}",
                rises and peak >= LEAST_PEAK and apart[-1] >= KEPT * apart[peak],
                paper_peak,
                peak,
                f"at least {LEAST_PEAK}, rising at every layer up to it, {KEPT:.0%} of it kept",
                "a learning rate that is too large lets the last layers collapse onto few "
                "directions, and D_l stalls",
            )
        )
        paper_fit = fit_line(range(1, fig1.DEPTH), paper_logs.tolist())
        fit = fit_line(range(1, fig1.DEPTH), logs[1:].tolist())
        checks.append(
            check_that(
                f"R^2 of the line of log C_l, l >= 1, {arch}",
                fit.r_squared >= 0.9,
                paper_fit.r_squared,
                fit.r_squared,
                "at least 0.9",
                "the last layers have left the straight line",
            )
        )
        first = fig1.saturation(runs)
        left = float(np.exp(logs[-1] - logs[first])) if first else float("nan")
        paper_first = next(i for i, p in enumerate(fig1.FIGURE_PROBE[arch]) if p >= fig1.SATURATED)
        paper_left = float(np.exp(paper_logs[-1] - paper_logs[paper_first]))
        quantity = f"C_7 / C_l, l where a probe reaches {fig1.SATURATED:.0%}, {arch}"
        tolerance = "at most 0.5: compression goes on"
        checks.append(check_that(quantity, left <= 0.5, paper_left, left, tolerance))
        slopes[arch] = _slope(logs), _slope(np.array([np.nan, *paper_logs]))
        if numbers["full"]:
            checks += _check_figure(arch, runs)
    ours, paper = (slopes["hybrid"][i] / slopes["mlp"][i] for i in (0, 1))
    checks.append(
        check_that(
            "log C_l a layer, 3 .. 7: hybrid (linear) / mlp",
            1 / 3 <= ours <= 3,
            paper,
            ours,
            "within a factor of 3",
            "linear layers compress much less, or much more, than nonlinear ones in their place",
        )
    )
    return checks


def _log_compression(runs: list[Numbers]) -> NDArray[np.float64]:
    """Log C_l of l = 0 .. 7, the mean over the seeds."""
    logs: NDArray[np.float64] = np.log([run["last"]["compression"] for run in runs]).mean(0)
    return logs


def _slope(logs: NDArray[np.float64]) -> float:
    """Return what a layer adds to log C_l where the hybrid network is linear."""
    return fit_line(range(len(logs[LINEAR])), logs[LINEAR].tolist()).slope


def _check_figure(arch: str, runs: list[Numbers]) -> list[Check]:
    """The figure's own numbers, which hold for its data set."""
    checks = []
    ours = np.exp(_log_compression(runs))
    apart = fig1.layers_of(runs, "discrimination")
    why = "one seed each, and theirs are measured with BatchNorm in train mode"
    for layer in range(1, fig1.DEPTH):
        paper = FIGURE_COMPRESSION[arch][layer - 1]
        quantity = f"C_{layer}, {arch}"
        checks.append(check_close(quantity, paper, float(ours[layer]), 0.25, why))
        paper = FIGURE_DISCRIMINATION[arch][layer - 1]
        holds = abs(apart[layer] - paper) <= 0.1
        quantity = f"D_{layer}, {arch}"
        checks.append(check_that(quantity, holds, paper, float(apart[layer]), "+- 0.1", why))
    return checks


def plot(numbers: Numbers) -> Figure:
    """C_l and D_l after training, with the paper's on CIFAR-10, and before."""
    curves = [
        Curve(
            arch,
            [run["last"]["compression"] for run in runs],
            [run["last"]["discrimination"] for run in runs],
            dict(enumerate(FIGURE_COMPRESSION[arch], start=1)),
            dict(enumerate(FIGURE_DISCRIMINATION[arch], start=1)),
        )
        for arch, runs in numbers["networks"].items()
    ]
    curves += [
        Curve(
            f"{arch} before training",
            [run["first"]["compression"] for run in runs],
            [run["first"]["discrimination"] for run in runs],
        )
        for arch, runs in numbers["networks"].items()
    ]
    data = "CIFAR-10" if numbers["full"] else "FashionMNIST"
    return layer_panels(f"7 hidden layers on {data}; the paper's on CIFAR-10", curves)


EXPERIMENT = Experiment(
    name="fig5",
    title="compression and discrimination of an MLP and a hybrid network",
    claim=(
        "Across the layers of trained nonlinear networks C_l falls about geometrically and D_l "
        "rises; the linear layers of a hybrid network continue what nonlinear ones began."
    ),
    seeds=fig1.SEEDS,
    settings=settings,
    compute=compute,
    check=check,
    plot=plot,
    remarks=(
        "The tolerance of the rise of D_l was loosened after results were seen: it first asked for "
        "a rise at every layer, but the D_l of the MLP falls again after layer 6, as the paper's.",
    ),
)
