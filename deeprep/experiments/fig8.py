"""Figure 8: projection heads and transfer.

A feature extractor is pre-trained under a projection head of 1 to 5 layers and a classifier on a
source set; head and classifier are dropped, and a new linear classifier is fitted to the frozen
features of a target set. Since C_l falls layer by layer, the features of an extractor under more
layers are less collapsed, and transfer better. The settings are not released.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from deeprep.data import Batches, DatasetName, load_data
from deeprep.experiments.experiment import Check, Experiment, Options, Setting, check_that
from deeprep.experiments.layer_panels import band_entry, draw_band
from deeprep.experiments.workspace import Numbers, Workspace
from deeprep.metrics import probe
from deeprep.models.projection import ProjectionNetwork, conv_extractor, resnet50_extractor
from deeprep.plots.canvas import log_axis
from deeprep.probe import analyze
from deeprep.run.settings import OptimizationSettings
from deeprep.run.train import evaluate, make_optimizer, train
from deeprep.state import ClassScatter

HEADS = (1, 2, 3, 4, 5)
SEEDS = (5, 5)

# Read off the figure, for the numbers of layers above.
FIGURE_ACCURACY = (0.601, 0.6465, 0.656, 0.663, 0.6715)
FIGURE_COMPRESSION = (0.0085, 0.029, 0.047, 0.082, 0.125)


@dataclass(frozen=True)
class Transfer:
    """What is trained on what; the source's samples of a class None for all."""

    source: DatasetName
    source_classes: tuple[int, ...] | None
    source_samples: int | None
    target: DatasetName
    target_classes: tuple[int, ...] | None
    target_samples: int  # of a class, to fit the classifier to
    held_out: int  # of a class, to test it on
    channels: int | None  # of the small network's first layer; None for ResNet-50
    head_width: int
    optimization: OptimizationSettings


# Of the reduced size; the full one differs in what `FULL` replaces.
_OPTIMIZATION = OptimizationSettings(
    loss="cross-entropy",
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=3e-3,
    schedule="cosine",
    final_lr_fraction=0.01,
    epochs=40,
    batch_size=50,
    stop_loss=0.0,
)
REDUCED = Transfer(
    source="fashion-mnist",
    source_classes=(0, 1, 2, 3, 4),
    source_samples=200,
    target="fashion-mnist",
    target_classes=(5, 6, 7, 8, 9),
    target_samples=400,
    held_out=1000,
    channels=16,
    head_width=128,
    optimization=_OPTIMIZATION,
)
FULL = Transfer(
    source="cifar100",
    source_classes=None,
    source_samples=None,
    target="cifar10",
    target_classes=None,
    target_samples=4000,
    held_out=1000,
    channels=None,
    head_width=2048,
    optimization=replace(
        _OPTIMIZATION, weight_decay=5e-4, epochs=100, batch_size=128, dtype="bf16"
    ),
)


def settings(options: Options) -> list[Setting]:
    """List every setting with its source."""
    run = FULL if options.full else REDUCED
    if options.full:
        source, target = "CIFAR-100", "CIFAR-10"
        backbone = "ResNet-50, first layers for images of 32 x 32"
    else:
        source, target = "FashionMNIST, classes 0 to 4", "FashionMNIST, classes 5 to 9"
        backbone = "4 convolutions and a linear layer, 128 features"
    training, unreleased = run.optimization, "not released"
    return [
        Setting("layers of the head", list(HEADS), "authors"),
        Setting("a layer of the head", "Linear + BatchNorm + ReLU", "ours", unreleased),
        Setting("its width", run.head_width, "ours", unreleased),
        Setting("extractor", backbone, "ours", unreleased),
        Setting("source", source, "ours", f"{run.source_samples or 'all'} samples per class"),
        Setting(
            "target",
            target,
            "ours",
            f"{run.target_samples} samples per class to fit to, {run.held_out} others to test on",
        ),
        Setting("target's classifier", "least squares with a bias, closed form", "ours"),
        Setting("loss", training.loss, "ours", unreleased),
        Setting(
            "SGD: lr, momentum, weight decay",
            f"{training.lr:g} (cosine to 1 %), {training.momentum:g}, {training.weight_decay:g}",
            "ours",
            unreleased,
        ),
        Setting("epochs, batch", f"{training.epochs}, {training.batch_size}", "ours", unreleased),
        Setting("augmentation", "none", "ours", unreleased),
        Setting("seeds", EXPERIMENT.num_seeds(options), "ours", "of weights, order and samples"),
    ]


