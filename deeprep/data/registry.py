"""The data sets that a run can use, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from deeprep.data.images import load_digits, load_image_folder
from deeprep.data.mnist_cifar import load_cifar, load_idx
from deeprep.data.settings import DatasetName, DataSettings
from deeprep.data.synthetic import orthogonal
from deeprep.data.tensors import Data, RawData, select, standardize

__all__ = ["load_configured_data", "load_data"]

# Mean and standard deviation per channel of the training images in [0, 1], as the literature uses
# them; those of CIFAR-10 are the paper's (its deviations are means over images of each image's
# own).
_CHANNEL_STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load_data(
    name: DatasetName,
    *,
    data_dir: Path | None = None,
    classes: Sequence[int] | None = None,
    samples_per_class: int | None = None,
    normalize: bool = True,
    seed: int = 0,
    download: bool = True,
    image_size: int = 64,
    dimension: int = 50,
    noise: float = 1.0,
) -> Data:
    """Load a data set's training split into memory.

    Parameters
    ----------
    name
        digits (scikit-learn's 1797 images of 8 x 8), orthogonal (see `orthogonal`), mnist,
        fashion-mnist, cifar10, cifar100, or image-folder (one folder of images per class).
    data_dir
        Searched for the files first; then ./data, ~/.cache/deeprep and /usr/share/datasets are.
    classes
        One number n for the first n classes, several for these labels, renumbered from 0 in the
        order given; default all. For orthogonal: one number, default 3.
    samples_per_class
        Samples of each class, drawn without replacement; default all. For orthogonal: default 10.
    normalize
        Subtract a mean and divide by a standard deviation, one of each per channel, which
        `Data.mean` and `Data.std` record. Pixels are in [0, 1] before.
    seed
        Fixes the draw of samples and the orthogonal data.
    download
        Fetch files that are nowhere on disk, into data_dir or ~/.cache/deeprep.
    image_size
        Height and width in pixels of the images of an image-folder.
    dimension
        Features of an orthogonal sample.
    noise
        Frobenius norm of the noise of orthogonal data.

    Raises
    ------
    ValueError
        An unknown name, classes that the data do not have, or fewer samples of a class than asked
        for.
    FileNotFoundError
        The files are nowhere and cannot be downloaded; says which to put where.

    >>> data = load_data("digits", classes=[3], samples_per_class=20)
    >>> data.inputs.shape, data.class_names, data.labels.bincount().tolist()
    (torch.Size([60, 1, 8, 8]), ('0', '1', '2'), [20, 20, 20])
    """
    if name == "orthogonal":
        if classes is not None and len(classes) != 1:
            raise ValueError(f"classes is {classes}, expected one number for orthogonal data")
        num_classes = classes[0] if classes else 3
        return orthogonal(num_classes, samples_per_class or 10, dimension, noise, seed)
    readers: dict[str, Callable[[], RawData]] = {
        "digits": load_digits,
        "mnist": lambda: load_idx("mnist", data_dir, download),
        "fashion-mnist": lambda: load_idx("fashion-mnist", data_dir, download),
        "cifar10": lambda: load_cifar("cifar10", data_dir, download),
        "cifar100": lambda: load_cifar("cifar100", data_dir, download),
        "image-folder": lambda: load_image_folder(data_dir, image_size),
    }
    if name not in readers:
        raise ValueError(f"name is {name!r}, expected one of {', '.join(get_args(DatasetName))}")
    data = select(readers[name](), name, classes, samples_per_class, seed)
    return standardize(data, _CHANNEL_STATISTICS.get(name)) if normalize else data


def load_configured_data(settings: DataSettings, seed: int) -> Data:
    """Load the data set that a group of settings describes.

    >>> from deeprep.data import DataSettings
    >>> load_configured_data(DataSettings("digits", classes=(2,)), seed=0).class_names
    ('0', '1')
    """
    return load_data(
        settings.dataset,
        data_dir=settings.data_dir,
        classes=settings.classes,
        samples_per_class=settings.samples_per_class,
        normalize=settings.normalize,
        seed=seed,
        download=settings.download,
        image_size=settings.image_size,
        dimension=settings.dimension,
        noise=settings.noise,
    )
