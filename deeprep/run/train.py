"""The training loop: one screen, deterministic, and resumable at any epoch without its past.

Everything random in epoch e follows from (seed, e) and the learning rate from e alone, so a model
and an optimiser restored from a checkpoint continue to the same bits (on the CPU, with as many
threads).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from deeprep.base.ranks import Ranks
from deeprep.base.validate import chosen
from deeprep.data import Batches
from deeprep.probe.evaluation import evaluation_mode
from deeprep.run.settings import OptimizationSettings

__all__ = [
    "EpochResult",
    "NonFiniteLossError",
    "evaluate",
    "learning_rate",
    "make_optimizer",
    "measurement_epochs",
    "train",
    "training_loss",
]


class NonFiniteLossError(ArithmeticError):
    """The training loss became NaN or infinite."""


@dataclass(frozen=True)
class EpochResult:
    """How an epoch of training went.

    Attributes
    ----------
    epoch
        Epochs completed.
    loss
        Mean loss per sample over the epoch's batches, each taken before its step.
    accuracy
        Share of samples classified correctly in these same forward passes.
    finished
        Whether training ends here: the last epoch, or a loss below stop_loss.
    """

    epoch: int
    loss: float
    accuracy: float
    finished: bool = False


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    settings: OptimizationSettings,
    *,
    seed: int,
    first_epoch: int = 1,
    ranks: Ranks | None = None,
) -> Iterator[EpochResult]:
    """Train the model in place, one epoch per item taken, to the last epoch or to stop_loss.

    Parameters
    ----------
    model
        On the device of the batches, in the dtype of their inputs.
    optimizer
        Of `make_optimizer`; its learning rate is set before each epoch.
    batches
        The training data; each epoch shuffles them anew.
    settings
        The resolved optimization group.
    seed
        Fixes the order of the samples and all that is drawn in the model.
    first_epoch
        The epoch to go on with, counted from 1.
    ranks
        The processes that train it together, each with the model in DistributedDataParallel and
        its part of the batches. Gradients, losses and accuracies are those of the whole batches,
        so up to rounding the result is that of one process; but what a model draws (dropout)
        differs, and so do the statistics of BatchNorm where each process takes its own.

    Raises
    ------
    NonFiniteLossError
        The loss of an epoch is NaN or infinite, in any process.
    RankLostError
        A process has died.

    >>> from deeprep.run.settings import Settings
    >>> from deeprep.run.defaults import resolve
    >>> settings, inputs = resolve(Settings()).optimization, torch.eye(4)
    >>> model, batches = nn.Linear(4, 4), Batches(inputs, torch.arange(4), batch_size=0)
    >>> epochs = train(model, make_optimizer(model, settings), batches, settings, seed=0)
    >>> next(epochs).epoch
    1
    """
    for epoch in range(first_epoch, chosen(settings.epochs) + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, epoch)
        epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        _seed(batches.inputs.device, epoch_seed + (ranks.rank if ranks else 0))
        total_loss = torch.zeros((), dtype=torch.float64, device=batches.inputs.device)
        correct = torch.zeros((), dtype=torch.int64, device=batches.inputs.device)
        model.train()
        parts = zip(batches.sizes, batches.shuffled(epoch_seed), strict=True)
        for (size, whole_size), (inputs, labels) in parts:
            with _autocast(settings, inputs.device):
                outputs = model(inputs)
            batch_loss = training_loss(outputs, labels, settings)
            optimizer.zero_grad()
            if ranks is None:
                batch_loss.backward()
            else:
                # The wrapped model averages the gradients of ragged parts as if they were equal.
                with ranks.watch():
                    (batch_loss * (ranks.size * size / whole_size)).backward()
            optimizer.step()
            total_loss += batch_loss.detach() * size
            correct += (outputs.detach().argmax(1) == labels)[:size].sum()
        if ranks is not None:
            ranks.share_buffers(model)
        num_samples = sum(size for size, _ in batches.sizes)
        loss, accuracy = _means(f"of epoch {epoch}", total_loss, correct, num_samples, ranks)
        finished = epoch == settings.epochs or loss < chosen(settings.stop_loss)
        yield EpochResult(epoch, loss, accuracy, finished)
        if finished:
            return


def evaluate(
    model: nn.Module,
    batches: Batches,
    settings: OptimizationSettings,
    ranks: Ranks | None = None,
) -> tuple[float, float]:
    """Return mean loss and accuracy of the model in eval mode; each module's mode is restored.

    With `ranks`, of the batches of all these processes together.
    """
    total_loss = torch.zeros((), dtype=torch.float64, device=batches.inputs.device)
    correct = torch.zeros((), dtype=torch.int64, device=batches.inputs.device)
    with evaluation_mode(model):
        for inputs, labels in batches:
            outputs = model(inputs)
            total_loss += training_loss(outputs, labels, settings) * len(labels)
            correct += (outputs.argmax(1) == labels).sum()
    return _means("in eval mode", total_loss, correct, len(batches.labels), ranks)


def training_loss(
    outputs: torch.Tensor, labels: torch.Tensor, settings: OptimizationSettings
) -> torch.Tensor:
    """Return the loss of a batch, a scalar.

    mse:            1/N sum_i sum_k (alpha * f(x_i)_k - [k = y_i])^2      (JMLR 26(220))
    cross-entropy:  1/N sum_i -log softmax(f(x_i))_{y_i}

    Parameters
    ----------
    outputs
        f(x) (N, K); bf16 ones are widened first.
    labels
        y (N,) int64 in [0, K).
    settings
        The resolved optimization group.

    >>> settings = OptimizationSettings(loss="mse", alpha=1.0)
    >>> training_loss(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0, 1]), settings).item()
    0.25
    """
    if outputs.dtype in (torch.bfloat16, torch.float16):
        outputs = outputs.float()
    if settings.loss == "cross-entropy":
        return nn.functional.cross_entropy(outputs, labels)
    targets = nn.functional.one_hot(labels, outputs.shape[1])
    return (chosen(settings.alpha) * outputs - targets).square().sum() / len(labels)


def make_optimizer(model: nn.Module, settings: OptimizationSettings) -> torch.optim.Optimizer:
    """Return the optimiser of all of the model's parameters that resolved settings describe.

    >>> from deeprep.run.settings import Settings
    >>> from deeprep.run.defaults import resolve
    >>> type(make_optimizer(nn.Linear(2, 2), resolve(Settings()).optimization)).__name__
    'SGD'
    """
    lr, weight_decay = chosen(settings.lr), chosen(settings.weight_decay)
    if settings.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr, weight_decay=weight_decay)
    momentum = chosen(settings.momentum)
    return torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay)


def learning_rate(settings: OptimizationSettings, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 1.

    cosine: lr * (f + (1 - f) (1 + cos(pi (epoch - 1) / epochs)) / 2), f = final_lr_fraction; so the
    first epoch has lr, and lr * f would be that of the epoch after the last. Source: Loshchilov &
    Hutter, "SGDR", ICLR 2017, without restarts.

    >>> settings = OptimizationSettings(lr=1.0, schedule="cosine", final_lr_fraction=0.1, epochs=2)
    >>> [round(learning_rate(settings, epoch), 3) for epoch in (1, 2, 3)]
    [1.0, 0.55, 0.1]
    """
    lr = chosen(settings.lr)
    if settings.schedule == "constant":
        return lr
    final = chosen(settings.final_lr_fraction)
    progress = (epoch - 1) / chosen(settings.epochs)
    return lr * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)