def compute(options: Options, workspace: Workspace) -> Numbers:
    """Train and measure; a part for each head and seed, so that a long run resumes between them."""
    run = FULL if options.full else REDUCED
    heads: dict[str, list[Numbers]] = {str(head_layers): [] for head_layers in HEADS}
    for seed in range(EXPERIMENT.num_seeds(options)):
        for head_layers in HEADS:
            part = workspace.part(
                f"head-{head_layers}-seed-{seed}",
                {**asdict(run), "head_layers": head_layers, "seed": seed},
                partial(_train, run, head_layers, seed, options.device),
            )
            heads[str(head_layers)].append(part)
    return {
        "heads": {
            head_layers: {name: [part[name] for part in parts] for name in parts[0]}
            for head_layers, parts in heads.items()
        }
    }


def _train(run: Transfer, head_layers: int, seed: int, device: torch.device) -> Numbers:
    """Pre-train under a head; measure the extractor and the head, and the transfer."""
    source = load_data(
        run.source, classes=run.source_classes, samples_per_class=run.source_samples, seed=seed
    )
    channels, height, width = source.input_shape
    shape = (channels, height, width)
    torch.manual_seed(seed)
    extractor, num_features = (
        resnet50_extractor(shape) if run.channels is None else conv_extractor(shape, run.channels)
    )
    model = ProjectionNetwork(
        extractor,
        num_features,
        source.num_classes,
        head_layers=head_layers,
        width=run.head_width,
    ).to(device)
    training = run.optimization
    batches = Batches(source.inputs.to(device), source.labels.to(device), training.batch_size or 0)
    for _ in train(model, make_optimizer(model, training), batches, training, seed=seed):
        pass
    loss, accuracy = evaluate(model, batches, training)
    layers = analyze(model, batches, source.num_classes, layers=model.probe_layers).layers
    return {
        "loss": loss,
        "accuracy": accuracy,
        "compression": [layer.compression for layer in layers[1:]],  # from the extractor on
        "transfer": _transfer_accuracy(model.extractor, num_features, run, seed, device),
    }


@torch.no_grad()
def _transfer_accuracy(
    extractor: nn.Module, num_features: int, run: Transfer, seed: int, device: torch.device
) -> float:
    """Accuracy, on held-out samples, of the linear classifier of the target's features."""
    target = load_data(
        run.target,
        classes=run.target_classes,
        samples_per_class=run.target_samples + run.held_out,
        seed=seed,
    )
    held_out = torch.zeros(len(target.labels), dtype=torch.bool)
    for label in range(target.num_classes):
        held_out[(target.labels == label).nonzero().flatten()[: run.held_out]] = True

    def part(which: Tensor) -> Batches:
        return Batches(target.inputs[which].to(device), target.labels[which].to(device), 500)

    extractor.eval()
    scatter = ClassScatter(target.num_classes, num_features, full=True, device=device)
    for inputs, labels in part(~held_out):
        scatter.update(extractor(inputs), labels)
    classifier = probe(scatter)
    correct = 0
    for inputs, labels in part(held_out):
        correct += int((classifier.predict(extractor(inputs)) == labels).sum())
    return correct / int(held_out.sum())


