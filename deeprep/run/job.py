"""What a run works with: device, model, optimiser and batches, from its settings."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from deeprep.base.ranks import Ranks
from deeprep.base.validate import chosen, require
from deeprep.data import Batches, Data
from deeprep.models import build_model
from deeprep.run.device import choose_device, own_device
from deeprep.run.record import Checkpoint
from deeprep.run.settings import Settings
from deeprep.run.train import make_optimizer

_MEASUREMENT_BATCH = 1024  # samples; bounds the memory that feature maps take while measuring
_OWN_STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def prepare_device(settings: Settings, ranks: Ranks | None) -> torch.device:
    """Return the device to run on: of many processes on a machine, each has a GPU of its own.

    Raises
    ------
    ValueError
        A GPU is asked for and cannot be used, or there are too few of them.
    """
    device = choose_device(settings.run.device)
    if device.type == "cpu":
        return device
    # cuBLAS is deterministic only with a workspace of fixed size, read when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    return own_device(device, ranks)


def pin_settings(settings: Settings, device: torch.device) -> Settings:
    """Return settings under which the run goes on to the same bits, from whatever directory.

    The number of threads is among them because the last bits of a sum depend on it.
    """
    data_dir = settings.data.data_dir
    return replace(
        settings,
        data=replace(settings.data, data_dir=data_dir and data_dir.expanduser().resolve()),
        run=replace(
            settings.run,
            device="cuda" if device.type == "cuda" else "cpu",
            threads=torch.get_num_threads(),
        ),
    )


@dataclass(frozen=True)
class Job:
    """What is trained, how, on what, and what it is measured on.

    Attributes
    ----------
    model, optimizer
        The same in each of many processes.
    batches
        What it is trained on, of which this process takes its part.
    measured
        The same samples in order; of many processes, the part of this one.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    measured: Batches

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put the weights and the optimiser's state of a checkpoint in place.

        Raises
        ------
        ValueError
            It is of another network, or of another optimiser.
        """
        own, kept = self.model.state_dict(), checkpoint.model
        for name in own | kept:
            found, wanted = _shape(kept.get(name)), _shape(own.get(name))
            require(f"its {name}", found, found == wanted, f"{wanted} for this network")
        self.model.load_state_dict(kept)
        options = self.optimizer.param_groups[0].keys()
        try:
            self.optimizer.load_state_dict(checkpoint.optimizer)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"its optimizer is of another run ({error})") from error
        missing = ", ".join(sorted(options - self.optimizer.param_groups[0].keys()))
        require("its optimizer", f"without {missing}", not missing, "the kind that this run has")


def prepare(settings: Settings, data: Data, device: torch.device, ranks: Ranks | None) -> Job:
    """Return model, optimiser and batches as the seed makes them, and this process's part of them.

    Raises
    ------
    ValueError
        Settings that do not fit the data, or fewer samples than so many processes need.
    """
    torch.manual_seed(settings.run.seed)
    optimization = settings.optimization
    dtype = torch.float64 if optimization.dtype == "float64" else torch.float32
    model = build_model(settings.model, data.input_shape, data.num_classes).to(device, dtype)
    inputs, labels = data.inputs.to(device, dtype), data.labels.to(device)
    batch_size = chosen(optimization.batch_size)
    if ranks is None:
        batches = Batches(inputs, labels, batch_size)
        measured = Batches(inputs, labels, _MEASUREMENT_BATCH)
        return Job(model, make_optimizer(model, optimization), batches, measured)

    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    each = 2 if any(isinstance(module, _OWN_STATISTICS) for module in model.modules()) else 1
    smallest, why = each * ranks.size, ", two each for BatchNorm" if each == 2 else ""
    for name, found in (("data", len(labels)), ("batch_size", batch_size or len(labels))):
        wanted = f"at least {smallest} samples for {ranks.size} processes{why}"
        require(name, found, found >= smallest, wanted)
    batches = Batches(
        inputs,
        labels,
        batch_size,
        smallest=smallest if each == 2 else 2,
        rank=ranks.rank,
        num_ranks=ranks.size,
    )
    part = slice(*ranks.share(ranks.rank, len(labels)))
    measured = Batches(inputs[part], labels[part], _MEASUREMENT_BATCH)
    return Job(model, make_optimizer(model, optimization), batches, measured)


def _shape(value: Any) -> str:
    if value is None:
        return "missing"
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else "no tensor"


def wrap_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model, wrapped so that all processes train it together; collective."""
    device_ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=device_ids)
