"""LayerProbe and analyze: class-scatter statistics of every layer while a model runs once.

Forward hooks reduce each layer's output to (N, d) and feed it to that layer's ClassScatter at
once; no feature map outlives its update, so memory is K*d (plus d*d) a layer, never N*d.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deeprep import metrics
from deeprep._layers import LayerSelector, select_layers
from deeprep.report import LayerReport
from deeprep.scatter import ClassScatter, Weighting

INPUT = "input"  # the name of layer 0
FULL_UP_TO = 2048  # features: beyond, the d x d scatter is not worth its memory by default

Reduce = Literal["flatten", "mean"] | Callable[[Tensor], Tensor]
Consumer = Callable[[str, Tensor, Tensor], None]


def reduce_features(output: Any, reduce: Reduce) -> Tensor:
    """One row per sample from a layer's output: (N, ...) -> (N, d).

    Parameters
    ----------
    output : tensor (N, ...), or a tuple, list or dict whose first tensor it is.
    reduce : "flatten" keeps every number; "mean" averages over positions: H and W of an image
        (N, C, H, W), tokens of a sequence (N, T, C); or a function (N, ...) -> (N, d).

    Raises
    ------
    TypeError, ValueError
        Where there is no tensor, or `reduce` is not one of these.
    """
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, tuple | list):
        output = next((part for part in output if isinstance(part, Tensor)), None)
    if not isinstance(output, Tensor):
        raise TypeError(f"the output is a {type(output).__name__}, expected a tensor")
    if callable(reduce):
        return reduce(output)
    if reduce == "flatten":
        return output.flatten(1)
    if reduce == "mean":
        if output.ndim == 3:
            return output.mean(dim=1)
        return output.flatten(2).mean(dim=2) if output.ndim > 3 else output.flatten(1)
    raise ValueError(f"reduce is {reduce!r}, expected 'flatten', 'mean' or a function")


class _Hooks:
    """Feeds every chosen layer's reduced output, and the input, to a consumer."""

    def __init__(
        self,
        model: nn.Module,
        layers: LayerSelector | Sequence[LayerSelector] | None,
        reduce: Reduce,
        consume: Consumer,
    ) -> None:
        if not callable(reduce) and reduce not in ("flatten", "mean"):
            raise ValueError(f"reduce is {reduce!r}, expected 'flatten', 'mean' or a function")
        self._model = model
        self._modules = select_layers(model, layers)
        self._reduce = reduce
        self._consume = consume
        self._handles: list[Any] = []
        self._labels: Tensor | None = None
        self._calls: dict[str, int] = {}

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def attach(self) -> None:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._make_hook(name)))

    def detach(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def run(self, inputs: Any, labels: Tensor) -> Any:
        """Run the model on one batch; hooks outside such a run do nothing."""
        self._labels, self._calls = labels, {}
        try:
            if isinstance(inputs, Tensor) and inputs.is_floating_point():
                self._take(INPUT, inputs, "flatten")
            return self._model(inputs)
        finally:
            self._labels = None

    def _make_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if self._labels is None:
                return
            # A module called again within one forward is another layer: relu, relu#2, ...
            call = self._calls[name] = self._calls.get(name, 0) + 1
            self._take(name if call == 1 else f"{name}#{call}", output, self._reduce)

        return hook

    def _take(self, layer: str, output: Any, reduce: Reduce) -> None:
        assert self._labels is not None
        try:
            with torch.no_grad():
                features = reduce_features(output, reduce).detach()
                self._consume(layer, features, self._labels.to(features.device))
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {layer!r}: {error}") from error


class LayerProbe:
    """One ClassScatter per layer, filled while the model runs; a context manager.

    Layer 0, named "input", is the input itself. Layers appear in the order in which they run. On
    leaving the context every hook is removed, whatever happened inside.

    Parameters
    ----------
    model : any torch module.
    num_classes : K.
    layers : names, globs or types of modules; None or "auto" chooses (see `automatic_layers` in
        deeprep/_layers.py): blocks of a deep model, the layers of a plain stack.
    reduce : "flatten", "mean" over positions, or a function (N, ...) -> (N, d).
    full : also accumulate d x d scatters; "auto" does so for d <= 2048.
    ignore_index : label of samples to skip.

    Attributes
    ----------
    scatters : dict of layer name -> ClassScatter.

    Raises
    ------
    ValueError, TypeError
        Where `layers` matches nothing, or a layer's features do not fit, naming the layer.

    Examples
    --------
    >>> import torch, deeprep
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with deeprep.LayerProbe(model, num_classes=2) as probe:
    ...     for _ in range(3):
    ...         outputs = probe(torch.randn(16, 4), torch.arange(16) % 2)
    >>> {name: s.num_samples for name, s in probe.scatters.items()}
    {'input': 48, '1': 48}
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        layers: LayerSelector | Sequence[LayerSelector] | None = None,
        reduce: Reduce = "flatten",
        *,
        full: bool | Literal["auto"] = "auto",
        ignore_index: int = -100,
    ) -> None:
        self.num_classes = num_classes
        self.full = full
        self.ignore_index = ignore_index
        self.scatters: dict[str, ClassScatter] = {}
        self._hooks = _Hooks(model, layers, reduce, self._update)

    def __enter__(self) -> LayerProbe:
        self._hooks.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.detach()

    def __call__(self, inputs: Any, labels: Tensor) -> Any:
        """Run the model on one batch, take in every layer, and return the model's output."""
        if not self._hooks.attached:
            raise RuntimeError("the probe is not attached: use it as `with LayerProbe(...) as p:`")
        return self._hooks.run(inputs, labels)

    def _update(self, layer: str, features: Tensor, labels: Tensor) -> None:
        scatter = self.scatters.get(layer)
        if scatter is None:
            num_features = features.shape[1] if features.ndim == 2 else 1
            scatter = self.scatters[layer] = ClassScatter(
                self.num_classes,
                num_features,
                full=num_features <= FULL_UP_TO if self.full == "auto" else self.full,
                device=features.device,
                ignore_index=self.ignore_index,
            )
        scatter.update(features, labels)


class _Accuracies:
    """Training accuracy, layer by layer, of the least-squares probe and the nearest class mean."""

    def __init__(self, scatters: dict[str, ClassScatter]) -> None:
        self._scatters = scatters
        self._probes = {n: metrics.probe(s) for n, s in scatters.items() if _can_probe(s)}
        self._ncc_hits = dict.fromkeys(scatters, 0)
        self._probe_hits = dict.fromkeys(self._probes, 0)

    def consume(self, layer: str, features: Tensor, labels: Tensor) -> None:
        scatter = self._scatters[layer]
        kept = labels != scatter.ignore_index
        if scatter.nonfinite_classes:
            return
        hits = metrics.nearest_class(scatter, features) == labels
        self._ncc_hits[layer] += int((hits & kept).sum())
        if layer in self._probes:
            hits = self._probes[layer].predict(features) == labels
            self._probe_hits[layer] += int((hits & kept).sum())

    def result(self) -> dict[str, tuple[float | None, float | None]]:
        """Layer -> (probe accuracy, nearest-class-mean accuracy), fractions in [0, 1]."""
        accuracies: dict[str, tuple[float | None, float | None]] = {}
        for layer, scatter in self._scatters.items():
            samples = scatter.num_samples
            if samples == 0 or scatter.nonfinite_classes:
                accuracies[layer] = (None, None)
                continue
            probe_hits = self._probe_hits.get(layer)
            probe = None if probe_hits is None else probe_hits / samples
            accuracies[layer] = (probe, self._ncc_hits[layer] / samples)
        return accuracies


def _can_probe(scatter: ClassScatter) -> bool:
    return scatter.full and scatter.num_samples > 0 and not scatter.nonfinite_classes


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients; every module's training flag and the RNG are restored."""
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            yield
    finally:
        for module, training in was_training:
            module.training = training


def _device_of(model: nn.Module) -> torch.device | None:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None


def analyze(
    model: nn.Module,
    loader: Iterable[tuple[Any, Tensor]],
    num_classes: int,
    *,
    layers: LayerSelector | Sequence[LayerSelector] | None = None,
    reduce: Reduce = "flatten",
    full: bool | Literal["auto"] = "auto",
    accuracy: bool = True,
    weighting: Weighting = "uniform",
    ignore_index: int = -100,
) -> LayerReport:
    """Measure every layer of a model on labelled data: C_l, D_l, NC1, ranks, accuracies.

    The model runs in eval mode without gradients: once for all statistics, and once more for the
    two accuracies, which need the finished statistics. Its training flags, the random state and
    its hooks are as before afterwards, also after an exception.

    Parameters
    ----------
    model : any torch module.
    loader : (inputs, labels) batches; iterated twice where `accuracy` is asked for. Tensors are
        moved to the model's device.
    num_classes : K.
    layers, reduce, full, ignore_index : see `LayerProbe`.
    accuracy : also report the training accuracy of the least-squares probe and of the nearest
        class mean.
    weighting : of Sigma_B's classes, "uniform" (the paper's) or "prior".

    Returns
    -------
    LayerReport, layer 0 being the input.

    Raises
    ------
    ValueError, TypeError
        On an empty or one-shot loader, and on a layer whose features do not fit.

    Examples
    --------
    >>> import torch, deeprep
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> labels = torch.arange(60) % 3
    >>> inputs = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3)
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> report = deeprep.analyze(model, [(inputs, labels)], num_classes=3)
    >>> [layer.name for layer in report.layers], report.layers[0].ncc_accuracy
    (['input', '1'], 1.0)
    """
    if accuracy and iter(loader) is loader:
        raise ValueError(
            "loader is a one-shot iterator, expected an iterable that can be run through twice "
            "(a list or a DataLoader); or pass accuracy=False"
        )
    device = _device_of(model)

    def batches() -> Iterator[tuple[Any, Tensor]]:
        for inputs, labels in loader:
            yield (inputs.to(device) if isinstance(inputs, Tensor) else inputs), labels

    with _evaluation_mode(model):
        probe = LayerProbe(model, num_classes, layers, reduce, full=full, ignore_index=ignore_index)
        with probe:
            for inputs, labels in batches():
                probe(inputs, labels)
        if not probe.scatters:
            raise ValueError("loader gave no batch, expected at least one")
        accuracies = None
        if accuracy:
            scorer = _Accuracies(probe.scatters)
            hooks = _Hooks(model, layers, reduce, scorer.consume)
            try:
                hooks.attach()
                for inputs, labels in batches():
                    hooks.run(inputs, labels)
            finally:
                hooks.detach()
            accuracies = scorer.result()
    return LayerReport.from_scatters(probe.scatters, accuracies, weighting=weighting)
