"""Weights from files: which files are found and read, and which fit a model."""

import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deeprep.models import FittedImages
from deeprep.models.loaded import LoadedModel
from deeprep.models.weights import (
    fit_state,
    load_state,
    num_outputs_of,
    read_state,
    weight_files,
)


def net(outputs=3):
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, outputs))


def test_globs_in_natural_order_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("e-10.pt", "e-9.pt", "e-100.pt", "f.pt"):
        (tmp_path / name).touch()
    found = weight_files(["f.pt", "e-*.pt", "e-9.pt"])
    assert [path.name for path in found] == ["e-9.pt", "e-10.pt", "e-100.pt", "f.pt"]
    with pytest.raises(FileNotFoundError, match=r"weights g-\*.pt matches no file"):
        weight_files(["g-*.pt"])
    with pytest.raises(FileNotFoundError, match=r"weights g.pt does not exist"):
        weight_files(["g.pt"])


@pytest.mark.parametrize(
    "content",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "model": state, "optimizer": {"state": {}}},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"module": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {"model_state_dict": {f"model.{k}": v for k, v in state.items()}},
    ],
)
def test_states_of_trainers_and_wrappers(tmp_path, content):
    model, other = net(), net()
    torch.save(content(model.state_dict()), tmp_path / "a.pt")
    load_state(other, fit_state(read_state(tmp_path / "a.pt"), other), "a.pt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_safetensors_with_tied_tensors(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    save_file({"embedding.weight": torch.ones(4, 3)}, tmp_path / "a.safetensors")
    load_state(model, read_state(tmp_path / "a.safetensors"), "a.safetensors")
    assert (model.head.weight == 1).all()


def test_a_prefix_that_is_the_models_own_stays():
    model = nn.Sequential()
    model.add_module("module", nn.Linear(2, 2))
    state = model.state_dict()
    assert fit_state(state, model).keys() == state.keys()
    inside = FittedImages(nn.Linear(2, 2))
    assert list(fit_state(inside.state_dict(), inside.network)) == ["weight", "bias"]


def test_old_batch_norms_without_a_counter_fit():
    model = net()
    state = {k: v for k, v in net().state_dict().items() if "num_batches" not in k}
    load_state(model, state, "old.pt")
    assert torch.equal(model[0].weight, state["0.weight"])


def test_what_does_not_fit_is_listed_and_nothing_is_loaded():
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {**net(7).state_dict(), **{f"extra.{i}": torch.ones(1) for i in range(9)}}
    del state["0.weight"], state["0.bias"]
    with pytest.raises(ValueError, match=r"weights a\.pt do not fit a Sequential") as raised:
        load_state(model, state, "a.pt")
    message = str(raised.value)
    assert "2 missing (0.weight, 0.bias)" in message
    assert "9 unexpected (extra.0, extra.1, extra.2, extra.3, ...)" in message
    assert "2 of another shape (3.weight is (7, 5), expected (3, 5)" in message
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor), name


def test_outputs_are_told_from_the_shapes_of_the_head_alone():
    assert num_outputs_of(net(7).state_dict(), net(3), 3) == 7
    assert num_outputs_of(net(3).state_dict(), net(3), 3) == 3
    wider = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 7))
    assert num_outputs_of(wider.state_dict(), net(3), 3) == 3


class Whole(nn.Linear):
    """A model that somebody pickled whole."""


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pt", lambda p: p.write_bytes(b""), "damaged or holds no state dict"),
        ("a.pt", lambda p: p.write_bytes(b"PK\x03\x04 cut"), "damaged"),
        ("a.pt", lambda p: p.write_text("hello"), "damaged or holds"),
        ("a.safetensors", lambda p: p.write_bytes(b"12345678{}"), "damaged"),
        ("a.pt", lambda p: torch.save(Whole(1, 1), p), "code is never loaded"),
        ("a.pt", lambda p: torch.save([1, 2], p), "holds a list, expected a state dict"),
        ("a.pt", lambda p: torch.save({"epoch": 3}, p), "holds a dict with epoch, expected"),
        ("a.pt", lambda p: p.mkdir(), "a.pt is not a file"),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_state(tmp_path / name)


def damages(content, count):
    """Copies of a file: cut short, or with one bit flipped."""
    draw = random.Random(0)
    for _ in range(count):
        at = draw.randrange(len(content))
        yield content[:at]
        yield content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


@pytest.mark.parametrize("name", ["a.pt", "old.pt", "a.safetensors"])
def test_a_damaged_file_is_named_and_changes_nothing(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(net().state_dict(), path, _use_new_zipfile_serialization=name == "a.pt")
    else:
        save_file(net().state_dict(), path)
    messages = []
    for damaged in damages(path.read_bytes(), 40):
        path.write_bytes(damaged)
        model = LoadedModel("mine", net(), 3, build=net)
        before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
        try:
            model.load_weights(path)
        except ValueError as error:
            messages.append(str(error))
            after = model.module.state_dict()
            assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(message.startswith(f"weights {path} ") for message in messages)
    assert len(messages) > 40


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3, "of type int"),
        (None, "of type NoneType"),
        (torch.zeros(5, 4).to_sparse(), "sparse_coo"),
        (torch.zeros(5, 4, device="meta"), "without numbers"),
        (torch.zeros(5, 4, dtype=torch.complex64), "torch.complex64"),
    ],
)
def test_what_is_no_tensor_of_numbers_is_named_and_nothing_is_loaded(tmp_path, value, kind):
    path = tmp_path / "a.pt"
    torch.save({**net().state_dict(), "0.weight": value}, path)
    model = net()
    before = model[3].weight.clone()
    message = rf"weights {path} do not fit .*: 1 of another kind \(0\.weight is {kind}\)"
    with pytest.raises(ValueError, match=message):
        load_state(model, read_state(path), str(path))
    assert torch.equal(model[3].weight, before)


def test_a_file_that_holds_itself_ends(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt holds a dict with model, expected a state dict"):
        read_state(tmp_path / "a.pt")
