"""A sentence encoder: words, their mean, and a stack of fully connected layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deeprep.models.stack import LayerStack

__all__ = ["SentenceEncoder"]


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
