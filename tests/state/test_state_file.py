"""States as files: the same bits come back, and nothing else is taken for a state."""

import errno
import hashlib
import os
import random
import stat
import tracemalloc
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import deeprep
from deeprep import ClassScatter, class_scatter


def make_state(full=False, num_classes=3):
    labels = torch.arange(60) % 3
    features = torch.randn(3, 5)[labels] + torch.randn(60, 5)
    return class_scatter(features, labels, num_classes, full=full, ignore_index=255)


def content(path):
    """Tensors and metadata of a file, to write a damaged one."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def as_older(path):
    """Tensors and metadata of a file as it was before there were checksums."""
    tensors, metadata = content(path)
    older = {key: text for key, text in metadata.items() if not key.startswith("checksum")}
    return tensors, older | {"version": "1"}


def bits_of(state):
    """All that a state holds, as bytes: NaN is not equal to itself."""
    return {
        name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
        for name, value in state.state_dict().items()
    }


def load_quietly(path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return ClassScatter.load(path), caught


@pytest.mark.parametrize("full", [False, True])
def test_the_same_bits_come_back_and_go_on_alike(tmp_path, full):
    path = tmp_path / "state.safetensors"
    state = make_state(full)
    state.update(torch.full((1, 5), float("inf")), torch.tensor([2]))
    state.save(path)
    loaded = ClassScatter.load(str(path))
    assert bits_of(loaded) == bits_of(state)
    assert loaded.nonfinite_classes == [2]
    assert loaded.unit_roundoff == 2.0**-24
    loaded.update(torch.ones(1, 5), torch.tensor([255]))
    assert loaded.num_samples == 61


def test_a_file_says_what_its_numbers_mean(tmp_path):
    make_state(full=True).save(tmp_path / "state.safetensors")
    _, metadata = content(tmp_path / "state.safetensors")
    assert metadata["deeprep"] == deeprep.__version__
    assert metadata["full"] == "True"
    assert metadata["ignore_index"] == "255"
    assert "sumsq[k] = sum_i |z_ki - mu_k|^2, not divided" in metadata["convention"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    make_state().save(tmp_path / "state.safetensors")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)}
    assert len(modes) == 1


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    make_state().save(path)
    before = path.read_bytes()

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_state(full=True).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.safetensors"]


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_cut_short_is_refused(tmp_path, kept):
    path = tmp_path / "state.safetensors"
    make_state().save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"state.safetensors is cut short or no safetensors file"):
        ClassScatter.load(path)


def replace_tensor(name, value):
    return lambda tensors, metadata: tensors.update({name: value})


def replace_metadata(key, value):
    return lambda tensors, metadata: metadata.update({key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors, metadata: metadata.clear(), "has format None .*, expected 'deeprep.Class"),
        (replace_metadata("format", "x"), "has format 'x' in its metadata, expected 'deeprep."),
        (replace_metadata("version", "3"), r"has version '3' .* deeprep \d.*, expected '2' or '1'"),
        (replace_metadata("full", "maybe"), "has full 'maybe' .*, expected True or False"),
        (
            replace_metadata("full", "True"),
            "holds tensors counts, means, sumsq, expected .*product",
        ),
        (replace_metadata("resolution", "-1"), "has resolution '-1' .*, expected a number >= 0"),
        (replace_metadata("resolution", "nan"), "has resolution 'nan' .*, expected a number >= 0"),
        (replace_metadata("ignore_index", ""), "has ignore_index '' .*, expected a whole number"),
        (lambda tensors, metadata: tensors.pop("sumsq"), "holds tensors counts, means, expected"),
        (
            replace_tensor("means", torch.zeros(3, dtype=torch.float64)),
            r"means has shape \(3,\), expected \(K, d\)",
        ),
        (
            replace_tensor("counts", torch.ones(4, dtype=torch.int64)),
            r"counts has shape \(4,\) and dtype torch.int64, expected \(3,\) and torch.int64",
        ),
        (
            replace_tensor("sumsq", torch.ones(3)),
            r"sumsq has shape \(3,\) and dtype torch.float32, expected \(3,\) and torch.float64",
        ),
        (
            replace_tensor("counts", torch.tensor([1, -2, 3])),
            r"counts\[1\] is -2, expected >= 0",
        ),
        (
            replace_tensor("sumsq", torch.tensor([1, 2, -0.5], dtype=torch.float64)),
            r"sumsq\[2\] is -0.5, expected >= 0",
        ),
    ],
)
def test_what_is_no_consistent_state_is_refused(tmp_path, damage, message):
    """Whoever wrote it: without checksums, which would tell first."""
    path = tmp_path / "state.safetensors"
    make_state().save(path)
    tensors, metadata = as_older(path)
    damage(tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=f"state.safetensors:? {message}"):
        load_quietly(path)


def test_no_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors does not exist, expected"):
        ClassScatter.load(tmp_path / "none.safetensors")
    with pytest.raises(IsADirectoryError, match="is a directory, expected a file"):
        ClassScatter.load(tmp_path)


@pytest.mark.parametrize("full", [False, True])
def test_no_flipped_bit_is_taken_for_other_numbers(tmp_path, full):
    path = tmp_path / "state.safetensors"
    state = make_state(full)
    state.save(path)
    whole, wanted = path.read_bytes(), bits_of(state)
    draw = random.Random(0)
    header_bits = 8 * (8 + int.from_bytes(whole[:8], "little"))
    # The header, of which every bit means something else, and the numbers.
    bits = [draw.randrange(header_bits) for _ in range(400)]
    bits += [draw.randrange(header_bits, 8 * len(whole)) for _ in range(200)]
    messages = []
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            loaded, caught = load_quietly(path)
        except ValueError as error:
            messages.append(str(error))
        else:
            assert bits_of(loaded) == wanted
            assert not caught
    assert len(messages) > 590  # a space in the header may become another
    assert all(message.startswith((f"{path} ", f"{path}: ")) for message in messages)


@pytest.mark.parametrize("full", [False, True])
def test_no_cut_is_taken_for_a_file(tmp_path, full):
    path = tmp_path / "state.safetensors"
    make_state(full).save(path)
    whole = path.read_bytes()
    for kept in [*range(0, 16), *range(16, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"state\.safetensors is cut short or no safetensors"):
            ClassScatter.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=r"state\.safetensors is cut short or no safetensors"):
        ClassScatter.load(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda tensors, metadata: tensors["sumsq"].mul_(2),
            r"is damaged: sumsq has checksum \w{32}, expected \w{32}, which it records itself",
        ),
        (
            lambda tensors, metadata: tensors.update(
                means=tensors["means"].reshape(5, 3), counts=torch.zeros(5, dtype=torch.int64)
            ),
            "is damaged: its header has checksum",
        ),
        (replace_metadata("ignore_index", "254"), "is damaged: its header has checksum"),
        (replace_metadata("resolution", "0.5"), "is damaged: its header has checksum"),
        (replace_metadata("deeprep", "0.0.1"), "is damaged: its header has checksum"),
        (
            lambda tensors, metadata: metadata.pop("checksum"),
            r"is damaged: its header has checksum \w{32}, expected None",
        ),
        (lambda tensors, metadata: metadata.pop("checksum.means"), "is damaged: its header"),
        # what is younger than checksums stays so
        (replace_metadata("version", "1"), "is damaged: its header has checksum"),
    ],
)
def test_what_was_changed_is_named(tmp_path, damage, message):
    path = tmp_path / "state.safetensors"
    make_state().save(path)
    tensors, metadata = content(path)
    damage(tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=f"state.safetensors {message}"):
        ClassScatter.load(path)


def test_an_older_file_is_read_with_a_warning(tmp_path):
    path = tmp_path / "state.safetensors"
    state = make_state(full=True)
    state.save(path)
    tensors, metadata = as_older(path)
    save_file(tensors, path, metadata)
    with pytest.warns(UserWarning, match=r"state\.safetensors .* without a checksum") as caught:
        loaded = ClassScatter.load(path)
    assert caught[0].filename == __file__
    assert bits_of(loaded) == bits_of(state)
    loaded.save(path)
    again, caught = load_quietly(path)
    assert bits_of(again) == bits_of(state)
    assert not caught


def test_a_checksum_is_what_the_file_says_it_is(tmp_path):
    """So that others can check it."""
    make_state().save(tmp_path / "state.safetensors")
    tensors, metadata = content(tmp_path / "state.safetensors")
    assert "checksum.X: BLAKE2b, 128 bits, of the bytes of tensor X" in metadata["convention"]
    for name, tensor in tensors.items():
        digest = hashlib.blake2b(tensor.numpy().tobytes(), digest_size=16).hexdigest()
        assert metadata[f"checksum.{name}"] == digest


def test_a_full_disk_names_the_file_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    make_state().save(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'$"):
        make_state(full=True).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.safetensors"]


def test_large_tensors_are_not_copied_to_be_written_or_checked(tmp_path):
    state = ClassScatter(1000, 1000)
    tracemalloc.start()
    state.save(tmp_path / "state.safetensors")
    ClassScatter.load(tmp_path / "state.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < state.means.nbytes / 8
