"""Whose tokens a layer has: in an encoder-decoder model each sequence has a mask of its own.

Their lengths do not tell, for both may be padded to the same one. What tells is which of the two
stacks runs, but for one exception: keys and values of cross-attention run in the decoder and are
made from what the encoder gave, so they have the encoder's tokens.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from deeprep.probe.layers import innermost_model, named_layers
from deeprep.probe.reduce import BatchLabels, Reduction, tensors_in, uses_mask

Side = Literal["encoder", "decoder"]
Mask = Tensor | tuple[Tensor | None, Tensor | None]

_ENCODER: Side = "encoder"
_DECODER: Side = "decoder"
_SIDES = (_ENCODER, _DECODER)
_TORCH_DECODERS = (nn.TransformerDecoder, nn.TransformerDecoderLayer)
_TORCH_ENCODERS = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
_MASKS: dict[Side, str] = {_ENCODER: "attention_mask", _DECODER: "decoder_attention_mask"}
# What a decoder that is run alone calls them.
_MASKS_OF_A_DECODER: dict[Side, str] = {
    _ENCODER: "encoder_attention_mask",
    _DECODER: "attention_mask",
}


class _Stack(NamedTuple):
    side: Side
    is_torch_decoder: bool  # which reads two sequences, whatever the model is called with


class Sequences:
    """The labels of one batch, masked as the sequence that a layer runs on needs it.

    A model has two sequences if its `config` says so, if it is called with ``decoder_`` arguments,
    or if two masks are given. Of its inputs, `attention_mask` is the encoder's mask and
    `decoder_attention_mask` the decoder's, which has none otherwise; but where nothing is given to
    the decoder, it reads the encoder's tokens and has the encoder's mask. Where a model has a
    decoder and no encoder, one mask is the decoder's.

    Parameters
    ----------
    model, num_classes, ignore_index
        See `LayerProbe`.
    """

    def __init__(self, model: nn.Module, num_classes: int, ignore_index: int) -> None:
        self._num_classes, self._ignore_index = num_classes, ignore_index
        self._stacks = _find_stacks(model)
        sides = {stack.side for stack in self._stacks.values()}
        self._model = innermost_model(model)
        self._declared = _is_encoder_decoder(self._model) and len(sides) == 2
        self._only_decodes = sides == {_DECODER}
        self._given: Mask | None = None
        self._plain: BatchLabels | None = None  # labels without a mask, while there is a batch
        self._forget()

    def attach(self) -> Iterator[Any]:
        """Put on the stacks hooks that note which of them runs; yield their handles."""
        if self._declared:
            yield self._model.register_forward_pre_hook(self._calling, with_kwargs=True)
        for module, stack in self._stacks.items():
            yield module.register_forward_pre_hook(self._entering(stack), with_kwargs=True)
            yield module.register_forward_hook(self._leaving(stack))

    # ---------------------------------------------------------------- a batch and its forwards

    @property
    def has_batch(self) -> bool:
        """Whether there are labels."""
        return self._plain is not None

    @property
    def has_mask(self) -> bool:
        """Whether the tokens of the input have a mask."""
        return self._labels[self._own].has_mask

    @property
    def num_samples(self) -> int:
        """N."""
        return self._labels[self._own].num_samples

    def start_batch(self, labels: Tensor, mask: Mask | None) -> None:
        """Take the labels of a batch, and its mask or its two masks where they are given."""
        if isinstance(mask, tuple) and len(mask) != 2:
            raise ValueError(
                f"mask is a tuple of {len(mask)}, expected a pair: the encoder's, the decoder's"
            )
        self._given = mask
        self._plain = BatchLabels(labels, None, self._num_classes, self._ignore_index)
        try:
            self.start_forward({})
        except BaseException:
            self.end_batch()
            raise

    def end_batch(self) -> None:
        """Forget them."""
        self._plain = self._given = None
        self._forget()

    def _forget(self) -> None:
        self._labels: dict[Side, BatchLabels] = {}  # lacks a side whose mask is not known
        self._two = self._declared or isinstance(self._given, tuple)
        self._own: Side = _ENCODER  # that of the input
        self._is_decoder = False  # the model itself
        self._repeats = False  # the decoder reads the encoder's tokens, as none are given to it
        self._running: list[_Stack] = []
        self._ended: list[Side] = []  # of the stacks that have run, the last one last
        self._lengths: dict[Side, int] = {}
        self._sides: list[tuple[weakref.ref[Tensor], Side]] = []  # of tensors that are passed on

    def start_forward(self, inputs: Mapping[str, Any]) -> None:
        """Take what the named inputs of the model say of its sequences."""
        self._forget()
        names = _MASKS
        if isinstance(inputs.get("encoder_hidden_states"), Tensor):
            names, self._own, self._is_decoder, self._two = (
                _MASKS_OF_A_DECODER,
                _DECODER,
                True,
                True,
            )
        elif self._only_decodes and not any(name.startswith("decoder_") for name in inputs):
            names, self._own = _MASKS_OF_A_DECODER, _DECODER
        for name, value in inputs.items():
            if value is not None and name.startswith("decoder_"):
                self._two = True
            if name.endswith(("hidden_states", "_outputs", "_embeds")):
                self._remember(value, self._side_of_argument(name))
            if name == "encoder_outputs" and value is not None:
                self._ended = [_ENCODER]  # the encoder has run before
        said = {s: inputs[n] for s, n in names.items() if isinstance(inputs.get(n), Tensor)}
        given: dict[Side, Tensor | None] = {}
        if isinstance(self._given, tuple):
            given = dict(zip(_SIDES, self._given, strict=True))
        elif self._given is not None and self._given is not said.get(self._own):
            given = {self._own: self._given}
            if self._declared:
                given |= {side: None for side in _SIDES if side not in said and side != self._own}
        elif self._two or not said:
            given = {side: None for side in _SIDES if side not in said}
        assert self._plain is not None
        for side in _SIDES:
            if side in given:
                mask = given[side]
                self._labels[side] = self._plain if mask is None else self._plain.with_mask(mask)
            elif side in said:
                try:
                    # Of any dtype: models take a two-dimensional one as nonzero where a token is.
                    self._labels[side] = self._plain.with_mask(said[side] != 0)
                except ValueError as error:
                    raise ValueError(
                        f"the inputs' {names[side]} does not fit: {error}; pass `mask`"
                    ) from error
            prefix = "" if side == self._own else f"{side}_"
            others = ("input_ids", "inputs_embeds", "hidden_states")
            told = (
                given.get(side),
                said.get(side),
                *(inputs.get(f"{prefix}{name}") for name in others),
            )
            length = next((t.shape[1] for t in told if isinstance(t, Tensor) and t.ndim > 1), None)
            if length is not None:
                self._lengths[side] = length

    def _side_of_argument(self, name: str) -> Side:
        """The sequence that a named input has the tokens of: its own where the name says none."""
        return next((side for side in _SIDES if name.startswith(f"{side}_")), self._own)

    # ---------------------------------------------------------------- which sequence it is

    def labels_of_input(self, given: Any, features: Tensor, reduction: Reduction) -> BatchLabels:
        """Labels of layer 0: the input as it was given, or an embedding of it that has just run."""
        side = self._side_of(given) or self._own
        if uses_mask(features, reduction) and self._two and self._only_decodes:
            # Called by position, such a model may be given first what its decoder attends to.
            tokens = features.shape[1]
            fitting = [s for s in _SIDES if self._lengths.get(s, tokens) == tokens]
            side = fitting[0] if len(fitting) == 1 else side
        return self._labels_of(side, features, reduction)

    def labels_of_layer(
        self, module: nn.Module, read: Iterable[Any], features: Tensor, reduction: Reduction
    ) -> BatchLabels:
        """Labels of a layer that has just run on some arguments.

        Raises
        ------
        ValueError
            Where a mask is needed, and which one it is cannot be told.
        """
        # Of a stack itself, the first that it is given may be what the other one gave.
        values = () if module in self._stacks else read
        first = next((value for value in values if isinstance(value, Tensor)), None)
        return self._labels_of(self._side_of(first), features, reduction)

    def _labels_of(self, side: Side | None, features: Tensor, reduction: Reduction) -> BatchLabels:
        masked = uses_mask(features, reduction)
        if (
            self._repeats
            and side == _DECODER
            # BART, for one, shifts the encoder's tokens, which keeps their number.
            and (not masked or features.shape[1] == self._lengths.get(_ENCODER))
        ):
            side = _ENCODER
        if not masked:
            # Which samples have no token at all is all that a mask says here.
            return self._labels.get(side or self._own, self._labels[self._own])
        tokens = features.shape[1]
        if side is None:
            known = list(self._labels.values())
            if len(known) == len(_SIDES) and not any(labels.has_mask for labels in known):
                return known[0]
            possible = [s for s in _SIDES if self._lengths.get(s, tokens) == tokens]
            if len(possible) != 1:
                pair = "" if self._two else "a pair of masks, as mask=(None, decoder's); or "
                raise ValueError(
                    f"it cannot be told whether the {tokens} tokens of the output, which a mask is "
                    f"needed for, are the encoder's or the decoder's; expected {pair}a layer "
                    "inside one of the two, or a function for this layer in `reduce`"
                )
            side = possible[0]
        if side not in self._labels:
            raise ValueError(
                f"mask is that of one sequence, expected a pair: the layer has the {side}'s "
                "tokens, so pass mask=(encoder's, decoder's), either of which may be None"
            )
        return self._labels[side]

    def _side_of(self, read: Any) -> Side | None:
        """The sequence of a layer that reads this tensor while these stacks run; None: unknown."""
        running = self._running[-1] if self._running else None
        if not self._two:
            reads_both = running is not None and running.is_torch_decoder
            return None if reads_both and not self._only_decodes else self._own
        for reference, side in self._sides:
            if read is not None and reference() is read:
                return side
        if self._is_decoder:
            return self._own
        if running is not None:
            return running.side
        # After both: a head, which may read a scaled copy of what the last of them gave.
        return self._ended[-1] if len(set(self._ended)) == len(_SIDES) else None

    def _remember(self, value: Any, side: Side) -> None:
        """Note that the sequences (N, T, C) in a value have the tokens of this side."""
        for tensor in tensors_in(value):
            if tensor.ndim == 3:
                self._sides.append((weakref.ref(tensor), side))

    def _calling(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before an encoder-decoder model runs: whether anything is given to its decoder."""
        if not self.has_batch or recomputes() or isinstance(self._given, tuple):
            return
        by_position = inspect.signature(module.forward).bind_partial(*args).arguments
        inputs = {n: value for n, value in {**by_position, **kwargs}.items() if value is not None}
        # Labels that are tokens, not classes: the model makes the decoder's input of them.
        labels = inputs.get("labels")
        of_tokens = (
            isinstance(labels, Tensor) and labels.ndim > 1 and not labels.is_floating_point()
        )
        self._repeats = not of_tokens and not any(n.startswith("decoder_") for n in inputs)
        if "decoder_attention_mask" in by_position and self.has_mask:
            # Only the names of inputs are read: the decoder has a mask that is not known.
            self._labels.pop(_DECODER, None)

    def _entering(self, stack: _Stack) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.has_batch or recomputes():
                return
            self._running.append(stack)
            if stack.side == _DECODER:
                # Not always what the encoder gave: a projection may have come between.
                memory = kwargs.get("encoder_hidden_states", kwargs.get("memory"))
                if memory is None and stack.is_torch_decoder:
                    memory = args[1:2]
                self._remember(memory, _ENCODER)

        return enter

    def _leaving(self, stack: _Stack) -> Any:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if not self.has_batch or recomputes():
                return
            if self._running and self._running[-1] is stack:
                self._running.pop()
            self._ended.append(stack.side)
            self._remember(output, stack.side)

        return leave


