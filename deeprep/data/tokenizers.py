"""Tokenizers that need nothing but the sentences, with the interface of Hugging Face's."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["ByteTokenizer", "Tokenizer", "WordTokenizer"]

_WORD = re.compile(r"\w+")


class Tokenizer(Protocol):
    """What `TextBatches` asks of a tokenizer: to be called like one of Hugging Face's."""

    def __call__(
        self,
        text: list[str],
        *,
        padding: bool,
        truncation: bool,
        max_length: int,
        return_tensors: str,
    ) -> Mapping[str, Any]:
        """Return `input_ids` and `attention_mask`, both (N, T), for N sentences."""
        ...


class _PaddingTokenizer(ABC):
    """Sentences as the ids that `_ids` gives them, all above 0, which pads on the right."""

    def __call__(
        self,
        text: list[str],
        *,
        padding: bool = True,
        truncation: bool = True,
        max_length: int = 512,
        return_tensors: str = "pt",
    ) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, (N, T) int64, T <= max_length.

        The arguments are those of Hugging Face's tokenizers; only the defaults are supported.
        """
        if not padding or not truncation or return_tensors != "pt":
            given = f"{padding}, {truncation}, {return_tensors!r}"
            raise ValueError(
                f"padding, truncation, return_tensors are {given}, expected True, True, 'pt'"
            )
        rows = [self._ids(sentence, max_length) for sentence in text]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    @abstractmethod
    def _ids(self, sentence: str, max_length: int) -> Tensor:
        """Return the first ids of a sentence, (T,) int64."""


class ByteTokenizer(_PaddingTokenizer):
    """Sentences as the bytes of their UTF-8: byte b is id b + 1, and id 0 pads on the right.

    Needs no vocabulary, so it serves models that bring no tokenizer of their own; an embedding for
    it has `vocab_size` rows.

    >>> ids = ByteTokenizer()(["ab", "c"])
    >>> ids["input_ids"].tolist(), ids["attention_mask"].tolist()
    ([[98, 99], [100, 0]], [[1, 1], [1, 0]])
    """

    vocab_size = 257

    def _ids(self, sentence: str, max_length: int) -> Tensor:
        # A copy, since torch warns about read-only memory.
        row = np.frombuffer(sentence.encode()[:max_length], np.uint8).astype(np.int64)
        return torch.from_numpy(row + 1)


class WordTokenizer(_PaddingTokenizer):
    """Sentences as ids of their lower-case words, with the interface of Hugging Face's.

    Id 0 pads on the right, 1 stands for every word outside of the vocabulary, and the words follow,
    the most frequent first. A sentence without a word is one unknown word.

    Parameters
    ----------
    sentences
        The vocabulary is made of their words.
    least_count
        Words seen less often are left out of it.

    Attributes
    ----------
    ids
        Word -> id.
    vocab_size
        Rows of an embedding for these ids.

    >>> tokenizer = WordTokenizer(["A game.", "a GAME, or two"], least_count=2)
    >>> tokenizer.ids, tokenizer.vocab_size
    ({'a': 2, 'game': 3}, 4)
    >>> tokens = tokenizer(["Two games", "a game a day"])
    >>> tokens["input_ids"].tolist()
    [[1, 1, 0, 0], [2, 3, 2, 1]]
    >>> tokens["attention_mask"].tolist()
    [[1, 1, 0, 0], [1, 1, 1, 1]]
    """

    def __init__(self, sentences: Iterable[str], least_count: int = 1) -> None:
        counts = Counter(word for sentence in sentences for word in _words(sentence))
        # Ties in alphabetical order, so that the ids do not depend on the order of the sentences.
        frequent = sorted(counts, key=lambda word: (-counts[word], word))
        kept = [word for word in frequent if counts[word] >= least_count]
        self.ids = {word: index for index, word in enumerate(kept, start=2)}

    @property
    def vocab_size(self) -> int:
        """Number of ids, those of the padding and of unknown words included."""
        return len(self.ids) + 2

    def _ids(self, sentence: str, max_length: int) -> Tensor:
        ids = [self.ids.get(word, 1) for word in _words(sentence)] or [1]
        return torch.tensor(ids[:max_length])


def _words(sentence: str) -> list[str]:
    return _WORD.findall(sentence.lower())
