"""Networks on real data, trained by `deeprep.run` and kept: each has a run directory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deeprep.data import Batches, load_configured_data
from deeprep.experiments.workspace import Numbers
from deeprep.models import LayerStack
from deeprep.probe.evaluation import evaluation_mode
from deeprep.run import RunStopped, run
from deeprep.run.defaults import resolve
from deeprep.run.job import prepare
from deeprep.run.record import Measurement, RunDirectory
from deeprep.run.settings import RunSettings, Settings, to_dict

__all__ = [
    "LayerFeatures",
    "as_numbers",
    "kept_in",
    "layer_features",
    "run_identity",
    "train_network",
]

_TRAINED_HERE: set[Path] = set()  # absolute paths of run directories

_METRICS = ("compression", "discrimination", "numerical_rank", "probe_accuracy")


def kept_in(directory: Path, seed: int, device: torch.device) -> RunSettings:
    """Return the settings of a run that is kept in a directory of its own."""
    return RunSettings(
        seed=seed,
        device="cuda" if device.type == "cuda" else "cpu",
        runs_dir=directory.parent,
        name=directory.name,
    )


def train_network(settings: Settings, *, resume: bool) -> RunDirectory:
    """Return the finished run of these settings in their runs_dir, under their name.

    A run found there is deleted and made anew, with two exceptions: one that this process made,
    which serves several figures; and with `resume` one of the same settings, which goes on from its
    checkpoint if it was stopped. The number of threads may differ.

    Raises
    ------
    KeyboardInterrupt
        A signal stopped the run, which can be resumed.
    """
    if settings.run.name is None:
        raise ValueError("settings.run.name is None, expected the name of the run")
    path = settings.run.runs_dir / settings.run.name
    start: Settings | RunDirectory = settings
    if (path / "config.json").is_file() and (resume or path.resolve() in _TRAINED_HERE):
        found = RunDirectory.open(path)
        if run_identity(found.settings()) == run_identity(resolve(settings)):
            checkpoint = found.load_checkpoint()
            if checkpoint is not None and checkpoint.finished:
                return found
            start = found
    if start is settings and path.is_dir():
        shutil.rmtree(path)
    threads = torch.get_num_threads()
    try:
        directory = run(start)
    except RunStopped as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        torch.set_num_threads(threads)  # a resumed run sets its own number
    _TRAINED_HERE.add(path.resolve())
    return directory


def run_identity(settings: Settings) -> dict[str, Any]:
    """Return all that a run's results depend on, as plain data."""
    alone = replace(resolve(settings), run=RunSettings(seed=settings.run.seed))
    values = to_dict(alone)
    values["run"] = {"seed": settings.run.seed}
    return values


def as_numbers(measurement: Measurement) -> Numbers:
    """Epoch, loss, accuracy, and each metric of l = 0, 1, ...; None where it was not measured."""
    layers = measurement.report.layers
    curves = {name: [getattr(layer, name) for layer in layers] for name in _METRICS}
    return {
        "epoch": measurement.epoch,
        "loss": measurement.loss,
        "accuracy": measurement.accuracy,
        **curves,
    }


class LayerFeatures(NamedTuple):
    """Features (M, d) of some hidden layers by number, labels (M,), and the classes' names."""

    features: dict[int, torch.Tensor]
    labels: torch.Tensor
    class_names: tuple[str, ...]


def layer_features(
    directory: RunDirectory,
    layers: Sequence[int],
    device: torch.device,
    samples_per_class: int | None = None,
) -> LayerFeatures:
    """Return what hidden layers of a trained stack make of its training data, in eval mode.

    Parameters
    ----------
    directory
        Of a run that has a checkpoint.
    layers
        Numbers of hidden layers, from 1.
    device
        Where to compute, and where the features stay.
    samples_per_class
        Of each class, the first so many; None for all.
    """
    settings, checkpoint = directory.settings(), directory.load_checkpoint()
    if checkpoint is None:
        raise ValueError(f"directory is {directory.path}, expected that of a run with a checkpoint")
    data = load_configured_data(settings.data, settings.run.seed)
    job = prepare(settings, data, device, None)
    if not isinstance(job.model, LayerStack):
        raise TypeError(f"arch is {settings.model.arch}, expected linear, mlp or hybrid")
    job.model.load_state_dict(checkpoint.model)
    each = [(data.labels == k).nonzero().flatten() for k in range(data.num_classes)]
    rows = torch.cat([found[:samples_per_class] for found in each]).to(device)
    inputs, labels = job.measured.inputs[rows], job.measured.labels[rows]
    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    with evaluation_mode(job.model):
        for batch, _ in Batches(inputs, labels, job.measured.batch_size):
            features = batch.flatten(1)
            for layer, name in enumerate(job.model.probe_layers, start=1):
                features = job.model.get_submodule(name)(features)
                if layer in parts:
                    parts[layer].append(features)
    features_of = {layer: torch.cat(pieces) for layer, pieces in parts.items()}
    return LayerFeatures(features_of, labels, data.class_names)
