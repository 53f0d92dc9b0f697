"""LayerHooks: the features of every layer go to a consumer while the model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deeprep.probe.evaluation import to_device, understood_errors, weights_device
from deeprep.probe.layers import (
    LayerSelector,
    channels_are_last,
    check_model,
    embedding_layers,
    innermost_model,
    model_to_run,
    select_layers,
)
from deeprep.probe.reduce import (
    Reduce,
    Reduction,
    check_reduce,
    feature_tensor,
    reduced_rows,
    reduction_of,
)
from deeprep.probe.sequences import Mask, Sequences, recomputes

INPUT = "input"  # the name of layer 0

# A module that is itself called "input" is its second layer, not added to it.
_FIRST_CALLS = {INPUT: 1}

Consumer = Callable[[str, Tensor, Tensor], None]


class LayerHooks:
    """Feeds every chosen layer's reduced output, and the input, to the consumer of a batch.

    A consumer is called with (layer, features (n, d), labels (n,)), once or more for each layer of
    the batch, without gradients; what it is given lives no longer than the call.

    Parameters
    ----------
    model, layers, reduce, num_classes, ignore_index
        See `LayerProbe`.

    Attributes
    ----------
    only
        Names of the layers to feed, by default all.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: LayerSelector | Sequence[LayerSelector] | None,
        reduce: Reduce,
        *,
        num_classes: int,
        ignore_index: int,
    ) -> None:
        check_model(model)
        self._given = model  # which a loop of the user's calls
        self._model = model_to_run(model)
        self._modules = select_layers(model, layers)
        self._embeddings = embedding_layers(model, self._modules)
        check_reduce(reduce, self.names)
        self.only: frozenset[str] | None = None
        self._reduce = reduce
        self._sequences = Sequences(model, num_classes, ignore_index)
        self._handles: list[Any] = []
        self._consume: Consumer | None = None
        self._check: Callable[[Tensor], None] | None = None
        self._ids: Tensor | None = None  # integer input whose embedding has not run yet
        self._calls = dict(_FIRST_CALLS)

    @property
    def names(self) -> list[str]:
        """The input and the chosen layers, in order of definition."""
        return [INPUT, *self._modules]

    @property
    def attached(self) -> bool:
        """Whether the hooks are on the model."""
        return bool(self._handles)

    def __enter__(self) -> LayerHooks:
        """Put the hooks on the model; outside `batch` they do nothing."""
        if self._handles:
            raise RuntimeError("the probe is on the model already, expected to be entered once")
        try:
            start = innermost_model(self._model).register_forward_pre_hook(
                self._start, with_kwargs=True
            )
            self._handles.append(start)
            for module in self._embeddings:
                self._handles.append(module.register_forward_hook(self._take_embedding))
            for name, module in self._modules.items():
                hook = module.register_forward_hook(self._make_hook(name), with_kwargs=True)
                self._handles.append(hook)
            # Last, so that a stack still runs when it is measured itself.
            self._handles.extend(self._sequences.attach())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()

    def run(self, inputs: Any, labels: Tensor, mask: Mask | None, consume: Consumer) -> Any:
        """Run the model on one batch and return its output."""
        device = weights_device(self._model)
        with self.batch(labels, mask, consume), understood_errors(self._model, inputs):
            inputs = to_device(inputs, device)
            if isinstance(inputs, Mapping):
                return self._model(**inputs)
            if isinstance(inputs, tuple | list):
                return self._model(*inputs)
            return self._model(inputs)

    @contextlib.contextmanager
    def batch(
        self,
        labels: Tensor,
        mask: Mask | None,
        consume: Consumer,
        check: Callable[[Tensor], None] | None = None,
    ) -> Iterator[None]:
        """Every forward inside feeds its layers, with these labels, to the consumer.

        `check` is called with the integer input of each, such as token ids, before anything is fed.
        """
        if not self._handles:
            raise RuntimeError("the probe is not attached: use it as `with LayerProbe(...) as p:`")
        if self._sequences.has_batch:
            raise RuntimeError("the probe is measuring a batch already, expected one at a time")
        self._sequences.start_batch(labels, mask)
        self._consume, self._check = consume, check
        self._calls = dict(_FIRST_CALLS)
        try:
            with _hooks_fire(self._given):
                yield
        finally:
            self._sequences.end_batch()
            self._consume = self._ids = self._check = None

    @property
    def _is_idle(self) -> bool:
        return not self._sequences.has_batch or recomputes()

    def _start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model runs: its masks and, where the input is floating-point, layer 0."""
        if self._is_idle:
            return
        self._calls = dict(_FIRST_CALLS)
        self._sequences.start_forward(kwargs)
        features, self._ids = _model_input(args, kwargs)
        if self._ids is not None and self._check is not None:
            self._check(self._ids)
        if features is not None:
            # Three dimensions given by position may also be grey images or signals (N, C, L).
            named = any(features is value for value in kwargs.values())
            is_sequence = features.ndim == 3 and (named or self._sequences.has_mask)
            self._take(INPUT, features, self._reduction_of_input(is_sequence))

    def _reduction_of_input(self, is_sequence: bool) -> Reduction:
        """An image or a vector is taken as it is: its mean colour would say little."""
        if isinstance(self._reduce, Mapping) or is_sequence or self._reduce == "tokens":
            return reduction_of(INPUT, self._reduce)
        return "flatten"

    def _take_embedding(self, module: nn.Module, args: Any, output: Any) -> None:
        ids = self._ids
        if self._is_idle or ids is None or not isinstance(output, Tensor):
            return
        # Embeddings of positions may run too; those of the input keep its shape.
        kept = 1 if isinstance(module, nn.EmbeddingBag) else ids.ndim
        if output.shape[:kept] == ids.shape[:kept]:
            self._ids = None
            self._take(INPUT, output, self._reduction_of_input(is_sequence=True))

    def _make_hook(self, name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        reduction = reduction_of(name, self._reduce)

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._is_idle:
                return
            # A module called again within one forward is another layer: relu, relu#2, ...
            call = self._calls[name] = self._calls.get(name, 0) + 1
            layer = name if call == 1 else f"{name}#{call}"
            self._take(layer, output, reduction, module, (*args, *kwargs.values()))

        return hook

    def _take(
        self,
        layer: str,
        output: Any,
        reduction: Reduction,
        module: nn.Module | None = None,
        read: tuple[Any, ...] = (),
    ) -> None:
        """Reduce an output and consume its rows; it is layer 0's where there is no module."""
        if self.only is not None and layer not in self.only:
            return
        sequences, consume = self._sequences, self._consume
        assert consume is not None
        try:
            with torch.no_grad():
                what = "input" if module is None else "output"
                features = feature_tensor(output, sequences.num_samples, what).detach()
                if module is None:
                    labels = sequences.labels_of_input(output, features, reduction)
                else:
                    labels = sequences.labels_of_layer(module, read, features, reduction)
                    if _needs_channels_first(features, reduction, module):
                        features = features.movedim(-1, 1)
                with _no_autocast(features.device.type):
                    for rows, targets in reduced_rows(features, reduction, labels):
                        consume(layer, rows, targets)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"layer {layer!r}: {error}") from error


