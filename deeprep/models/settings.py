"""Which architecture, of what size: the group `model` of a run's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deeprep.base.validate import require_at_least, require_positive

__all__ = ["Init", "ModelSettings"]

Init = Literal["default", "orthogonal", "gaussian", "identity"]


@dataclass(frozen=True)
class ModelSettings:
    """What is trained."""

    arch: str = "mlp"
    """linear: no activations (a deep linear network). mlp: every hidden layer is
    Linear + BatchNorm + ReLU. hybrid: an mlp whose last hidden layers are linear. Or the name of
    any torchvision classifier, such as resnet18."""

    depth: int | None = None
    """Weight matrices L of a linear, mlp or hybrid network: L - 1 hidden layers, then the
    classifier."""

    width: int | None = None
    """Features of every hidden layer of a linear, mlp or hybrid network."""

    linear_layers: int | None = None
    """How many of the hidden layers of a hybrid network, counted from the end, are linear."""

    batch_norm: bool = True
    """BatchNorm before every ReLU of an mlp or hybrid network."""

    bias: bool = False
    """Biases in the Linear layers of a linear, mlp or hybrid network."""

    init: Init | None = None
    """Initial weights of a linear, mlp or hybrid network: PyTorch's default, or orthogonal,
    gaussian or identity times --init-scale."""

    init_scale: float | None = None
    """Scale of the initial weights; --init default has none."""

    def __post_init__(self) -> None:
        require_at_least(self, 2, "depth")
        require_at_least(self, 1, "width")
        require_at_least(self, 0, "linear_layers")
        require_positive(self, "init_scale")