def recomputes() -> bool:
    """Whether a backward pass runs: activation checkpointing then calls modules a second time."""
    return bool(torch._C._current_graph_task_id() != -1)


def _is_encoder_decoder(model: nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "is_encoder_decoder", False) is True


def _find_stacks(model: nn.Module) -> dict[nn.Module, _Stack]:
    """The outermost encoders and decoders of a model: by its own word, by name, or by type."""
    inner, stacks = innermost_model(model), dict[nn.Module, _Stack]()
    if _is_encoder_decoder(inner) and hasattr(inner, "get_encoder"):
        pair = inner.get_encoder(), inner.get_decoder()  # type: ignore[operator]
        if all(isinstance(each, nn.Module) and each is not inner for each in pair):
            return {
                module: _Stack(side, isinstance(module, _TORCH_DECODERS))
                for module, side in zip(pair, _SIDES, strict=True)
            }
    taken: list[str] = []
    for name, module in named_layers(model).items():
        last, is_decoder = name.rpartition(".")[2], isinstance(module, _TORCH_DECODERS)
        if name.startswith(tuple(f"{outer}." for outer in taken)):
            continue
        if last == _DECODER or (is_decoder and last != _ENCODER):
            stacks[module] = _Stack(_DECODER, is_decoder)
        elif last == _ENCODER or isinstance(module, _TORCH_ENCODERS):
            stacks[module] = _Stack(_ENCODER, is_decoder)
        else:
            continue
        taken.append(name)
    return stacks
