"""Labelled sentences: read from a text file, and cut into batches of token ids.

A file holds one sample a line, its label and its sentence: .tsv and .csv (columns) or .jsonl
(objects). In a table the first line may name the columns, in any order and among others: `label`,
and `text` or `sentence`; without such a line the two columns are label and sentence. Objects have
these names as keys.

In a .tsv file a quotation mark is a character like any other. In a .csv file it is what Python's
csv module and spreadsheets make of it: a sentence with commas, line breaks or quotation marks
is itself quoted, and its own quotation marks are doubled.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeprep.base import strict_json
from deeprep.base.validate import check_positive
from deeprep.data.tensors import RawData, select
from deeprep.data.tokenizers import Tokenizer

__all__ = [
    "TEXT_SUFFIXES",
    "TextBatches",
    "TextData",
    "load_text",
    "read_sentences",
    "read_utf8",
]

TEXT_SUFFIXES = (".tsv", ".csv", ".jsonl")
_LABEL = "label"
_SENTENCE = ("text", "sentence")


@dataclass(frozen=True, eq=False)
class TextData:
    """Labelled sentences in memory.

    Attributes
    ----------
    sentences
        N sentences.
    labels
        (N,) int64 in [0, K).
    class_names
        The K names.
    name
        The data set's name.
    """

    sentences: Sequence[str]
    labels: Tensor
    class_names: tuple[str, ...]
    name: str

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)


def load_text(
    path: str | Path,
    *,
    classes: Sequence[int] | None = None,
    samples_per_class: int | None = None,
    seed: int = 0,
) -> TextData:
    r"""Read a file of labelled sentences into memory.

    Labels that are all whole numbers become classes in numerical order, any others in alphabetical
    order; `class_names` keeps what they were. Nothing else is changed: sentences are not stripped.

    Parameters
    ----------
    path
        A .tsv, .csv or .jsonl file in UTF-8; see the top of this module.
    classes, samples_per_class, seed
        Which samples to keep, as in `deeprep.data.load_data`.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        A suffix other than these, no samples, bytes that are not UTF-8, or a line that is empty,
        malformed, or lacks its label or its sentence, naming the line; classes or samples that
        the file does not have.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "reviews.tsv"
    ...     _ = file.write_text("good\tHow nice!\nbad\tHow dull.\n")
    ...     text = load_text(file)
    >>> text.sentences, text.labels.tolist(), text.class_names
    (['How nice!', 'How dull.'], [1, 0], ('bad', 'good'))
    """
    path = Path(path)
    if path.suffix.lower() not in TEXT_SUFFIXES:
        raise ValueError(f"data is {path}, expected one of {', '.join(TEXT_SUFFIXES)}")
    labels, sentences = [], []
    for line, label, sentence in read_sentences(path):
        if not label.strip() or not sentence.strip():
            missing = "label" if not label.strip() else "sentence"
            raise ValueError(f"data {path}, line {line}: the {missing} is empty")
        labels.append(label.strip())
        sentences.append(sentence)
    if not labels:
        raise ValueError(f"data {path} holds no samples, expected a label and a sentence a line")
    names = _class_names(set(labels))
    class_of = {name: index for index, name in enumerate(names)}
    raw = RawData(torch.tensor([class_of[name] for name in labels]), names, lambda rows: rows)
    chosen = select(raw, path.name, classes, samples_per_class, seed)
    rows = chosen.inputs.tolist()
    return TextData([sentences[i] for i in rows], chosen.labels, chosen.class_names, path.name)


class TextBatches:
    """Sentences in batches of token ids, in their order or, if shuffled, in one fixed by a seed.

    Iterating gives pairs ({"input_ids": (N, T), "attention_mask": (N, T)}, labels (N,)), each batch
    padded to its own longest sentence. Sentences are tokenized anew on every loop.

    Parameters
    ----------
    text
        The samples.
    tokenizer
        A tokenizer of Hugging Face, or a callable like one, such as `ByteTokenizer()`.
    batch_size
        Sentences of a batch.
    max_length
        Tokens beyond which a sentence is cut off.
    shuffle_seed
        Order of the samples, the same on every loop; None for theirs.

    Raises
    ------
    ValueError, TypeError
        A batch size or length below 1.

    >>> from deeprep.data import ByteTokenizer
    >>> text = TextData(["yes", "no", "nope"], torch.tensor([1, 0, 0]), ("no", "yes"), "example")
    >>> batches = TextBatches(text, ByteTokenizer(), batch_size=2, max_length=8)
    >>> [(tuple(inputs["input_ids"].shape), labels.tolist()) for inputs, labels in batches]
    [((2, 3), [1, 0]), ((1, 4), [0])]
    """

    def __init__(
        self,
        text: TextData,
        tokenizer: Tokenizer,
        batch_size: int,
        max_length: int = 512,
        shuffle_seed: int | None = None,
    ) -> None:
        self.text = text
        self.tokenizer = tokenizer
        self.batch_size = check_positive("batch_size", batch_size)
        self.max_length = check_positive("max_length", max_length)
        self.shuffle_seed = shuffle_seed

    def shuffled(self, seed: int) -> TextBatches:
        """Return the same samples in batches of the same size, in an order fixed by `seed`."""
        return TextBatches(self.text, self.tokenizer, self.batch_size, self.max_length, seed)

    def __len__(self) -> int:
        return -(-len(self.text.sentences) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        order = np.arange(len(self.text.sentences))
        if self.shuffle_seed is not None:
            np.random.default_rng(self.shuffle_seed).shuffle(order)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            tokens = self.tokenizer(
                [self.text.sentences[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
            # Segments (token_type_ids) are left out: of single sentences they say nothing, and not
            # every model that shares a tokenizer takes them.
            inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
            yield inputs, self.text.labels[torch.from_numpy(rows)]


def read_sentences(path: Path, *, labelled: bool = True) -> Iterator[tuple[int, str, str]]:
    """Line, label and sentence of each sample of a file; for the rest, see `load_text`.

    Parameters
    ----------
    path
        A .tsv, .csv or .jsonl file in UTF-8.
    labelled
        Whether objects of a .jsonl file must have a label; that of one without is "".
    """
    content = read_utf8(path)
    if path.suffix.lower() == ".jsonl":
        return _read_objects(path, content, labelled=labelled)
    return _read_table(path, content)


def read_utf8(path: Path) -> str:
    """Return the text of a file.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Bytes that are not UTF-8, naming the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data {path} is not a file")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")  # without the byte order mark of some editors
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"data {path}, line {line}: not UTF-8 ({error.reason})") from error


