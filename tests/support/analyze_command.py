"""`deeprep analyze` on small models and digits, for the tests of its command line."""

from __future__ import annotations

import json

import pytest
import torch

from deeprep import LayerReport
from deeprep.cli import main

DIGITS = ["--data", "digits", "--samples-per-class", "4"]

MODELS = """
import torch
from torch import nn


def cnn(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, num_classes),
    )


class Sentences(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embedding = nn.Embedding(257, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, num_classes)

    def forward(self, input_ids, attention_mask):
        return self.head(self.blocks(self.embedding(input_ids)).mean(1))


class Fails(nn.Linear):
    def forward(self, images):
        return [][3]


def fails():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Fails(8, 8), nn.Linear(8, 8))
"""


def analyzed(capsys, *arguments, status=0):
    """What `deeprep analyze ... --json` prints."""
    assert main(["analyze", *map(str, arguments), "--json"]) == status
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def only_report(result):
    (checkpoint,) = result["checkpoints"]
    return LayerReport.from_dict(checkpoint["report"])


def cnn(seed):
    torch.manual_seed(seed)
    namespace = {}
    exec(MODELS, namespace)
    return namespace["cnn"](10)
