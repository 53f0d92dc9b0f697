"""Small models, data and comparisons for the tests of probes."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from deeprep import LayerProbe


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, inputs):
        return inputs + torch.relu(self.linear(inputs))


class ResidualNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.last_block = Block(6)  # defined out of order on purpose
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.Sequential(Block(6), Block(6))
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        hidden = self.blocks(self.stem(inputs))
        return self.head(self.norm(self.dropout(self.last_block(hidden))))


@dataclasses.dataclass
class EncoderOutput:
    """What a Hugging Face encoder returns, as far as a probe sees it."""

    past: object
    last_hidden_state: torch.Tensor


class Embeddings(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.positions = nn.Embedding(16, width)
        self.words = nn.Embedding(10, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids):
        positions = self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.norm(self.words(ids) + positions)


class EncoderLayer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden, attention_mask):
        weights = attention_mask / attention_mask.sum(dim=1, keepdim=True)
        context = torch.einsum("nt,ntc->nc", weights, self.mix(hidden)).unsqueeze(1)
        return hidden + torch.tanh(self.out(hidden + context)), None


class Encoder(nn.Module):
    """A stand-in for a Hugging Face encoder: named arguments, tuples inside, a dataclass out."""

    def __init__(self, width=6):
        super().__init__()
        self.embeddings = Embeddings(width)
        self.layer = nn.ModuleList([EncoderLayer(width), EncoderLayer(width)])

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        hidden = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layer:
            hidden, _ = layer(hidden, attention_mask)
        return EncoderOutput(None, hidden)


def make_batches(num_batches=3, size=20, num_classes=3):
    labels = torch.arange(num_batches * size) % num_classes
    inputs = torch.randn(num_classes, 4)[labels] + 0.5 * torch.randn(num_batches * size, 4)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def make_sentences(num_tokens=5):
    ids = torch.randint(10, (8, num_tokens))
    mask = (torch.arange(num_tokens) < torch.randint(1, num_tokens + 1, (8, 1))).long()
    return {"input_ids": ids, "attention_mask": mask}, torch.arange(8) % 2


def measure(model, *batches, **options):
    with LayerProbe(model, 3, **options) as probe:
        for batch in batches:
            probe(*batch)
    return probe.scatters


def assert_same(scatters, expected, rtol=1e-6):
    assert list(scatters) == list(expected)
    for name, s in scatters.items():
        assert torch.equal(s.counts, expected[name].counts)
        torch.testing.assert_close(s.means, expected[name].means, rtol=rtol, atol=rtol)
        torch.testing.assert_close(s.sumsq, expected[name].sumsq, rtol=rtol, atol=rtol)


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks, *module._forward_pre_hooks)
    ]
