"""Tokens as labels of a language model's positions: which ones, and which of them are a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deeprep.base import validate
from deeprep.base.ranks import Ranks
from deeprep.probe.token_targets import INTEGERS, TokenTargets, Which, split_tokens

WHICH = ("next-token", "current-token")


@dataclasses.dataclass(frozen=True, eq=False)
class TokenLabels:
    """Tokens as labels: which one is that of a position, and which tokens are a class.

    A position is left out where it has no such token: at the end of a sequence, under the mask,
    before padding, where the loader's label is `ignore_index`, and where its token has no class.
    Padding is what `attention_mask` says, never a token's id: a token that ends sequences and also
    pads them counts where it is read. In rows packed with several sequences, the last token of one
    has no next token: they are told apart by `ignore_index` in `labels`, by `position_ids` that
    begin again, by `seq_idx`, or by an `attention_mask` that numbers them.

    Parameters
    ----------
    which
        "next-token", or "current-token", the one that the position itself holds.
    classes
        Token -> class from 0 on: a mapping, in which tokens may be missing, or (V,) integers, in
        which negative numbers stand for no class. Default: every token of the vocabulary is one.
    most_frequent
        Instead of `classes`: only so many tokens are a class, the most frequent first. Fewer, where
        not as many occur.
    counts
        (V,) how often each token is the label, for `most_frequent`; see `token_counts`. `analyze`
        counts them itself, in one more pass over the loader, without the model.

    Raises
    ------
    ValueError, TypeError
        For classes that are none, or more than one way to choose them.

    Examples
    --------
    The tokens 5 and 9 are a class each, all others are left out:

    >>> import torch, deeprep
    >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10))
    >>> loader = [torch.tensor([[1, 5, 9, 5, 2, 9]])]
    >>> labels = deeprep.TokenLabels(classes={5: 0, 9: 1})
    >>> report = deeprep.analyze(model, loader, labels=labels)
    >>> report.num_samples, report.num_classes
    (4, 2)

    The most frequent ones, of known counts:

    >>> deeprep.TokenLabels(most_frequent=2, counts=torch.tensor([3, 0, 9])).class_tokens.tolist()
    [2, 0]
    """

    which: Which = "next-token"
    classes: Mapping[int, int] | Tensor | None = None
    most_frequent: int | None = None
    counts: Tensor | None = None

    def __post_init__(self) -> None:
        if self.which not in WHICH:
            raise ValueError(f"which is {self.which!r}, expected 'next-token' or 'current-token'")
        if self.classes is not None and self.most_frequent is not None:
            raise ValueError("most_frequent is given beside classes, expected one of the two")
        if self.counts is not None and self.most_frequent is None:
            raise ValueError("counts is given without most_frequent, which it is for")
        if self.most_frequent is not None:
            validate.check_positive("most_frequent", self.most_frequent)
        if self.counts is not None and not len(self.class_tokens):
            raise ValueError("counts are all 0, expected a token that occurs")
        if self.classes is not None and not bool((self._table() >= 0).any()):
            raise ValueError("classes holds no class, expected one from 0 on for some token")

    @property
    def num_classes(self) -> int | None:
        """K; None for a class a token, and where `most_frequent` lacks its counts."""
        if self.classes is not None:
            return int(self._table().max()) + 1
        if self.counts is not None:
            return len(self.class_tokens)
        return None

    @property
    def class_tokens(self) -> Tensor:
        """The token of each class, (K,) int64, of `most_frequent`."""
        if self.most_frequent is None or self.counts is None:
            raise ValueError("counts is None, expected those of most_frequent's tokens")
        counts = _integers("counts", self.counts, "(V,) of tokens")
        # Ties by their id, so that a class does not depend on how a sort was done.
        order = counts.argsort(descending=True, stable=True)[: self.most_frequent]
        return order[counts[order] > 0]

    @property
    def needs_counts(self) -> bool:
        """Whether `most_frequent` lacks its counts."""
        return self.most_frequent is not None and self.counts is None

    def targets(self, ignore_index: int) -> TokenTargets:
        """Return what makes labels of the tokens of a batch."""
        if self.classes is None and self.most_frequent is None:
            return TokenTargets(self.which, ignore_index)
        is_whole = self.classes is not None and not isinstance(self.classes, Mapping)
        return TokenTargets(self.which, ignore_index, self._table(), is_whole=is_whole)

    def _table(self) -> Tensor:
        """The class of each token, (V,) int64, negative where it has none."""
        if self.most_frequent is not None:
            tokens = self.class_tokens
            table = torch.full((int(tokens.max()) + 1,), -1)
            return table.index_copy_(0, tokens, torch.arange(len(tokens)))
        if not isinstance(self.classes, Mapping):
            return _integers("classes", self.classes, "(V,) classes of tokens").clamp(min=-1)
        for token, number in self.classes.items():
            if not all(_is_whole(each) and each >= 0 for each in (token, number)):
                raise ValueError(
                    f"classes holds {token!r}: {number!r}, expected whole numbers from 0 on"
                )
        table = torch.full((max(self.classes, default=0) + 1,), -1)
        for token, number in self.classes.items():
            table[token] = int(number)
        return table


def token_counts(
    loader: Iterable[Any], which: Which = "next-token", *, ignore_index: int = -100
) -> Tensor:
    """How often each token is the label of a position; no model runs.

    Parameters
    ----------
    loader
        As `analyze` takes it with these labels.
    which, ignore_index
        See `TokenLabels`.

    Returns
    -------
    (V,) int64, V being the largest token that is a label and one more.

    Raises
    ------
    ValueError, TypeError
        For a loader without tokens.

    Examples
    --------
    >>> import torch
    >>> from deeprep.probe import token_counts
    >>> token_counts([{"input_ids": torch.tensor([[2, 0, 2, 2]])}]).tolist()
    [1, 0, 2]
    """
    targets = TokenLabels(which).targets(ignore_index)
    counts = torch.zeros(0, dtype=torch.int64)
    for batch in loader:
        inputs, given = split_tokens(batch)
        tokens = targets.tokens(inputs, given, None).flatten().cpu()
        found = torch.bincount(tokens[tokens != ignore_index])
        if len(found) < len(counts):
            found, counts = counts, found
        counts = found + nn.functional.pad(counts, (0, len(found) - len(counts)))
    return counts


def all_reduced(counts: Tensor, group: Any) -> Tensor:
    """The counts of all processes of a torch.distributed group, whose lengths may differ."""
    ranks = Ranks.of(group, "the count of tokens")
    size = ranks.maximum(len(counts))
    totals = ranks.sum(nn.functional.pad(counts, (0, size - len(counts))).tolist())
    return torch.tensor(totals, dtype=torch.float64).long()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _integers(name: str, values: Any, what: str) -> Tensor:
    tensor = validate.as_tensor(name, values)
    if tensor.ndim != 1 or tensor.dtype not in INTEGERS:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, expected integers "
            f"{what}"
        )
    return tensor.detach().long().cpu()
