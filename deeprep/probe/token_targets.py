"""The token of each position of a batch: the one it holds, or the one that follows it.

A causal model reads tokens 0 .. t and predicts token t + 1, so the class of position t is that of
token t + 1. Collators hand out `labels` that are a copy of `input_ids`, which the model shifts when
it computes its loss: taken as they are, they would label each position with the token it has read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deeprep.base import validate
from deeprep.probe.evaluation import split_batch

Which = Literal["next-token", "current-token"]

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
# What loaders call the number of the sequence that a token of a packed row is part of.
_SEQUENCE_NUMBERS = ("seq_idx", "segment_ids", "sequence_ids")


class TokenTargets:
    """Makes the labels of a batch's positions from its tokens.

    Parameters
    ----------
    which
        "next-token" or "current-token".
    ignore_index
        Label of positions to skip.
    table
        (V,) class of each token, negative where it has none; None: a token is its own class.
    is_whole
        Whether tokens beyond the table are an error; they have no class otherwise.

    Attributes
    ----------
    were_shifted
        Whether a loader's labels were its `input_ids`, and have been shifted here.
    """

    def __init__(
        self,
        which: Which,
        ignore_index: int,
        table: Tensor | None = None,
        *,
        is_whole: bool = False,
    ) -> None:
        self.which = which
        self.were_shifted = False
        self._come_shifted = False  # the loader's labels
        self._ignore_index = ignore_index
        self._is_whole = is_whole
        self._table = table
        if table is not None:
            # At its end, the class of all tokens beyond it.
            self._table = nn.functional.pad(table, (0, 1), value=-1)
            self._table[self._table < 0] = ignore_index

    def classes(self, inputs: Any, given: Any, mask: Any) -> Tensor:
        """The class of each position, (N, T) int64, `ignore_index` where it has none."""
        tokens = self.tokens(inputs, given, mask)
        if self._table is None:
            return tokens
        beyond = len(self._table) - 1
        kept = tokens != self._ignore_index
        if self._is_whole and bool((kept & (tokens >= beyond)).any()):
            raise ValueError(
                f"input_ids holds {int(tokens.max())}, expected tokens below {beyond}, the length "
                "of classes"
            )
        # Negative ids stand for what is no token, such as the patches of an image.
        known = kept & (tokens >= 0)
        table = self._table.to(tokens.device)
        return table[tokens.clamp(0, beyond)].masked_fill(~known, self._ignore_index)

    def tokens(self, inputs: Any, given: Any, mask: Any) -> Tensor:
        """The token that labels each position, (N, T) int64, `ignore_index` where there is none.

        Parameters
        ----------
        inputs
            Token ids (N, T), or a tuple that begins with them, or a mapping that holds `input_ids`.
        given
            The loader's labels, (N, T): the `input_ids`, or these shifted by one; or None.
        mask
            (N, T), or None for the `attention_mask` of a mapping.

        Raises
        ------
        ValueError, TypeError
            For inputs that are no tokens, and labels that are neither.
        """
        ids = input_ids_of(inputs)
        if ids is None:
            raise TypeError(
                f"inputs holds no input_ids, expected integer ids (N, T) of tokens for {self.which}"
            )
        if ids.ndim != 2:
            raise ValueError(f"input_ids has shape {tuple(ids.shape)}, expected (N, T)")
        named = inputs if isinstance(inputs, Mapping) else {}
        if mask is None:
            mask = named.get("attention_mask")
            _check_no_mask_by_position(inputs, ids)
        numbers = _sequence_numbers(mask, ids)
        ids, ignored = ids.long(), self._ignore_index
        # Where a mask tells, an ignored one is a token too: the last of a prompt has a next token.
        is_token = ids != ignored if numbers is None else numbers != 0
        continues = is_token[:, 1:] & is_token[:, :-1] & _same_sequence(named, numbers, ids)
        tokens, is_shifted = ids, False
        if given is not None:
            tokens, is_shifted = self._understood(given, ids, is_token, continues)
        if is_shifted or self.which == "current-token":
            if is_shifted:  # the last position has a label too
                is_token = torch.cat([continues, is_token[:, -1:]], dim=1)
            return tokens.masked_fill(~is_token, ignored)
        following = torch.full_like(ids, ignored)
        following[:, :-1] = tokens[:, 1:].masked_fill(~continues, ignored)
        return following

    def _understood(
        self, given: Any, ids: Tensor, is_token: Tensor, continues: Tensor
    ) -> tuple[Tensor, bool]:
        """The loader's labels, and whether they are shifted already."""
        labels = validate.as_tensor("labels", given).to(ids.device)
        if labels.shape != ids.shape or labels.dtype not in INTEGERS:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}, expected "
                f"integers {tuple(ids.shape)}, the input_ids or these shifted by one; "
                f"{self.which!r} needs no labels beside the input_ids"
            )
        labels = labels.long()
        any_value = labels == self._ignore_index
        are_ids = bool((any_value | ~is_token | (labels == ids)).all())
        follows = any_value[:, :-1] | ~continues | (labels[:, :-1] == ids[:, 1:])
        are_shifted = self.which == "next-token" and bool(follows.all())
        # Of a batch that may be either, such as one token over and over, as in batches before it.
        if are_shifted and (not are_ids or self._come_shifted):
            self._come_shifted |= not are_ids
            return labels, True
        if are_ids:
            self.were_shifted |= self.which == "next-token" and not bool(any_value.all())
            return labels, False
        wanted = "these" if self.which == "current-token" else "these, or these shifted by one"
        raise ValueError(
            f"labels are other than the input_ids, expected {wanted}, or "
            f"{self._ignore_index} at positions to skip, for {self.which!r}"
        )


