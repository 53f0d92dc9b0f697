"""Stacks of fully connected layers: the paper's deep linear networks, MLPs and hybrid networks.

A stack of depth L has L weight matrices: L - 1 hidden layers named `layer1` .. `layer{L-1}`, then
`classifier`. A nonlinear hidden layer is Linear + BatchNorm1d + ReLU, a linear one is Linear
alone. `linear` networks have linear hidden layers only, `mlp` none, and `hybrid` ones end in a
given number of them.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn

from deeprep.base.validate import chosen
from deeprep.models.settings import Init, ModelSettings

__all__ = ["LayerStack", "initialize"]


class LayerStack(nn.Module):
    """Fully connected network whose hidden layers are named modules that can be probed.

    Parameters
    ----------
    input_shape
        Shape of one sample; inputs (N, *input_shape) are flattened to (N, d).
    num_classes
        K, number of outputs.
    depth
        L >= 2, number of weight matrices, classifier included.
    width
        Number of features of every hidden layer.
    linear_layers
        How many of the L - 1 hidden layers, counted from the end, are linear.
    batch_norm
        Put BatchNorm1d before the ReLU of the nonlinear layers.
    bias
        Give every Linear a bias (initialised to 0 unless `init` is "default").
    init
        "default" (PyTorch's), or see `initialize`.
    init_scale
        The scale of `initialize`; not used by "default".

    Attributes
    ----------
    probe_layers
        Names of the hidden layers, input side first.

    Raises
    ------
    ValueError
        An argument outside these ranges.

    >>> model = LayerStack((1, 8, 8), 10, depth=4, width=32, linear_layers=1)
    >>> model.probe_layers
    ['layer1', 'layer2', 'layer3']
    >>> [name for name, _ in model.layer2.named_children()], len(model.layer3)
    (['linear', 'norm', 'activation'], 1)
    >>> model(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        *,
        depth: int,
        width: int,
        linear_layers: int = 0,
        batch_norm: bool = True,
        bias: bool = False,
        init: Init = "default",
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(
                f"depth is {depth}, expected >= 2 (one hidden layer and the classifier)"
            )
        if not 0 <= linear_layers <= depth - 1:
            wanted = f"between 0 and depth - 1 = {depth - 1}"
            raise ValueError(f"linear_layers is {linear_layers}, expected {wanted}")
        if width < 1:
            raise ValueError(f"width is {width}, expected >= 1")
        self.probe_layers = [f"layer{index}" for index in range(1, depth)]
        num_features = math.prod(input_shape)
        for index, name in enumerate(self.probe_layers):
            layer = OrderedDict[str, nn.Module](linear=nn.Linear(num_features, width, bias))
            if index < depth - 1 - linear_layers:
                if batch_norm:
                    layer["norm"] = nn.BatchNorm1d(width)
                layer["activation"] = nn.ReLU()
            self.add_module(name, nn.Sequential(layer))
            num_features = width
        self.classifier = nn.Linear(num_features, num_classes, bias)
        if init != "default":
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    initialize(module, init, init_scale)

    @classmethod
    def from_settings(
        cls, settings: ModelSettings, input_shape: tuple[int, ...], num_classes: int
    ) -> LayerStack:
        """Build the stack that resolved settings describe; see `build_model`."""
        depth = chosen(settings.depth)
        linear_layers = {"linear": depth - 1, "mlp": 0}.get(settings.arch)
        return cls(
            input_shape,
            num_classes,
            depth=depth,
            width=chosen(settings.width),
            linear_layers=chosen(settings.linear_layers)
            if linear_layers is None
            else linear_layers,
            batch_norm=settings.batch_norm,
            bias=settings.bias,
            init=chosen(settings.init),
            init_scale=1.0 if settings.init_scale is None else settings.init_scale,
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(N, *input_shape) -> (N, K) outputs of the classifier."""
        features = inputs.flatten(1)
        for name in self.probe_layers:
            features = self.get_submodule(name)(features)
        outputs: torch.Tensor = self.classifier(features)
        return outputs


@torch.no_grad()
def initialize(linear: nn.Linear, init: Init, scale: float) -> None:
    """Overwrite the weight W (out, in) of a Linear in place, and its bias, if any, with zeros.

    - "orthogonal": scale * Q, Q with orthonormal rows (or columns, if out > in) drawn uniformly
      (Saxe et al. 2014). A wide first layer then uses all its inputs, which a square Q padded with
      zeros would not.
    - "gaussian": independent entries N(0, scale^2 / in), so that |W x| is about scale * |x| where
      out = in.
    - "identity": scale on the diagonal, zero elsewhere.

    Raises
    ------
    ValueError
        Any other `init`.

    >>> layer = nn.Linear(3, 2, bias=False)
    >>> initialize(layer, "identity", 0.5)
    >>> layer.weight.tolist()
    [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]
    """
    if init == "orthogonal":
        nn.init.orthogonal_(linear.weight, gain=scale)
    elif init == "gaussian":
        nn.init.normal_(linear.weight, std=scale / math.sqrt(linear.in_features))
    elif init == "identity":
        nn.init.eye_(linear.weight).mul_(scale)
    else:
        raise ValueError(f"init is {init!r}, expected orthogonal, gaussian or identity")
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
