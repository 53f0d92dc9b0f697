"""scikit-learn's digits, and any folder with one subfolder of images per class."""

from __future__ import annotations

from pathlib import Path

import torch

from deeprep.data.tensors import RawData

__all__ = ["load_digits", "load_image_folder"]


def load_digits() -> RawData:
    """Return scikit-learn's 1797 handwritten digits, grey images of 8 x 8 pixels.

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.

    >>> len(load_digits().labels)
    1797
    """
    from sklearn import datasets  # slow, so imported only where it is needed

    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)  # pixels count 0..16
    labels = torch.from_numpy(digits.target).long()
    names = tuple(str(name) for name in digits.target_names)
    return RawData(labels, names, images.__getitem__)


def load_image_folder(data_dir: Path | None, image_size: int) -> RawData:
    """Read data_dir (or its subfolder train, if there is one), with one folder of images per class.

    Images are turned into RGB, resized so that the shorter side has image_size pixels, and cropped
    at the centre to image_size x image_size.

    Raises
    ------
    ValueError
        No data_dir, or an image size below 1; from the reader, a file that is not a whole image.
    FileNotFoundError
        data_dir does not exist or has no class folders with images in them.
    """
    if data_dir is None:
        raise ValueError("data_dir is None, expected the folder of an image-folder")
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}, expected >= 1")
    if not data_dir.is_dir():
        raise FileNotFoundError(f"data_dir is {data_dir}, expected an existing folder")
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose(
        [
            transforms.Resize(image_size),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
        ]
    )
    root = data_dir / "train" if (data_dir / "train").is_dir() else data_dir
    # ImageFolder's own FileNotFoundError names the class folders that are missing or empty.
    folder = ImageFolder(str(root), transform)

    def image(index: int) -> torch.Tensor:
        path, _ = folder.samples[index]
        try:
            pixels: torch.Tensor = folder[index][0]
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # whatever a decoder raises on bytes that mean something else
            raise ValueError(f"{path} is damaged or not an image ({error})") from error
        return pixels

    def read(indices: torch.Tensor) -> torch.Tensor:
        return torch.stack([image(index) for index in indices.tolist()])

    return RawData(torch.tensor(folder.targets), tuple(folder.classes), read)