def _needs_channels_first(features: Tensor, reduction: Reduction, module: nn.Module) -> bool:
    """Is a map to be reduced by its positions, and its last axis that of the channels."""
    if features.ndim < 4 or reduction not in ("mean", "tokens"):
        return False
    return channels_are_last(module, features.shape)


def _model_input(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor | None, Tensor | None]:
    """The floating-point input, or else the integer one that an embedding will look up.

    That is the first tensor given by position. By name, `input_ids`, or the first tensor of
    floating point that is no mask (`pixel_values`, `inputs_embeds`), or the first integer one.
    """
    by_position = next((value for value in args if isinstance(value, Tensor)), None)
    if by_position is None:
        named = {n: v for n, v in kwargs.items() if isinstance(v, Tensor) and "mask" not in n}
        # Of an encoder-decoder model, what the encoder reads.
        named = {n: v for n, v in named.items() if not n.startswith("decoder_")} or named
        if "input_ids" in named:
            return None, named["input_ids"]
        real = next((v for v in named.values() if v.is_floating_point()), None)
        return real, next(iter(named.values()), None) if real is None else None
    if by_position.is_floating_point():
        return by_position, None
    return None, by_position


@contextlib.contextmanager
def _no_autocast(device_type: str) -> Iterator[None]:
    """Autocast would lower the precision of the statistics, or widen whole feature maps."""
    if torch.is_autocast_enabled(device_type):
        with torch.autocast(device_type, enabled=False):
            yield
    else:
        yield


@contextlib.contextmanager
def _hooks_fire(model: nn.Module) -> Iterator[None]:
    """See to it that every module is called as Python, where its hooks are.

    What torch.compile traced before the hooks were there does not know of them, and PyTorch's fused
    transformer layer calls none of its parts and hands on nested tensors.
    """
    modules = list(model.modules())
    compiled = any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in modules
    )
    fused = torch.backends.mha.get_fastpath_enabled() and any(
        isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer) for module in modules
    )
    with contextlib.ExitStack() as stack:
        if compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if fused:
            torch.backends.mha.set_fastpath_enabled(False)
            stack.callback(torch.backends.mha.set_fastpath_enabled, True)
        yield
