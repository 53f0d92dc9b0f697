"""Figure 3: maps of the features of some layers of an MLP and a hybrid network.

The networks of figure 1, on its data: see `fig1.py` for how they are trained. Layers 1, 2, 4 and 6
laid out in the plane, the MLP above the hybrid network: from layer to layer the samples of a class
gather and the classes part. By UMAP where umap-learn is installed, as in the paper; otherwise by
t-SNE, which scikit-learn has, and which the figure's title then names.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deeprep.experiments import fig1
from deeprep.experiments.experiment import Check, Experiment, Options, Setting, check_that
from deeprep.experiments.training import layer_features
from deeprep.experiments.workspace import Numbers, Workspace
from deeprep.run.record import RunDirectory

LAYERS = (1, 2, 4, 6)
SAMPLES_PER_CLASS = {True: 300, False: 50}  # drawn in the map, by --full
GAIN = 0.1


def _method() -> str:
    return "UMAP" if find_spec("umap") else "t-SNE"


def settings(options: Options) -> list[Setting]:
    """List every setting with its source."""
    *shared, seeds = fig1.settings(options)
    networks = [setting for setting in shared if "probe" not in setting.name]
    return [
        *networks,
        Setting("layers", LAYERS, "authors"),
        Setting("map", _method(), "authors" if _method() == "UMAP" else "ours", "theirs: UMAP"),
        Setting("samples per class in the map", SAMPLES_PER_CLASS[options.full], "ours"),
        seeds,
    ]


def compute(options: Options, workspace: Workspace) -> Numbers:
    """Train, or take what figure 1 has trained, and draw the maps."""
    per_class, method = SAMPLES_PER_CLASS[options.full], _method()
    look = partial(_look, per_class, method)
    looking = {"layers": LAYERS, "samples_per_class": per_class, "method": method}
    networks = fig1.look_at_networks(options, workspace, look, looking)
    for first, *others in networks.values():  # of each network the first seed is drawn
        for key in first.keys() - {"silhouettes"}:
            for run in others:
                run.pop(key, None)
    return {"full": options.full, "method": method, "networks": networks}


def _look(per_class: int, method: str, directory: RunDirectory, device: torch.device) -> Numbers:
    """Where each sample of a layer lies in the plane, and how well the classes are apart there."""
    from sklearn.metrics import silhouette_score

    found = layer_features(directory, LAYERS, device, per_class)
    labels = found.labels.cpu().numpy()
    maps, silhouettes = {}, {}
    for layer, features in found.features.items():
        points = _lay_out(features.cpu().numpy(), method)
        silhouettes[str(layer)] = float(silhouette_score(points, labels))
        maps[str(layer)] = points.astype(np.float64).round(2).tolist()
    return {
        "maps": maps,
        "silhouettes": silhouettes,
        "labels": labels.tolist(),
        "class_names": found.class_names,
    }


def _lay_out(features: NDArray[np.float32], method: str) -> NDArray[np.float32]:
    """Return points (M, 2) of the plane for features (M, d)."""
    if method == "UMAP":
        from umap import UMAP

        mapping = UMAP(random_state=0)
    else:
        from sklearn.manifold import TSNE

        mapping = TSNE(random_state=0)
    points: NDArray[np.float32] = mapping.fit_transform(features)
    return points


def check(numbers: Numbers) -> list[Check]:
    """Judge whether the classes are farther apart in the map of a deep layer than of the first."""
    first, last = (str(layer) for layer in (LAYERS[0], LAYERS[-1]))
    checks = []
    for arch, runs in numbers["networks"].items():
        near, far = (
            float(np.mean([run["silhouettes"][layer] for run in runs])) for layer in (first, last)
        )
        checks.append(
            check_that(
                f"silhouette of the classes in the map, layer {first} to {last}, {arch}",
                far - near >= GAIN,
                "rises (by eye)",
                f"{near:.3f} to {far:.3f}",
                f"by {GAIN} or more",
            )
        )
    return checks


def plot(numbers: Numbers) -> Figure:
    """Every layer's map, coloured by class; of each network the first seed."""
    from matplotlib import colormaps

    networks = numbers["networks"]
    figure = Figure(figsize=(2.6 * len(LAYERS), 2.7 * len(networks) + 0.8), layout="constrained")
    grid = figure.subplots(len(networks), len(LAYERS), squeeze=False)
    for row, (arch, runs) in zip(grid, networks.items(), strict=True):
        labels = np.array(runs[0]["labels"])
        for axes, layer in zip(row, LAYERS, strict=True):
            points = np.array(runs[0]["maps"][str(layer)])
            for label, name in enumerate(runs[0]["class_names"]):
                own = points[labels == label]
                axes.scatter(*own.T, s=5, linewidths=0, color=colormaps["tab10"](label), label=name)
            axes.set_title(f"{arch}, layer {layer}", fontsize="medium")
            axes.set_xticks([])
            axes.set_yticks([])
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, markerscale=3)
    data = "CIFAR-10" if numbers["full"] else "FashionMNIST"
    figure.suptitle(f"Features of the training data, {data}, laid out by {numbers['method']}")
    return figure


EXPERIMENT = Experiment(
    name="fig3",
    title="maps of the features of an MLP and a hybrid network",
    claim=(
        "From layer to layer the features of a class gather and the classes part, in the linear "
        "layers of a hybrid network as in the nonlinear ones of an MLP."
    ),
    seeds=fig1.SEEDS,
    settings=settings,
    compute=compute,
    check=check,
    plot=plot,
)
