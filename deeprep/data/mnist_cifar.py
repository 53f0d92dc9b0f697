"""MNIST, Fashion-MNIST and CIFAR: found on disk wherever they lie, or else downloaded.

Searched, in this order: the given directory, ./data, ~/.cache/deeprep, and /usr/share/datasets,
where Debian's package dataset-fashion-mnist puts its files. Files may be in torchvision's layout
or not, and compressed or not. A download goes to a temporary directory and is moved into place
when complete.
"""

from __future__ import annotations

import gzip
import math
import tempfile
import zlib
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from deeprep.data.tensors import RawData

__all__ = ["load_cifar", "load_idx", "read_idx"]


@dataclass(frozen=True)
class _Source:
    """What torchvision calls a data set, and the names of its files."""

    torchvision_name: str
    files: tuple[str, ...]
    folder: str  # that holds the files, inside torchvision's root directory
    hint: str = ""


_STANDARD_PLACES = (
    Path("data"),
    Path.home() / ".cache" / "deeprep",
    Path("/usr/share/datasets"),
)
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_SOURCES = {
    "mnist": _Source("MNIST", _IDX_FILES, "MNIST/raw"),
    "fashion-mnist": _Source(
        "FashionMNIST",
        _IDX_FILES,
        "FashionMNIST/raw",
        "; on Debian and Ubuntu `apt install dataset-fashion-mnist` does that for you",
    ),
    "cifar10": _Source(
        "CIFAR10",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
        "cifar-10-batches-py",
    ),
    "cifar100": _Source("CIFAR100", ("train", "test", "meta"), "cifar-100-python"),
}
_ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
_CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


def load_idx(
    name: Literal["mnist", "fashion-mnist"], data_dir: Path | None, download: bool
) -> RawData:
    """Read the 60,000 training images, grey, 28 x 28, of MNIST or Fashion-MNIST.

    Raises
    ------
    FileNotFoundError
        The files are nowhere and are not or cannot be downloaded.
    ValueError
        A file that is not what its name says.
    """
    folder = _find_idx(name, data_dir)
    if folder is None:
        folder = _download(name, data_dir, download) / _SOURCES[name].folder
    paths = [_plain_or_gz(folder, file) for file in _IDX_FILES]
    images, labels = map(read_idx, paths)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        shapes = f"{images.shape} and {labels.shape}"
        raise ValueError(f"{folder} holds {shapes}, expected images (N, H, W) and labels (N,)")
    names = _CLASS_NAMES[name]
    if labels.max(initial=0) >= len(names):
        found = f"{paths[1]} holds label {labels.max()}"
        raise ValueError(f"{found}, expected one of the {len(names)} classes of {name}")
    pixels = torch.from_numpy(images).unsqueeze(1)
    targets = torch.from_numpy(labels).long()
    return RawData(targets, names, lambda i: pixels[i].float().div(255))


def load_cifar(
    name: Literal["cifar10", "cifar100"], data_dir: Path | None, download: bool
) -> RawData:
    """Read the 50,000 training images, RGB, 32 x 32, of CIFAR-10 or CIFAR-100.

    Raises
    ------
    FileNotFoundError
        The files are nowhere and are not or cannot be downloaded.
    ValueError
        A file is not the published one; names it.
    """
    source = _SOURCES[name]
    root = _find_cifar(name, data_dir)
    if root is not None and not (root / source.folder).is_dir():
        archive = root / _ARCHIVES[name]
        with tempfile.TemporaryDirectory() as unpacked:  # the archive's folder may be read-only
            _unpack(archive, unpacked)
            loaded = _load_published(name, Path(unpacked), archive)
    else:
        loaded = _load_published(name, root or _download(name, data_dir, download))
    pixels = torch.from_numpy(loaded.data).permute(0, 3, 1, 2)
    targets = torch.tensor(loaded.targets)
    return RawData(targets, tuple(loaded.classes), lambda i: pixels[i].float().div(255))


def _unpack(archive: Path, target: str) -> None:
    from torchvision.datasets.utils import extract_archive

    try:
        extract_archive(str(archive), target)
    except Exception as error:  # of tarfile, gzip, zlib
        raise ValueError(
            f"{archive} is damaged ({error}), expected a complete .tar.gz file"
        ) from error


