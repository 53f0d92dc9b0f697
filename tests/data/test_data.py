"""Data sets: what is read from where, subsets, normalisation, and errors about missing files."""

import gzip
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deeprep.data import Batches, Data, load_data, mnist_cifar, orthogonal
from deeprep.data.mnist_cifar import read_idx
from deeprep.data.tensors import standardize

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    opener = gzip.open if path.suffix == ".gz" else open
    path.parent.mkdir(parents=True, exist_ok=True)
    with opener(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


def write_mnist_like(folder, suffix, num_samples=20):
    pixels = np.arange(num_samples * 28 * 28).reshape(num_samples, 28, 28) % 256
    write_idx(folder / f"train-images-idx3-ubyte{suffix}", pixels)
    write_idx(folder / f"train-labels-idx1-ubyte{suffix}", np.arange(num_samples) % 10)
    return pixels


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A working directory, a home and standard places without any data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mnist_cifar, "_STANDARD_PLACES", (Path("data"), tmp_path / "cache"))
    return tmp_path


def test_digits_are_the_real_ones():
    data = load_data("digits", normalize=False)
    assert data.inputs.shape == (1797, 1, 8, 8)
    assert (data.inputs.min(), data.inputs.max()) == (0, 1)
    assert data.inputs.dtype == torch.float32
    assert data.labels.bincount().tolist()[:3] == [178, 182, 177]
    assert data.mean is None


def test_computed_normalisation_is_recorded():
    data = load_data("digits")
    assert data.inputs.mean().item() == pytest.approx(0, abs=1e-6)
    assert data.inputs.std(correction=0).item() == pytest.approx(1, rel=1e-6)
    raw = load_data("digits", normalize=False)
    torch.testing.assert_close(data.inputs * data.std[0] + data.mean[0], raw.inputs)


def test_a_constant_channel_is_only_centred():
    images = torch.ones(4, 1, 2, 2)
    data = standardize(Data(images, torch.tensor([0, 1, 0, 1]), ("a", "b"), "grey"))
    assert data.inputs.abs().max() == 0


def test_classes_are_renumbered_in_the_order_given():
    everything = load_data("digits", normalize=False)
    data = load_data("digits", classes=[7, 2], normalize=False)
    assert data.class_names == ("7", "2")
    torch.testing.assert_close(
        data.inputs[data.labels == 0], everything.inputs[everything.labels == 7]
    )


def test_samples_per_class_are_drawn_by_the_seed():
    first = load_data("digits", classes=[4], samples_per_class=9, seed=1)
    again = load_data("digits", classes=[4], samples_per_class=9, seed=1)
    other = load_data("digits", classes=[4], samples_per_class=9, seed=2)
    assert first.labels.bincount().tolist() == [9] * 4
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_class": 500}, r"samples_per_class is 500, expected at most 178.*'0'"),
        ({"classes": [3, 12]}, r"classes is \[3, 12\], expected in 0..9 for digits"),
        ({"classes": [11]}, r"classes is 11, expected at most 10 for digits"),
    ],
)
def test_impossible_subsets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_data("digits", **options)


def test_unknown_data_set_names_the_known_ones():
    with pytest.raises(ValueError, match=r"name is 'mnits', expected one of digits, orthogonal, "):
        load_data("mnits")


def test_orthogonal_data_are_orthonormal_up_to_the_noise():
    data = orthogonal(num_classes=4, samples_per_class=5, dimension=30, noise=0.0, seed=3)
    gram = data.inputs @ data.inputs.T
    torch.testing.assert_close(gram, torch.eye(20), atol=1e-6, rtol=0)
    noisy = orthogonal(num_classes=4, samples_per_class=5, dimension=30, noise=0.7, seed=3)
    distance = torch.linalg.norm(noisy.inputs - data.inputs).item()
    assert distance == pytest.approx(0.7, rel=1e-5)
    assert data.labels.tolist() == [k for k in range(4) for _ in range(5)]


