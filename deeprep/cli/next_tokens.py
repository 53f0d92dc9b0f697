"""Running text as `deeprep analyze` measures it: of every position, the token after it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deeprep.data import Documents, TokenBlocks
from deeprep.models.loaded import LoadedModel
from deeprep.probe import TokenLabels, token_counts

__all__ = ["NextTokens"]


@dataclass(frozen=True, eq=False)
class NextTokens:
    """Tokens of documents, in blocks, and which of them are a class.

    Attributes
    ----------
    name
        The data set's name.
    blocks
        The blocks of all documents.
    labels
        What makes labels of them.
    tokens
        What the tokenizer calls its tokens, by their ids; none where it has no names for them.
    """

    name: str
    blocks: TokenBlocks
    labels: TokenLabels
    tokens: list[str]

    @classmethod
    def of(
        cls,
        documents: Documents,
        model: LoadedModel,
        *,
        most_frequent: int | None,
        batch_size: int,
        max_length: int | None,
    ) -> NextTokens:
        """Cut documents into the tokens of a model; see the flags of these names."""
        tokenizer = model.tokenizer
        assert tokenizer is not None
        blocks = TokenBlocks(documents, tokenizer, batch_size, max_length or model.max_length)
        labels = TokenLabels(most_frequent=most_frequent)
        if most_frequent is not None:
            labels = replace(labels, counts=token_counts(blocks))
        name_of = getattr(tokenizer, "convert_ids_to_tokens", None)
        size = len(tokenizer) if name_of is not None else 0  # type: ignore[arg-type]
        tokens = [] if name_of is None else list(map(str, name_of(list(range(size)))))
        return cls(documents.name, blocks, labels, tokens)

    def class_names(self, num_classes: int) -> list[str]:
        """Return the tokens of K classes."""
        classes = range(num_classes)
        ids = classes if self.labels.most_frequent is None else self.labels.class_tokens.tolist()
        return [self.tokens[i] if i < len(self.tokens) else f"token {i}" for i in ids]
