"""Image networks made to accept images of any size, grey or RGB; torchvision's by name."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

__all__ = ["FittedImages", "VisionModel", "vision_names"]

# Most classifiers shrink the image by a total stride of 32: below 32 pixels a side their last
# feature maps are one pixel of mostly padding, and some raise.
_LEAST_SIZE = 32


@cache
def vision_names() -> tuple[str, ...]:
    """Names of torchvision's image classifiers, sorted.

    >>> "resnet18" in vision_names()
    True
    """
    from torchvision import models  # takes seconds, so imported only where it is needed

    return tuple(models.list_models(module=models))


class FittedImages(nn.Module):
    """A network, and before it a step that fits the images to it.

    Parameters
    ----------
    network
        Takes images (N, channels, H, W).
    channels
        Images of one channel get that channel repeated so many times.
    least_size
        Images whose shorter side is under so many pixels are enlarged bilinearly to it.
    fixed_size
        (H, W) to which all images are resized instead, where the network takes no other.

    >>> model = FittedImages(nn.Identity(), least_size=4)
    >>> model(torch.zeros(1, 1, 2, 3)).shape
    torch.Size([1, 3, 4, 6])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        channels: int = 3,
        least_size: int = 1,
        fixed_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.channels = channels
        self.least_size = least_size
        self.fixed_size = fixed_size

    def forward(self, images: torch.Tensor) -> Any:
        """(N, 1 or channels, H, W) -> what the network makes of them."""
        if images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        height, width = images.shape[-2:]
        size = self.fixed_size or (height, width)
        if self.fixed_size is None and min(height, width) < self.least_size:
            scale = self.least_size / min(height, width)
            size = (round(height * scale), round(width * scale))
        if size != (height, width):
            images = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        return self.network(images)


class VisionModel(FittedImages):
    """A torchvision classifier with random weights, and a step that fits the images to it.

    This step repeats a single channel three times and enlarges images whose shorter side is
    under `least_size` bilinearly to that size; larger images pass unchanged, except for vision
    transformers, which take one size only, to which all images are resized. The classifier itself
    is `network`; its outputs are (N, K). Auxiliary classifiers (GoogLeNet, Inception) are left out:
    they have no place among the layers.

    Parameters
    ----------
    name
        A name that `vision_names` lists.
    input_shape
        (C, H, W) of one image, C = 1 or 3.
    num_classes
        K, number of outputs.

    Attributes
    ----------
    least_size
        Least height and width in pixels that `network` is given.

    Raises
    ------
    ValueError
        Samples that are not images of 1 or 3 channels.

    >>> model = VisionModel("squeezenet1_1", (1, 8, 8), num_classes=10).eval()
    >>> model(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, name: str, input_shape: tuple[int, ...], num_classes: int) -> None:
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise ValueError(
                f"data has samples of shape {tuple(input_shape)}, expected images (channels, "
                f"height, width) with 1 or 3 channels for arch {name}; for others choose linear, "
                "mlp or hybrid"
            )
        from torchvision import models

        options = {}
        if name in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": True}
        network = models.get_model(name, weights=None, num_classes=num_classes, **options)
        side: int | None = getattr(network, "image_size", None)
        super().__init__(
            network,
            least_size=side or max(_LEAST_SIZE, _documented_least_size(name)),
            fixed_size=None if side is None else (side, side),
        )


def _documented_least_size(name: str) -> int:
    """Return the least image side in pixels that torchvision documents, 1 if it says none."""
    from torchvision import models

    weights = list(models.get_model_weights(name))
    return max(weights[0].meta.get("min_size", (1, 1))) if weights else 1
