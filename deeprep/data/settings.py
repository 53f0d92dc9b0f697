"""Which data set, and how much of it: the group `data` of a run's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deeprep.base.validate import require, require_at_least

__all__ = ["DataSettings", "DatasetName"]

DatasetName = Literal[
    "digits", "orthogonal", "mnist", "fashion-mnist", "cifar10", "cifar100", "image-folder"
]


@dataclass(frozen=True)
class DataSettings:
    """What it is trained on, and measured on: the training split."""

    dataset: DatasetName = "digits"
    """digits: 1797 images of 8 x 8, part of scikit-learn, no download. orthogonal: the nearly
    orthonormal vectors of the theorem. image-folder: --data-dir with one folder of images per
    class."""

    data_dir: Path | None = None
    """Where the files are; searched before the standard places."""

    download: bool = True
    """Download a data set whose files are nowhere on disk."""

    classes: tuple[int, ...] | None = None
    """One number n: the first n classes. Several: these labels, renumbered from 0. Default: all; 3
    for orthogonal."""

    samples_per_class: int | None = None
    """Samples of each class, drawn by --seed. Default: all; 10 for orthogonal."""

    normalize: bool = True
    """Subtract the data set's mean from each channel and divide by its standard deviation. Pixels
    are in [0, 1] before. orthogonal data are never changed."""

    image_size: int = 64
    """Height and width in pixels to which the images of an image-folder are resized."""

    dimension: int = 50
    """Features of a sample of orthogonal data, at least as many as there are samples."""

    noise: float = 1.0
    """Frobenius norm of the Gaussian noise added to the orthonormal samples of orthogonal data."""

    def __post_init__(self) -> None:
        if self.classes is not None:
            require("classes", self.classes, len(self.classes) > 0, "one or more numbers")
            require("classes", self.classes, min(self.classes) >= 0, "non-negative numbers")
            if len(self.classes) == 1:
                require("classes", self.classes[0], self.classes[0] >= 2, ">= 2 classes")
            distinct = len(set(self.classes)) == len(self.classes)
            require("classes", self.classes, distinct, "distinct labels")
        require_at_least(self, 1, "samples_per_class", "image_size", "dimension")
        require_at_least(self, 0, "noise")