def test_orthogonal_defaults_are_those_of_figure_4a():
    data = load_data("orthogonal")
    assert data.inputs.shape == (30, 50)
    assert data.num_classes == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"dimension": 29}, "dimension"),
        ({"num_classes": 1}, "num_classes"),
        ({"samples_per_class": 0}, "samples_per_class"),
        ({"noise": -1.0}, "noise"),
    ],
)
def test_orthogonal_errors_name_the_argument(options, name):
    with pytest.raises(ValueError, match=f"^{name} is "):
        orthogonal(**options)


@pytest.mark.skipif(not DEBIAN_FASHION.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_debian_fashion_mnist_is_found_without_a_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    data = load_data("fashion-mnist", download=False)
    assert data.inputs.shape == (60000, 1, 28, 28)
    assert data.labels.bincount().tolist() == [6000] * 10
    assert data.class_names[9] == "Ankle boot"
    # The published constants are those of these images.
    assert data.inputs.mean().item() == pytest.approx(0, abs=1e-3)
    assert data.inputs.std().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["data/MNIST/raw", "cache/mnist", "data/mnist"])
def test_mnist_is_found_in_standard_places_in_any_form(nowhere, place, suffix):
    pixels = write_mnist_like(nowhere / place, suffix)
    data = load_data("mnist", normalize=False, download=False)
    np.testing.assert_allclose(data.inputs[:, 0].numpy() * 255, pixels, atol=1e-4)
    assert data.labels.tolist() == [k % 10 for k in range(20)]


def test_data_dir_comes_first_and_may_hold_the_files_themselves(nowhere):
    write_mnist_like(nowhere / "data/mnist", "", num_samples=10)
    write_mnist_like(nowhere / "mine", ".gz", num_samples=20)
    assert len(load_data("mnist", data_dir=nowhere / "mine").labels) == 20


def test_files_in_a_standard_place_itself_are_not_taken_for_either_mnist(nowhere):
    write_mnist_like(nowhere / "data", "")
    with pytest.raises(FileNotFoundError):
        load_data("fashion-mnist", download=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08\x01\0\0\0\x05abc", r"holds 3 values, expected \(5,\)"),
        (b"GIF8", "starts with b'GIF8', expected an IDX file of bytes"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, content, message):
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path)


def test_a_truncated_gzip_is_named(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes(1000))[:-20])
    with pytest.raises(ValueError, match=r"x\.gz is damaged .*expected a complete gzip file"):
        read_idx(path)


def test_missing_files_say_what_to_put_where(nowhere):
    with pytest.raises(FileNotFoundError) as missing:
        load_data("fashion-mnist", data_dir=nowhere / "mine", download=False)
    message = str(missing.value)
    assert "apt install dataset-fashion-mnist" in message
    assert f"train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz into {nowhere}/mine" in message
    with pytest.raises(FileNotFoundError, match=r"or cifar-100-python\.tar\.gz into .*cache"):
        load_data("cifar100", download=False)


def fake_download(succeed):
    def dataset(root, train, download):
        raw = Path(root) / "MNIST" / "raw"
        write_mnist_like(raw, "")
        if not succeed:
            raise RuntimeError("Error downloading train-labels")

    return dataset