def _is_quoted(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'


def _read_table(path: Path, content: str) -> Iterator[tuple[int, str, str]]:
    """Line, label and sentence of the rows of a .csv or .tsv file."""
    lines = io.StringIO(content, newline="")
    quoted = path.suffix.lower() == ".csv"
    if quoted:
        # Strict: an open quote would else swallow all the lines that follow it without a word.
        reader = csv.reader(lines, strict=True)
    else:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = ["label", "sentence"]
    line = 1
    try:
        for row in reader:
            names = [name.strip().lower() for name in row] if line == 1 else []
            if not quoted and len(row) > 1 and all(map(_is_quoted, row)):
                raise ValueError(
                    f"data {path}, line {line}: every field is quoted, expected none to be in a "
                    ".tsv file, where quotation marks are part of the text; remove them, or write "
                    "a .csv file"
                )
            if _LABEL in names and any(name in names for name in _SENTENCE):
                columns = names
            elif len(row) != len(columns):
                wanted = f"{len(columns)} ({', '.join(columns)})"
                raise ValueError(f"data {path}, line {line}: {len(row)} columns, expected {wanted}")
            else:
                sample = dict(zip(columns, row, strict=True))
                yield line, sample[_LABEL], _sentence(sample)
            line = reader.line_num + 1
    except csv.Error as error:
        advice = (
            "; in a .csv file a sentence with quotation marks is itself quoted, and its own marks "
            'are doubled, "She said ""no"""; in a .tsv file they mean nothing special'
        )
        raise ValueError(f"data {path}, line {line}: {error}{advice if quoted else ''}") from error


def _sentence(sample: Mapping[str, Any]) -> Any:
    return next((sample[name] for name in _SENTENCE if name in sample), None)


def _read_objects(path: Path, content: str, *, labelled: bool) -> Iterator[tuple[int, str, str]]:
    """Line, label and sentence of the objects of a .jsonl file."""
    # Not splitlines: a JSON string may hold other line separators of Unicode.
    lines = content.removesuffix("\n").split("\n") if content else []
    for line, text in enumerate(lines, start=1):
        sample = strict_json.parse(text, f"data {path}, line {line}")
        if not isinstance(sample, dict):
            raise ValueError(f"data {path}, line {line}: {text[:40]}, expected an object")
        label, sentence = sample.get(_LABEL, None if labelled else ""), _sentence(sample)
        if not isinstance(label, str | int) or not isinstance(sentence, str):
            keys = ", ".join(map(repr, sample)) or "none"
            wanted = "'label', text or a whole number, and " if labelled else ""
            raise ValueError(
                f"data {path}, line {line}: expected {wanted}'text' or 'sentence', text; the keys "
                f"are {keys}"
            )
        yield line, str(label), sentence


def _class_names(labels: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(labels))
