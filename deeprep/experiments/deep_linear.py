"""Deep linear networks in batches: draw, train by full-batch gradient descent, measure.

Networks of one shape and one number of layers are one stack of tensors with the batch in front,
and train as one program of batched matrix products; seeds, scales of the initialisation and
factors alpha may differ within it. All in float64: C_l reaches 1e-5 and the loss 1e-11.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from deeprep.base.validate import require
from deeprep.data import orthogonal
from deeprep.experiments.workspace import Numbers
from deeprep.metrics import compression, discrimination
from deeprep.state import class_scatter
from deeprep.theory import ReducedDeepLinear, draw_wide_deep_linear, reduce_deep_linear

__all__ = [
    "DescentBatch",
    "GradientDescent",
    "Synthetic",
    "Trained",
    "layer_metrics",
    "one_thread",
    "train",
    "train_directly",
    "train_reduced",
]

_STEPS_PER_LOOK = 50  # how often the host waits to learn which networks have finished


@dataclass(frozen=True)
class GradientDescent:
    """Full-batch gradient descent with a cosine schedule.

    The learning rate of step t = 0 .. epochs - 1 is lr (f + (1 - f) (1 + cos(pi t / epochs)) / 2),
    f = final_lr_fraction. A network stops after the step whose loss, taken before it, is below
    `stop_loss`.
    """

    lr: float
    final_lr_fraction: float
    epochs: int
    stop_loss: float
    weight_decay: float = 0.0

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        wave = (1 + math.cos(math.pi * step / self.epochs)) / 2
        return self.lr * (self.final_lr_fraction + (1 - self.final_lr_fraction) * wave)


@dataclass(frozen=True)
class Trained:
    """Networks after training.

    Attributes
    ----------
    weights
        W_1 (S, h, d) .. W_L (S, K, h).
    losses
        (S,) the loss before the last step.
    epochs
        (S,) steps taken, int64.
    converged
        (S,) whether the loss has fallen below `stop_loss`.
    """

    weights: list[Tensor]
    losses: Tensor
    epochs: Tensor
    converged: Tensor

    def summary(self) -> Numbers:
        """Return all but the weights, as plain data."""
        names = ("losses", "epochs", "converged")
        return {name: getattr(self, name).tolist() for name in names}


@dataclass(frozen=True)
class Synthetic:
    """The paper's synthetic experiment on a deep linear network; the defaults are those of fig. 4.

    Attributes
    ----------
    num_classes, samples_per_class, dimension
        K, n and d_x of the data.
    noise
        Frobenius norm of the noise on the N = K n orthonormal samples; see
        `deeprep.data.orthogonal`.
    width, depth
        Hidden width and number L of weight matrices.
    init_scale
        Scale eps of the orthogonal initialisation.
    alpha
        Factor on the outputs in the loss.
    descent
        How it trains.
    """

    num_classes: int = 3
    samples_per_class: int = 10
    dimension: int = 50
    noise: float = 1.0
    width: int = 50
    depth: int = 6
    init_scale: float = 0.3
    alpha: float = 1.0
    descent: GradientDescent = GradientDescent(
        lr=0.1, final_lr_fraction=0.1, epochs=5000, stop_loss=1e-11
    )

    def labels(self) -> Tensor:
        """(N,) classes."""
        return torch.arange(self.num_classes).repeat_interleave(self.samples_per_class)

    def draw_inputs(self, seed: int) -> Tensor:
        """Draw (N, d_x) samples, float64."""
        data = orthogonal(
            self.num_classes, self.samples_per_class, self.dimension, self.noise, seed
        )
        return data.inputs.double()

    def draw_weights(self, seed: int) -> list[Tensor]:
        """Draw orthogonal weights of the full width, float64.

        The authors' last layer is [K x K orthogonal, 0] * eps. Seen through the uniformly drawn
        layer below it, that is the same as the K rows drawn uniformly here.
        """
        sizes = [self.dimension, *[self.width] * (self.depth - 1), self.num_classes]
        return [
            torch.nn.init.orthogonal_(
                torch.empty(after, before, dtype=torch.float64),
                gain=self.init_scale,
                generator=generator,
            )
            for generator in [_generator(seed)]
            for before, after in pairwise(sizes)
        ]

    def draw_reduced(self, seed: int) -> ReducedDeepLinear:
        """Draw weights and inputs as the small network that trains exactly alike."""
        weights = draw_wide_deep_linear(
            self.width,
            self.dimension,
            self.num_classes,
            self.depth,
            self.init_scale,
            _generator(seed),
        )
        return reduce_deep_linear(weights, self.draw_inputs(seed))


def _generator(seed: int) -> torch.Generator:
    """Give a stream of its own for the weights: the inputs are drawn from `seed` itself."""
    state = np.random.SeedSequence([seed, 1]).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def train_directly(run: Synthetic, seeds: Sequence[int], device: torch.device) -> Numbers:
    """Train one network a seed, at its full width, and measure every layer.

    Returns
    -------
    "compression" and "discrimination": for every seed C_l and D_l of l = 0 .. L - 1; "losses",
    "epochs" and "converged" of every seed.
    """
    weights = [torch.stack(same) for same in zip(*map(run.draw_weights, seeds), strict=True)]
    inputs = torch.stack([run.draw_inputs(seed) for seed in seeds])
    weights, inputs = [weight.to(device) for weight in weights], inputs.to(device)
    labels = run.labels().to(device)
    trained = train(weights, inputs, labels, run.descent, alpha=run.alpha)
    return {**layer_metrics(trained.weights, inputs, labels), **trained.summary()}


def train_reduced(
    networks: Sequence[ReducedDeepLinear], run: Synthetic, device: torch.device
) -> tuple[Trained, Tensor]:
    """Train reduced networks of one shape together, on the labels and as the descent of `run`.

    Returns
    -------
    The result, with small weights, on the device; and the small inputs (S, N, r + 1) there.

    Raises
    ------
    ValueError
        Shapes that differ: data or weights of another rank.
    """
    shapes = {tuple(tuple(weight.shape) for weight in each.weights) for each in networks}
    require("networks", f"{len(shapes)} shapes", len(shapes) == 1, "one shape")
    stacks = zip(*(network.weights for network in networks), strict=True)
    weights = [torch.stack(same).to(device) for same in stacks]
    inputs = torch.stack([network.inputs for network in networks]).to(device)
    trained = train(weights, inputs, run.labels().to(device), run.descent, alpha=run.alpha)
    return trained, inputs


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread: products of 50 x 50 matrices gain nothing from a second one.

    On a machine that is busy a second one costs much, and the last bits depend on the number.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def train(
    weights: Sequence[Tensor],
    inputs: Tensor,
    labels: Tensor,
    descent: GradientDescent,
    *,
    alpha: float = 1.0,
) -> Trained:
    """Minimise |alpha W_L ... W_1 X - Y|_F^2 / N for each of S networks at once.

    Parameters
    ----------
    weights
        W_1 (S, h, d) .. W_L (S, K, h); not changed.
    inputs
        (S, N, d).
    labels
        (N,) classes, the same for all.
    descent
        The schedule; a network that has finished leaves the batch.
    alpha
        Factor on the outputs.

    Raises
    ------
    ValueError
        epochs < 1.
    """
    require("epochs", descent.epochs, descent.epochs >= 1, ">= 1")
    targets = torch.nn.functional.one_hot(labels, weights[-1].shape[-2]).to(inputs).mT
    batch = DescentBatch(weights, inputs, targets, alpha)
    losses = inputs.new_full(inputs.shape[:1], math.inf)
    steps = torch.zeros_like(losses, dtype=torch.int64)
    result = Trained(
        [torch.empty_like(weight) for weight in weights],
        losses.clone(),
        steps.clone(),
        torch.zeros_like(losses, dtype=torch.bool),
    )
    members = torch.arange(len(inputs), device=inputs.device)
    active = torch.ones_like(result.converged)

    def keep(done: Tensor) -> None:
        for target, weight in zip(result.weights, batch.weights, strict=True):
            target[members[done]] = weight[done]
        result.losses[members[done]], result.epochs[members[done]] = losses[done], steps[done]
        result.converged[members[done]] = losses[done] < descent.stop_loss

    for step in range(descent.epochs):
        rates = active.to(losses) * descent.learning_rate(step)
        losses = torch.where(active, batch.step(rates, descent.weight_decay), losses)
        steps += active
        # NaN compares false: a network that diverges stops, and has not converged.
        active = active & (losses >= descent.stop_loss)
        if (step + 1) % _STEPS_PER_LOOK == 0 and not bool(active.all()):
            keep(~active)
            batch = batch.select(active)
            members, losses, steps = members[active], losses[active], steps[active]
            active = active[active]
            if not len(members):
                return result
    keep(torch.ones_like(active))
    return result


class DescentBatch:
    """S deep linear networks that take steps of gradient descent together.

    Every gradient is a product of two thin matrices, dL/dW_l = T_l' G_{l-1} with

        T_l = W_L ... W_{l+1} (K, h),   G_0 = (2 alpha / N) (alpha T_0 X - Y) X' (K, d),
        G_l = G_{l-1} W_l' (K, h),

    so a step costs L products of a (K, h) with an (h, h) matrix, three times over: no product of
    two (h, h) matrices, and nothing of size N x h.

    Parameters
    ----------
    weights
        W_1 (S, h, d) .. W_L (S, K, h); copied.
    inputs
        (S, N, d).
    targets
        Y (K, N), the same for all.
    alpha
        Factor on the outputs.
    """

    def __init__(
        self, weights: Sequence[Tensor], inputs: Tensor, targets: Tensor, alpha: float
    ) -> None:
        self.weights = [weight.clone() for weight in weights]
        self._inputs = inputs
        self._columns = inputs.mT.contiguous()
        self._targets = targets
        self._alpha = alpha
        num_classes = weights[-1].shape[-2]
        self._tops = [w.new_empty(len(w), num_classes, w.shape[2]) for w in weights[:-1]]
        self._flows = [w.new_empty(len(w), num_classes, w.shape[1]) for w in weights[:-1]]

    def select(self, kept: Tensor) -> DescentBatch:
        """Return the batch of some of the networks."""
        weights = [weight[kept] for weight in self.weights]
        return DescentBatch(weights, self._inputs[kept], self._targets, self._alpha)

    def step(self, rates: Tensor, weight_decay: float = 0.0) -> Tensor:
        """Take a step, each network at its rate (S,); return the losses (S,) before it."""
        *hidden, last = self.weights
        tops = [last]  # T_{L-1}, .., T_0
        for weight, top in zip(reversed(hidden), reversed(self._tops), strict=True):
            tops.append(torch.bmm(tops[-1], weight, out=top))
        errors = torch.baddbmm(self._targets, tops.pop(), self._columns, beta=-1, alpha=self._alpha)
        num_samples = self._inputs.shape[1]
        losses = errors.square().sum((1, 2)) / num_samples
        flow = torch.bmm(errors, self._inputs)
        flow *= (rates * (2 * self._alpha / num_samples))[:, None, None]
        # Each layer's gradient takes the flow from below it, and hands it on before it changes.
        for weight, out in zip(hidden, self._flows, strict=True):
            above = torch.bmm(flow, weight.mT, out=out)
            if weight_decay:
                weight *= (1 - rates * weight_decay)[:, None, None]
            weight.baddbmm_(tops.pop().mT, flow, alpha=-1)
            flow = above
        if weight_decay:
            last *= (1 - rates * weight_decay)[:, None, None]
        last -= flow
        return losses


def layer_metrics(weights: Sequence[Tensor], inputs: Tensor, labels: Tensor) -> Numbers:
    """Measure every layer of every network.

    Parameters
    ----------
    weights
        W_1 (S, h, d) .. W_L (S, K, h).
    inputs
        (S, N, d).
    labels
        (N,).

    Returns
    -------
    "compression" and "discrimination": S lists of C_l and D_l, l = 0 .. L - 1.
    """
    num_classes = weights[-1].shape[-2]
    layers = [inputs]
    for weight in weights[:-1]:
        layers.append(torch.bmm(layers[-1], weight.mT))
    scatters = [
        [class_scatter(features[network], labels, num_classes) for features in layers]
        for network in range(len(inputs))
    ]
    return {
        "compression": [[compression(s) for s in network] for network in scatters],
        "discrimination": [[discrimination(s) for s in network] for network in scatters],
    }
