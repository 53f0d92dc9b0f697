"""The architectures a run can train, by name."""

from __future__ import annotations

import difflib

from deeprep.models.settings import ModelSettings
from deeprep.models.stack import LayerStack
from deeprep.models.vision import VisionModel, vision_names

__all__ = ["STACKS", "build_model", "check_architecture"]

STACKS = ("linear", "mlp", "hybrid")


def check_architecture(name: str) -> None:
    """Raise a ValueError that names the closest known architectures if there is none called `name`.

    >>> check_architecture("mlp")
    >>> check_architecture("resnt18")
    Traceback (most recent call last):
        ...
    ValueError: arch is 'resnt18', expected linear, mlp, hybrid or a torchvision \
classifier; did you mean resnet18, resnet152, resnet101?
    """
    if name in STACKS:
        return
    names = (*STACKS, *vision_names())
    if name not in names:
        close = difflib.get_close_matches(name, names)
        hint = f"; did you mean {', '.join(close)}?" if close else f"; known: {', '.join(names)}"
        wanted = f"{', '.join(STACKS)} or a torchvision classifier"
        raise ValueError(f"arch is {name!r}, expected {wanted}{hint}")


def build_model(
    settings: ModelSettings, input_shape: tuple[int, ...], num_classes: int
) -> LayerStack | VisionModel:
    """Build the model that resolved settings name, with fresh float32 weights on the CPU.

    Weights are drawn from torch's global generator: call `torch.manual_seed` first to fix them.
    A stack lists its hidden layers in `probe_layers`, which `deeprep.analyze` measures.

    Parameters
    ----------
    settings
        With every field filled in that concerns the architecture.
    input_shape
        Shape of one sample: (d,) for vectors, (C, H, W) for images.
    num_classes
        K, the number of outputs.

    Raises
    ------
    ValueError
        Unknown architecture; vectors given to a vision model; a stack deeper than its options
        allow.

    >>> settings = ModelSettings("mlp", depth=8, width=32, init="default")
    >>> model = build_model(settings, (1, 8, 8), num_classes=10)
    >>> model.probe_layers[:2], model.classifier.out_features
    (['layer1', 'layer2'], 10)
    """
    check_architecture(settings.arch)
    if settings.arch in STACKS:
        return LayerStack.from_settings(settings, input_shape, num_classes)
    return VisionModel(settings.arch, input_shape, num_classes)
