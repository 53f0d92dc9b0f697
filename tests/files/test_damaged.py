"""Files with a damaged header: an error that names them, or else the right numbers."""

import errno
import io
import mmap
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deeprep.files import mapped_rows
from deeprep.files.shards import ArrayFiles

FEATURES = torch.randn(100, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(100) % 5


def damages(content, num_bytes):
    """Copies of a file with one bit flipped, or one byte another, within its first bytes."""
    draw = random.Random(0)
    for i in range(num_bytes):
        for other in (content[i] ^ 1 << draw.randrange(8), draw.randrange(256), ord(" "), ord("0")):
            if other != content[i]:
                yield content[:i] + bytes([other]) + content[i + 1 :]


def read(argument, path):
    """What a file holds, or the error about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of what looks like a header of Python 2
        try:
            array = ArrayFiles(argument, path)
        except (ValueError, TypeError) as error:
            return str(error)
        return array.read(0, array.num_rows)


@pytest.mark.parametrize("argument", ["features", "labels"])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_damaged_header_is_no_other_array(tmp_path, argument, suffix):
    path = tmp_path / f"damaged{suffix}"
    wanted = FEATURES if argument == "features" else LABELS
    if suffix == ".npy":
        np.save(path, wanted.numpy())
        num_bytes = 128
    else:
        save_file({"x": FEATURES, "y": LABELS}, path, {"by": "us"})
        num_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    found = []
    for damaged in damages(path.read_bytes(), num_bytes):
        path.write_bytes(damaged)
        found.append(read(argument, path))
    messages = [each for each in found if isinstance(each, str)]
    assert all(str(path) in message for message in messages)
    assert all(torch.equal(each, wanted) for each in found if not isinstance(each, str))
    assert len(messages) > 0.7 * len(found)


def test_what_follows_an_array_is_refused(tmp_path):
    """It may be the rest of an array whose header is damaged."""
    for name in ("x-0.npy", "x-1.npy"):
        np.save(tmp_path / name, FEATURES.numpy())
    with (tmp_path / "x-1.npy").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"x-1\.npy has 2932 bytes, expected 2928 for shape \(100"):
        ArrayFiles("features", f"{tmp_path}/x-*.npy")


def test_a_file_that_must_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    np.save(path, FEATURES.numpy())

    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(np.lib.format, "open_memmap", denied)
    with pytest.raises(PermissionError, match=r"x\.npy"):
        ArrayFiles("features", path)


@pytest.mark.parametrize("way", ["mapped", "side by side", "copied"])
def test_a_file_that_the_system_cannot_read_is_named(tmp_path, monkeypatch, way):
    for name in ("x-0.npy", "x-1.npy"):
        np.save(tmp_path / name, np.zeros((2**16, 1), np.float32))

    def failing(*arguments, **options):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    array = ArrayFiles("features", f"{tmp_path}/x-*.npy")
    rows = 2**16 if way == "mapped" else 2**17
    if way == "mapped":
        monkeypatch.setattr(mmap, "mmap", failing)
    elif way == "side by side":
        monkeypatch.setattr(mapped_rows, "_map_at", lambda: failing)
    else:
        monkeypatch.setattr(mapped_rows, "_map_at", lambda: None)
        disk = type("Disk", (io.RawIOBase,), {"seek": lambda *_: 0, "readinto": failing})
        monkeypatch.setattr(Path, "open", lambda *arguments, **options: disk())
    with pytest.raises(OSError, match=r"Cannot allocate memory: '.*x-0\.npy'$"):
        _ = array.read(0, rows) if way == "mapped" else array.read_apart(0, rows)