def check(numbers: Numbers) -> list[Check]:
    """Judge that both curves rise, over the seeds: fitted slopes against their standard errors."""
    heads = numbers["heads"]
    fitted = [accuracy for head in heads.values() for accuracy in head["accuracy"]]
    least = min(fitted)
    checks = [
        check_that(
            "accuracy on the source, least of all runs",
            least >= 0.99,
            "about 1",
            least,
            "at least 0.99",
            "an extractor that does not fit its training data is not collapsed by any head",
        )
    ]
    extractor = np.log([[layers[0] for layers in head["compression"]] for head in heads.values()])
    transfer = np.array([head["transfer"] for head in heads.values()])
    unclear = "at this size the slope does not stand out from the scatter of the seeds"
    for quantity, ours, paper in (
        ("log C of the features", extractor, np.log(FIGURE_COMPRESSION)),
        ("transfer accuracy", transfer, np.array(FIGURE_ACCURACY)),
    ):
        slopes = _slopes(ours)
        error = float(slopes.std(ddof=len(slopes) > 1)) / math.sqrt(len(slopes))
        slope = float(slopes.mean())
        checks.append(
            check_that(
                f"slope of the {quantity}, per layer of the head",
                slope > 2 * error,
                float(_slopes(paper[:, None])[0]),
                slope,
                f"> 2 standard errors of {error:.2g}",
                f"{unclear}: {_how_collapsed(extractor, transfer)}",
            )
        )
    last = np.log([layers[-2:] for layers in heads[str(HEADS[-1])]["compression"]])
    falls = float(np.exp((last[:, 1] - last[:, 0]).mean()))
    checks.append(
        check_that(
            "factor of C at the last layer of the largest head", falls < 1, "< 1", falls, "< 1"
        )
    )
    return checks


def _how_collapsed(extractor: NDArray[np.float64], transfer: NDArray[np.float64]) -> str:
    """Say how far the features are from those of the figure, from log C and accuracies (heads, S).

    Transfer suffers from what a collapsed extractor has forgotten: this one may have forgotten
    little.
    """
    least, most = (f"{value:.2g}" for value in np.exp([extractor.min(), extractor.max()]))
    correlation = np.corrcoef(extractor.ravel(), transfer.ravel())[0, 1]
    return (
        f"the features keep a C of {least} to {most}, the paper's have {FIGURE_COMPRESSION[0]} to "
        f"{FIGURE_COMPRESSION[-1]}; over all runs the correlation of the transfer accuracy with "
        f"log C is {correlation:.2f}"
    )


def _slopes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slope per layer of the head, a least-squares line for every seed: (heads, S) -> (S,)."""
    slopes: NDArray[np.float64] = np.polyfit(HEADS, values, 1)[0]
    return slopes


def plot(numbers: Numbers) -> Figure:
    """C of the features and the transfer accuracy by layers of the head, and the paper's."""
    heads = numbers["heads"]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle("Features of an extractor that was trained under a projection head")
    compression = np.array([[c[0] for c in head["compression"]] for head in heads.values()])
    transfer = np.array([head["transfer"] for head in heads.values()])
    panels = (
        ("compression $C$ of the features", compression, FIGURE_COMPRESSION, "#1f5fa8"),
        ("transfer accuracy", transfer, FIGURE_ACCURACY, "#c2571a"),
    )
    for axes, (title, ours, paper, color) in zip(figure.subplots(1, 2), panels, strict=True):
        draw_band(axes, HEADS, ours.T, color)
        mean = np.exp(np.log(ours).mean(1))
        (line,) = axes.plot(HEADS, mean, "o-", color=color, label="ours (left axis)")
        right = axes.twinx()  # other data and another network: only the shape compares
        style = {"color": "0.4", "markerfacecolor": "none", "markersize": 8}
        (squares,) = right.plot(HEADS, paper, "s--", label="paper (right axis)", **style)
        if paper is FIGURE_COMPRESSION:
            log_axis(axes, ours.ravel())
            log_axis(right, paper)
        axes.set(title=title, xlabel="layers of the projection head", xticks=HEADS)
        axes.grid(alpha=0.25)
        handles = [line, squares, *band_entry(ours.shape[1])]
        axes.legend(handles=handles, frameon=False, fontsize="small", loc="lower right")
    return figure


EXPERIMENT = Experiment(
    name="fig8",
    title="projection heads and transfer",
    claim=(
        "The more layers the projection head has, the less collapsed the features below it are, "
        "and the better they transfer to other classes."
    ),
    seeds=SEEDS,
    settings=settings,
    compute=compute,
    check=check,
    plot=plot,
    remarks=(
        "Samples, weight decay, width and the extractor's last layer were chosen among some ten "
        "settings tried on one or two seeds, most of which had C rise with the layers of the head; "
        "they disagreed on the transfer accuracy.",
    ),
)