def test_a_failed_download_leaves_nothing_behind(nowhere, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", fake_download(succeed=False))
    with pytest.raises(FileNotFoundError, match=r"download failed .Error downloading train-labels"):
        load_data("mnist")
    assert list((nowhere / "cache").rglob("*")) == []


def test_a_download_is_kept_and_spares_other_files(nowhere, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", fake_download(succeed=True))
    (nowhere / "mine/MNIST/raw").mkdir(parents=True)
    (nowhere / "mine/MNIST/raw/notes.txt").write_text("mine")
    assert len(load_data("mnist", data_dir=nowhere / "mine").labels) == 20
    monkeypatch.setattr("torchvision.datasets.MNIST", fake_download(succeed=False))
    assert len(load_data("mnist", data_dir=nowhere / "mine").labels) == 20
    assert (nowhere / "mine/MNIST/raw/notes.txt").read_text() == "mine"


def write_cifar10(folder):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [*names, "truck"]}))
    pixels = rng.integers(0, 256, (6, 10, 3072), dtype=np.uint8)
    files_of_batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for batch, name in zip(pixels, files_of_batches, strict=True):
        content = {"data": batch, "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content))
    return pixels[:5].reshape(50, 3, 32, 32)


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_is_read_from_its_folder_or_its_archive(nowhere, monkeypatch, packed):
    # torchvision compares checksums with those of the published files, which these are not.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    folder = nowhere / "data/cifar-10-batches-py"
    pixels = write_cifar10(folder)
    if packed:
        with tarfile.open(nowhere / "data/cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(folder, "cifar-10-batches-py")
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    data = load_data("cifar10", download=False)
    assert data.class_names[9] == "truck"
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    std = torch.tensor([0.2023, 0.1994, 0.2010]).reshape(3, 1, 1)
    wanted = (torch.from_numpy(pixels).float() / 255 - mean) / std
    torch.testing.assert_close(data.inputs, wanted)
    assert folder.exists() != packed, "an archive is read without unpacking it where it lies"


def test_image_folder_reads_resizes_and_selects(tmp_path):
    for label, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / "train" / label).mkdir(parents=True)
        for index, size in enumerate([(20, 10), (10, 20), (8, 8)]):
            Image.new("RGB", size, colour).save(tmp_path / "train" / label / f"{index}.png")
    options = {"data_dir": tmp_path, "image_size": 6, "normalize": False}
    data = load_data("image-folder", **options)
    assert data.inputs.shape == (6, 3, 6, 6)
    assert data.class_names == ("blue", "red")
    assert data.inputs[data.labels == 1].amin(dim=(0, 2, 3)).tolist() == [1, 0, 0]
    assert len(load_data("image-folder", samples_per_class=2, **options).labels) == 4


def test_image_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_dir is .*expected an existing folder"):
        load_data("image-folder", data_dir=tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        load_data("image-folder", data_dir=tmp_path)
    with pytest.raises(ValueError, match="data_dir is None, expected the folder"):
        load_data("image-folder")


def test_batches_cover_every_sample_once_in_the_order_of_the_seed():
    inputs, labels = torch.arange(10.0), torch.arange(10)
    batches = Batches(inputs, labels, batch_size=4, shuffle_seed=5)
    loops = [torch.cat([y for _, y in batches]).tolist() for _ in range(2)]
    assert loops[0] == loops[1] != list(range(10))
    assert sorted(loops[0]) == list(range(10))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert all(torch.equal(x.long(), y) for x, y in batches)
    assert torch.cat([y for _, y in batches.shuffled(6)]).tolist() != loops[0]


def test_batches_in_order_are_views():
    inputs = torch.arange(10.0)
    first, _ = next(iter(Batches(inputs, torch.arange(10), batch_size=0)))
    assert first.data_ptr() == inputs.data_ptr()
    assert len(first) == 10


def test_no_batch_has_a_single_sample_unless_there_is_only_one():
    sizes = [len(y) for _, y in Batches(torch.zeros(9), torch.zeros(9), batch_size=4)]
    assert sizes == [4, 5]
    assert [len(y) for _, y in Batches(torch.zeros(1), torch.zeros(1), batch_size=4)] == [1]


def test_batches_errors():
    with pytest.raises(ValueError, match="3 and 2, expected one length >= 1"):
        Batches(torch.zeros(3), torch.zeros(2), 1)
    with pytest.raises(ValueError, match="0 and 0, expected one length >= 1"):
        Batches(torch.zeros(0), torch.zeros(0), 1)
    with pytest.raises(ValueError, match="batch_size is -1, expected >= 0"):
        Batches(torch.zeros(3), torch.zeros(3), -1)
