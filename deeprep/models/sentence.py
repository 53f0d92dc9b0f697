"""A sentence encoder: words, their mean, and a stack of fully connected layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from deeprep.models.stack import LayerStack

__all__ = ["SentenceEncoder", "WordTokenizer"]

_WORD = re.compile(r"\w+")


class WordTokenizer:
    """Sentences as ids of their lower-case words, called as Hugging Face's tokenizers are.

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

    def __call__(
        self,
        text: list[str],
        *,
        padding: bool = True,
        truncation: bool = True,
        max_length: int = 512,
        return_tensors: str = "pt",
    ) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, (N, T) int64, T <= max_length words.

        The arguments are those of Hugging Face's tokenizers, but only their values here will do.
        """
        if not padding or not truncation or return_tensors != "pt":
            given = f"{padding}, {truncation}, {return_tensors!r}"
            raise ValueError(
                f"padding, truncation, return_tensors are {given}, expected True, True, 'pt'"
            )
        rows = [[self.ids.get(word, 1) for word in _words(sentence)] or [1] for sentence in text]
        ids = nn.utils.rnn.pad_sequence(
            [torch.tensor(row[:max_length]) for row in rows], batch_first=True
        )
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def _words(sentence: str) -> list[str]:
    return _WORD.findall(sentence.lower())


class SentenceEncoder(nn.Module):
    """A bag of embedded words through a stack: embedding, mean over the words, layers, classifier.

    Parameters
    ----------
    vocab_size
        Number of ids; 0 pads.
    num_classes
        K, number of outputs.
    depth, width
        L and the width of the `LayerStack` behind the mean, of Linear + BatchNorm + ReLU; the
        embeddings have that width too.

    Attributes
    ----------
    probe_layers
        Names of the hidden layers, input side first.

    >>> model = SentenceEncoder(vocab_size=10, num_classes=3, depth=4, width=16)
    >>> model.probe_layers
    ['layers.layer1', 'layers.layer2', 'layers.layer3']
    >>> model(torch.tensor([[4, 2, 0], [3, 9, 1]])).shape
    torch.Size([2, 3])
    """

    def __init__(self, vocab_size: int, num_classes: int, *, depth: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=0)
        self.layers = LayerStack((width,), num_classes, depth=depth, width=width)
        self.probe_layers = [f"layers.{name}" for name in self.layers.probe_layers]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(N, T) ids, and where they are words if not wherever the id is not 0 -> (N, K)."""
        mask = input_ids != 0 if attention_mask is None else attention_mask != 0
        words = self.embedding(input_ids)
        total = torch.einsum("ntd,nt->nd", words, mask.to(words.dtype))
        # A sentence of nothing but padding has the mean 0.
        mean = total / mask.sum(1, keepdim=True).clamp_(min=1)
        outputs: Tensor = self.layers(mean)
        return outputs
