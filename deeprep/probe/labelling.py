"""Where the labels of a probe come from: its loader, or the tokens of a language model."""

from __future__ import annotations

from typing import Any

from torch import nn

from deeprep.base import validate
from deeprep.probe.causality import sees_later_tokens
from deeprep.probe.evaluation import split_batch
from deeprep.probe.layers import innermost_model
from deeprep.probe.reduce import Reduce
from deeprep.probe.sequences import Mask
from deeprep.probe.token_labels import WHICH, TokenLabels
from deeprep.probe.token_targets import TokenTargets, Which, are_input_ids, split_tokens

Labels = Which | TokenLabels | None


class Labelling:
    """Takes batches apart, and gives them their labels.

    Parameters
    ----------
    model, labels, num_classes, ignore_index
        See `LayerProbe`.

    Attributes
    ----------
    num_classes
        K.

    Raises
    ------
    ValueError, TypeError
        For labels of another kind, another K than that of their classes, a vocabulary of unknown
        size, and a model with an encoder and a decoder where the labels are those of tokens.
    """

    def __init__(
        self, model: nn.Module, labels: Labels, num_classes: int | None, ignore_index: int
    ) -> None:
        self._model = model
        self._ignore_index = ignore_index
        self._tokens: TokenTargets | None = None
        self._are_input_ids: bool | None = None  # the loader's labels; None: not known yet
        self._sees_later_tokens: bool | None = None
        if labels is not None:
            chosen = _token_labels(model, labels)
            num_classes = _number_of_classes(model, chosen, num_classes)
            self._tokens = chosen.targets(ignore_index)
        self.num_classes = validate.check_positive("num_classes", num_classes)  # type: ignore[arg-type]

    def reduction(self, reduce: Reduce | None) -> Reduce:
        """`reduce`, whose default is "flatten", and "tokens" where those have the labels.

        Raises
        ------
        ValueError
            For any other reduction where the labels are those of tokens.
        """
        if self._tokens is None:
            return "flatten" if reduce is None else reduce
        if reduce not in (None, "tokens"):
            raise ValueError(
                f"reduce is {reduce!r}, expected 'tokens' or None: {self._tokens.which!r} is a "
                "label for each token"
            )
        return "tokens"

    def split(self, batch: Any, name: str = "loader") -> tuple[Any, Any]:
        """(inputs, labels) of what a loader gave; with labels of tokens it need not give any."""
        return split_batch(batch, name) if self._tokens is None else split_tokens(batch)

    def targets(self, inputs: Any, labels: Any, mask: Mask | None = None) -> Any:
        """The labels of a batch: the loader's own, or classes (N, T) of its tokens.

        Raises
        ------
        ValueError, TypeError
            For inputs and labels that are no tokens; and where the loader's own labels are its
            `input_ids`.
        """
        if self._tokens is not None:
            return self._tokens.classes(inputs, labels, mask)
        self.check(inputs, labels, mask)
        return labels

    def of_ids(self, labels: Any, mask: Mask | None) -> Any:
        """The same where there are no inputs, but labels alone: of tokens, their ids."""
        return labels if self._tokens is None else self._tokens.classes(labels, None, mask)

    def check(self, inputs: Any, labels: Any, mask: Mask | None = None) -> None:
        """Raise where a loader's own labels are its `input_ids`; on a first batch that tells."""
        if self._tokens is None and self._are_input_ids is None:
            self._are_input_ids = are_input_ids(inputs, labels, mask, self._ignore_index)

    def look_at(self, inputs: Any) -> None:
        """Find out on the first batch, which has run, whether the model reads what it predicts."""
        predicts = self._tokens is not None and self._tokens.which == "next-token"
        if predicts and self._sees_later_tokens is None:
            self._sees_later_tokens = sees_later_tokens(self._model, inputs)

    @property
    def notes(self) -> list[str]:
        """What a report should say of the labels."""
        notes = []
        if self._tokens is not None and self._tokens.were_shifted:
            notes.append(
                "labels of the loader are its input_ids: shifted by one, each position has the "
                "token after it"
            )
        if self._sees_later_tokens:
            notes.append(
                "model is not causal: what it makes of a token depends on later ones, so its "
                "layers may hold the next token because they have read it"
            )
        return notes


def _token_labels(model: nn.Module, labels: object) -> TokenLabels:
    if isinstance(labels, str) and labels in WHICH:
        labels = TokenLabels(labels)  # type: ignore[arg-type]
    if not isinstance(labels, TokenLabels):
        wanted = "'next-token', 'current-token', TokenLabels or None"
        raise ValueError(f"labels is {labels!r}, expected {wanted}")
    if labels.needs_counts:
        raise ValueError(
            "labels has most_frequent without counts, expected counts=token_counts(loader) too"
        )
    config = getattr(innermost_model(model), "config", None)
    if getattr(config, "is_encoder_decoder", False) is True:
        raise ValueError("model has an encoder and a decoder, expected a causal language model")
    return labels


def _number_of_classes(model: nn.Module, labels: TokenLabels, num_classes: int | None) -> int:
    found, whose = labels.num_classes, "that of labels"
    if found is None:
        found, whose = _vocabulary_size(model), "the size of the vocabulary"
    if found is None and num_classes is None:
        raise ValueError(
            "num_classes is None, expected the size of the vocabulary, which this model does not "
            "tell"
        )
    if found is not None and num_classes not in (None, found):
        raise ValueError(
            f"num_classes is {num_classes}, expected {found}, {whose}; for fewer tokens pass "
            "labels=TokenLabels(most_frequent=K)"
        )
    return num_classes if found is None else found  # type: ignore[return-value]


def _vocabulary_size(model: nn.Module) -> int | None:
    """V, as a model's configuration or its input embedding has it; None: it tells none."""
    inner = innermost_model(model)
    config = getattr(inner, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    size = getattr(config, "vocab_size", None)
    if isinstance(size, int):
        return size
    embeddings = {m.num_embeddings for m in inner.modules() if isinstance(m, nn.Embedding)}
    # Positions are embedded too: the vocabulary's is as long as the model has outputs.
    outputs = {m.out_features for m in inner.modules() if isinstance(m, nn.Linear)}
    likely = embeddings if len(embeddings) == 1 else embeddings & outputs
    return likely.pop() if len(likely) == 1 else None