def measurement_epochs(epochs: int, count: int) -> tuple[int, ...]:
    """Return about `count` epochs to measure at: 0, logarithmically spaced ones, and the last.

    Where rounding makes two the same, there is one fewer.

    >>> measurement_epochs(100, 6)
    (0, 1, 3, 10, 32, 100)
    """
    return (0, *sorted({round(epochs**x) for x in np.linspace(0, 1, count - 1)} | {epochs}))


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators that the model draws from (dropout).

    torch.manual_seed does the same, but as long as no GPU is in use it also stores the seed, with a
    stack trace, for every kind of GPU that might be: a third of a small network's epoch.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _autocast(
    settings: OptimizationSettings, device: torch.device
) -> AbstractContextManager[object]:
    return (
        torch.autocast(device.type, torch.bfloat16) if settings.dtype == "bf16" else nullcontext()
    )


def _means(
    which: str,
    total_loss: torch.Tensor,
    correct: torch.Tensor,
    num_samples: int,
    ranks: Ranks | None,
) -> tuple[float, float]:
    """Loss and accuracy per sample from their sums; the one synchronisation of an epoch is here."""
    sums = [total_loss.item(), correct.item(), num_samples]
    total, hits, samples = sums if ranks is None else ranks.sum(sums)
    loss = total / samples
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"the loss {which} is {loss}; lower lr")
    return loss, hits / samples