def _load_published(name: str, root: Path, archive: Path | None = None) -> Any:
    """Have torchvision load CIFAR from a directory, unpacked there from an archive perhaps."""
    from torchvision import datasets

    source = _SOURCES[name]
    dataset = getattr(datasets, source.torchvision_name)
    try:
        return dataset(str(root), train=True)
    except Exception as error:  # whatever unpickling raises where no checksum tells before
        folder = root / source.folder
        checksums = dict(dataset.train_list + dataset.test_list)
        checksums[dataset.meta["filename"]] = dataset.meta["md5"]
        damaged = [
            file
            for file, md5 in checksums.items()
            if not datasets.cifar.check_integrity(str(folder / file), md5)
        ]
        which = ", ".join(damaged) or error
        raise ValueError(
            f"{archive or folder} is damaged ({which}), expected the files of the published "
            f"{_ARCHIVES[name]}"
        ) from error


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of bytes in an IDX file, which may be gzipped.

    The format is two zero bytes, the type (8: unsigned byte), the number of axes, the length of
    each as a big-endian int32, then the values in C order.

    Raises
    ------
    ValueError
        Not an IDX file of bytes, or one that is cut short or damaged.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", 1998.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content: bytes = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}), expected a complete gzip file") from error
    start = 4 + 4 * content[3] if len(content) > 3 else 4
    if len(content) < start or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} starts with {content[:4]!r}, expected an IDX file of bytes")
    shape = tuple(int(length) for length in np.frombuffer(content[4:start], ">u4"))
    values = np.frombuffer(content[start:], np.uint8).copy()  # else read-only: torch warns
    if len(values) != math.prod(shape):
        raise ValueError(f"{path} holds {len(values)} values, expected {shape}")
    return np.reshape(values, shape)


def _roots(data_dir: Path | None) -> list[Path]:
    return [*([] if data_dir is None else [data_dir.expanduser()]), *_STANDARD_PLACES]


def _plain_or_gz(folder: Path, file: str) -> Path:
    plain = folder / file
    return plain if plain.is_file() else folder / f"{file}.gz"


def _find_idx(name: str, data_dir: Path | None) -> Path | None:
    """Folder that holds both files, or None."""
    for root in _roots(data_dir):
        folders = [root / _SOURCES[name].folder, root / name]
        # MNIST and Fashion-MNIST have the same file names, so files that lie in the root itself
        # tell nothing, unless the user points to it.
        if data_dir is not None and root == data_dir.expanduser():
            folders += [root, root / "raw"]
        for folder in folders:
            if all(_plain_or_gz(folder, file).is_file() for file in _IDX_FILES):
                return folder
    return None


def _find_cifar(name: str, data_dir: Path | None) -> Path | None:
    """Directory that holds torchvision's folder or the published archive, or None."""
    source = _SOURCES[name]
    for root in _roots(data_dir):
        places = [root, root / name]
        if data_dir is not None and root.name == source.folder:
            places.append(root.parent)
        for place in places:
            if all((place / source.folder / file).is_file() for file in source.files):
                return place
            if (place / _ARCHIVES[name]).is_file():
                return place
    return None


def _download(name: str, data_dir: Path | None, download: bool) -> Path:
    """Download with torchvision into data_dir or the cache; return that directory."""
    source = _SOURCES[name]
    target = _STANDARD_PLACES[1] if data_dir is None else data_dir.expanduser()
    reason = "downloading is switched off"
    if download:
        from torchvision import datasets

        try:
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=target) as partial:
                with redirect_stdout(StringIO()):  # torchvision prints every failed mirror
                    getattr(datasets, source.torchvision_name)(partial, train=True, download=True)
                folder = target / source.folder
                folder.mkdir(parents=True, exist_ok=True)
                for file in (Path(partial) / source.folder).iterdir():
                    file.replace(folder / file.name)
            return target
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            reason = f"the download failed ({error})"
    files = [f"{file}.gz" if source.files == _IDX_FILES else file for file in source.files]
    archive = _ARCHIVES.get(name)
    places = ", ".join(str(root) for root in _roots(data_dir))
    raise FileNotFoundError(
        f"{name} is in none of {places}, and {reason}. Put {', '.join(files)} into "
        f"{target / source.folder}{f', or {archive} into {target}' if archive else ''}{source.hint}"
    )
