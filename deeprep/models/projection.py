"""A feature extractor under a projection head: pre-trained together, the extractor is kept."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

from deeprep.models.stack import LayerStack
from deeprep.models.vision import VisionModel

__all__ = ["ProjectionNetwork", "conv_extractor", "resnet50_extractor"]


class ProjectionNetwork(nn.Module):
    """Extractor, projection head, classifier.

    Parameters
    ----------
    extractor
        Inputs -> features (N, num_features).
    num_features
        Its width.
    num_classes
        K, number of outputs.
    head_layers
        Number >= 1 of Linear + BatchNorm + ReLU layers between the features and the classifier.
    width
        Features of each of them.

    Attributes
    ----------
    probe_layers
        Names of the extractor and of the layers of the head.

    >>> model = ProjectionNetwork(nn.Flatten(), 64, 10, head_layers=2, width=32)
    >>> model.probe_layers
    ['extractor', 'head.layer1', 'head.layer2']
    >>> model(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        extractor: nn.Module,
        num_features: int,
        num_classes: int,
        *,
        head_layers: int,
        width: int,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        # A stack of one more weight matrix: the last is the classifier.
        self.head = LayerStack((num_features,), num_classes, depth=head_layers + 1, width=width)
        self.probe_layers = ["extractor", *(f"head.{name}" for name in self.head.probe_layers)]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs -> (N, K) outputs of the classifier."""
        outputs: torch.Tensor = self.head(self.extractor(inputs))
        return outputs


def conv_extractor(input_shape: tuple[int, int, int], width: int) -> tuple[nn.Module, int]:
    """Return a small network for small images, and the number of its features, 8 * width.

    Four convolutions of 3 x 3 and stride 2, with width, 2, 4 and 8 times as many channels, and a
    linear layer, each followed by BatchNorm and ReLU.

    >>> extractor, num_features = conv_extractor((1, 28, 28), width=4)
    >>> extractor(torch.zeros(2, 1, 28, 28)).shape, num_features
    (torch.Size([2, 32]), 32)
    """
    channels, *sides = input_shape
    layers: list[nn.Module] = []
    for into, out in pairwise((channels, width, 2 * width, 4 * width, 8 * width)):
        convolution = nn.Conv2d(into, out, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(out), nn.ReLU()]
        sides = [math.ceil(side / 2) for side in sides]
    num_features = 8 * width
    linear = nn.Linear(num_features * math.prod(sides), num_features, bias=False)
    layers += [nn.Flatten(), linear, nn.BatchNorm1d(num_features), nn.ReLU()]
    return nn.Sequential(*layers), num_features


def resnet50_extractor(input_shape: tuple[int, int, int]) -> tuple[nn.Module, int]:
    """Return torchvision's ResNet-50 without its classifier, and the number of its features.

    Its first layers are those usual for images of 32 x 32 pixels: a convolution of 3 x 3 without
    stride and no pooling, so that 4 x 4 positions are left at the end and not one.

    >>> extractor, num_features = resnet50_extractor((3, 32, 32))
    >>> num_features
    2048
    """
    model = VisionModel("resnet50", input_shape, num_classes=1)
    network = model.network
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    assert isinstance(network.fc, nn.Linear)
    num_features = network.fc.in_features
    network.fc = nn.Identity()
    return model, num_features
