"""Damaged files of data sets: an error that names them, never a traceback of a decoder."""

import gzip
import pickle
import random
import tarfile

import numpy as np
import pytest
from PIL import Image

from deeprep.data import load_data
from deeprep.data.mnist_cifar import read_idx


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def damages(content, count):
    """Copies of a file: cut short, or with one byte another."""
    draw = random.Random(0)
    for _ in range(count):
        at = draw.randrange(len(content))
        yield content[:at]
        yield content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_idx_file_is_named(tmp_path, suffix):
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    whole = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    content = gzip.compress(idx(whole), mtime=0) if suffix else idx(whole)
    found = []
    for damaged in [*damages(content, 100), *(content[:n] for n in range(20))]:
        path.write_bytes(damaged)
        try:
            found.append(read_idx(path))
        except ValueError as error:
            found.append(str(error))
    messages = [each for each in found if isinstance(each, str)]
    assert all(message.startswith(f"{path} ") for message in messages)
    assert len(messages) > 0.5 * len(found)
    # A flipped pixel is one: only the compressed format knows of it.
    assert all(each.shape == whole.shape for each in found if not isinstance(each, str))
    if suffix:
        assert all((each == whole).all() for each in found if not isinstance(each, str))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with b'', expected an IDX file"),
        (b"\0\0\x08\x03\0\0", "starts with .*, expected an IDX file"),
        (b"\0\0\x08\x02" + b"\xff" * 8 + b"x", r"holds 1 values, expected \(4294967295, 42949672"),
    ],
)
def test_an_idx_header_that_makes_no_sense_is_named(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} {message}"):
        read_idx(path)


def test_a_label_without_a_class_is_named(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((3, 28, 28))))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([1, 200, 2])))
    message = r"train-labels-idx1-ubyte holds label 200, expected one of the 10 classes of mnist"
    with pytest.raises(ValueError, match=message):
        load_data("mnist", data_dir=tmp_path)


def write_cifar100(folder):
    """Files with the names of the published ones, and other content."""
    folder.mkdir(parents=True)
    sample = {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [0]}
    for name, content in (
        ("train", sample),
        ("test", sample),
        ("meta", {"fine_label_names": [str(k) for k in range(100)]}),
    ):
        (folder / name).write_bytes(pickle.dumps(content))


def test_a_cifar_file_that_is_not_the_published_one_is_named(tmp_path):
    folder = tmp_path / "cifar-100-python"
    write_cifar100(folder)
    with pytest.raises(ValueError, match=rf"^{folder} is damaged \(train, test, meta\), expected"):
        load_data("cifar100", data_dir=tmp_path)


def test_a_damaged_cifar_archive_is_named(tmp_path):
    write_cifar100(tmp_path / "made" / "cifar-100-python")
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "made" / "cifar-100-python", "cifar-100-python")
    with pytest.raises(ValueError, match=rf"^{archive} is damaged \(train, test, meta\), expected"):
        load_data("cifar100", data_dir=tmp_path)
    for damaged in damages(archive.read_bytes(), 10):
        archive.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^{archive} is damaged"):
            load_data("cifar100", data_dir=tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_a_broken_image_is_named(tmp_path, suffix):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / f"broken{suffix}"
    pixels = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    messages = []
    for damaged in [*damages(path.read_bytes(), 40), b"", b"text"]:
        path.write_bytes(damaged)
        try:
            load_data("image-folder", data_dir=tmp_path, image_size=8)
        except ValueError as error:
            messages.append(str(error))
    assert all(message.startswith(f"{path} is damaged or not an image (") for message in messages)
    assert len(messages) > 20
