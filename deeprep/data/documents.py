"""Running text for language models: read from a file, and cut into blocks of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deeprep.base.ranks import share_of
from deeprep.base.validate import check_positive
from deeprep.data.text import TEXT_SUFFIXES, read_sentences, read_utf8
from deeprep.data.tokenizers import Tokenizer

__all__ = ["DOCUMENT_SUFFIXES", "Documents", "TokenBlocks", "load_documents"]

DOCUMENT_SUFFIXES = (".txt", *TEXT_SUFFIXES)
_WHOLE = 10**9  # tokens of a document that a tokenizer may not cut off


@dataclass(frozen=True, eq=False)
class Documents:
    """Texts in memory, each of which stands for itself.

    Attributes
    ----------
    texts
        The documents.
    name
        The data set's name.
    """

    texts: Sequence[str]
    name: str


def load_documents(path: str | Path) -> Documents:
    r"""Read the documents of a file: a .txt file is one, of a table or .jsonl file each sample is.

    Parameters
    ----------
    path
        A .txt file in UTF-8, or one that `load_text` takes, whose labels are not looked at; objects
        of a .jsonl file need none.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        A suffix other than these, no text, bytes that are not UTF-8, or a malformed line.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "tales.jsonl"
    ...     _ = file.write_text('{"text": "Once upon a time"}\n{"text": "there was"}\n')
    ...     load_documents(file).texts
    ['Once upon a time', 'there was']
    """
    path = Path(path)
    if path.suffix.lower() not in DOCUMENT_SUFFIXES:
        raise ValueError(f"data is {path}, expected one of {', '.join(DOCUMENT_SUFFIXES)}")
    if path.suffix.lower() == ".txt":
        texts = [read_utf8(path)]
    else:
        texts = [sentence for _, _, sentence in read_sentences(path, labelled=False)]
    if not any(text.strip() for text in texts):
        raise ValueError(f"data {path} holds no text, expected some")
    return Documents(texts, path.name)


class TokenBlocks:
    """Documents in batches of token ids, cut into blocks of so many tokens.

    Iterating gives {"input_ids": (N, T), "attention_mask": (N, T)}, T being that of the longest
    block of the batch; shorter ones, the last of a document, are padded on the right. No block
    holds tokens of two documents, and none a single token, which nothing follows.

    Parameters
    ----------
    documents
        The texts, which are tokenized here, once.
    tokenizer
        A tokenizer of Hugging Face, or a callable like one, such as `ByteTokenizer()`.
    batch_size
        Blocks of a batch.
    max_length
        Tokens of a block.

    Raises
    ------
    ValueError, TypeError
        A batch size below 1, a length below 2, or documents of single tokens.

    >>> from deeprep.data import ByteTokenizer
    >>> documents = Documents(["abcde", "fg"], "example")
    >>> blocks = TokenBlocks(documents, ByteTokenizer(), batch_size=2, max_length=3)
    >>> [batch["input_ids"].tolist() for batch in blocks]
    [[[98, 99, 100], [101, 102, 0]], [[103, 104]]]
    """

    def __init__(
        self, documents: Documents, tokenizer: Tokenizer, batch_size: int, max_length: int
    ) -> None:
        self._batch_size = check_positive("batch_size", batch_size)
        if check_positive("max_length", max_length) < 2:
            raise ValueError(f"max_length is {max_length}, expected >= 2, a token and the next")
        self.num_documents = len(documents.texts)
        self.blocks: list[Tensor] = []
        for text in documents.texts:
            tokens = tokenizer(
                [text], padding=True, truncation=True, max_length=_WHOLE, return_tensors="pt"
            )
            ids: Tensor = tokens["input_ids"][0]
            self.blocks += [block for block in ids.split(max_length) if len(block) > 1]
        if not self.blocks:
            raise ValueError(f"data {documents.name} has no token after another, expected some")

    def share(self, rank: int, size: int) -> list[dict[str, Tensor]]:
        """Return the batches of one of `size` processes: some that lie one after the other."""
        begin, end = share_of(len(self.blocks), rank, size)
        return list(self._batches(self.blocks[begin:end]))

    def __len__(self) -> int:
        return -(-len(self.blocks) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._batches(self.blocks)

    def _batches(self, blocks: list[Tensor]) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(blocks), self._batch_size):
            rows = blocks[start : start + self._batch_size]
            masks = [torch.ones_like(row) for row in rows]
            pad = torch.nn.utils.rnn.pad_sequence
            yield {
                "input_ids": pad(rows, batch_first=True),
                "attention_mask": pad(masks, batch_first=True),
            }