def split_tokens(batch: Any) -> tuple[Any, Any]:
    """(inputs, labels) of what a loader gave, labels being None where there are none."""
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return batch[0], None
    if isinstance(batch, Mapping) and "labels" not in batch and "label" not in batch:
        return dict(batch), None
    return split_batch(batch)


def input_ids_of(inputs: Any) -> Tensor | None:
    """The token ids in a model's inputs: an integer tensor, the first of a tuple, `input_ids`."""
    if isinstance(inputs, tuple | list):
        inputs = inputs[0] if inputs else None
    elif isinstance(inputs, Mapping):
        inputs = inputs.get("input_ids")
    return inputs if isinstance(inputs, Tensor) and inputs.dtype in INTEGERS else None


def are_input_ids(inputs: Any, labels: Any, mask: Any, ignore_index: int) -> bool | None:
    """Whether labels of positions are just the `input_ids`; None: not to be told, all are skipped.

    Those under a mask, by default the `attention_mask` of a mapping, may be anything.

    Raises
    ------
    ValueError
        Where they are: these labels would be of the tokens that the positions themselves hold.
    """
    ids = input_ids_of(inputs)
    if ids is None or getattr(labels, "shape", None) != ids.shape or ids.ndim != 2:
        return False
    labels = validate.as_tensor("labels", labels)
    if labels.dtype not in INTEGERS:
        return False
    skipped = labels == ignore_index
    if mask is None and isinstance(inputs, Mapping):
        mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == labels.shape:
        skipped |= mask.to(labels.device) == 0
    if bool(skipped.all()):
        return None
    if bool((skipped | (labels == ids.to(labels.device))).all()):
        raise ValueError(
            "labels are the input_ids, expected labels='next-token', which shifts them: as they "
            "are, each position has the token that it holds; labels='current-token' measures that"
        )
    return False


def _check_no_mask_by_position(inputs: Any, ids: Tensor) -> None:
    """Raise where a tuple holds a mask beside the token ids, which would go unnoticed."""
    for other in inputs[1:] if isinstance(inputs, tuple | list) else ():
        if not isinstance(other, Tensor) or other.shape != ids.shape:
            continue
        is_zero = other == 0
        if bool((is_zero | (other == 1)).all()) and 0 < int(is_zero.sum()) < is_zero.numel():
            raise ValueError(
                "inputs is a tuple that seems to hold a mask, expected it by name, as "
                "{'input_ids': ..., 'attention_mask': ...}"
            )


def _sequence_numbers(mask: Any, ids: Tensor) -> Tensor | None:
    """(N, T): 0 where no token is, and the same number for all tokens of one sequence."""
    if mask is None:
        return None
    if isinstance(mask, tuple):
        raise ValueError("mask is a pair, expected that of one sequence, (N, T)")
    mask = validate.as_tensor("mask", mask).to(ids.device)
    if mask.shape != ids.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, expected {tuple(ids.shape)}, an entry for each "
            "token of input_ids"
        )
    numbers: Tensor = mask != 0 if mask.is_floating_point() else mask
    return numbers.long()


def _same_sequence(named: Mapping[str, Any], numbers: Tensor | None, ids: Tensor) -> Tensor:
    """Whether tokens t and t + 1 are of one sequence, (N, T - 1)."""
    same = torch.ones_like(ids[:, 1:], dtype=torch.bool)
    if numbers is not None:
        same &= numbers[:, 1:] == numbers[:, :-1]
    positions = named.get("position_ids")
    if isinstance(positions, Tensor) and positions.ndim == 2:
        positions = positions.to(ids.device).expand_as(ids)
        same &= positions[:, 1:] > positions[:, :-1]
    for name in _SEQUENCE_NUMBERS:
        if isinstance(named.get(name), Tensor):
            sequence = named[name].to(ids.device).expand_as(ids)
            same &= sequence[:, 1:] == sequence[:, :-1]
    return same
