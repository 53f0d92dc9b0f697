"""What is no model, no loader, no batch: each error says what was found and what was expected."""

from __future__ import annotations

import pytest
import torch
from probe_models import ResidualNet, hooks_of, make_batches
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

import deeprep
from deeprep import LayerProbe, analyze, class_scatter

INPUTS, LABELS = torch.randn(12, 4), torch.arange(12) % 3
SAMPLES = TensorDataset(INPUTS, LABELS)


def plain_model():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


# ---------------------------------------------------------------- loaders and batches


@pytest.mark.parametrize(
    ("loader", "found"),
    [
        (None, r"None, expected an iterable of \(inputs, labels\) batches"),
        (7, r"a int, expected an iterable of \(inputs, labels\) batches"),
        ("digits", "a str, expected an iterable"),
        ({"inputs": INPUTS}, "a dict, expected an iterable"),
        (INPUTS, "a Tensor, expected an iterable"),
    ],
    ids=["None", "number", "name", "mapping", "tensor"],
)
def test_what_is_no_loader(loader, found):
    probe = LayerProbe(plain_model(), 3)
    probe.run([(INPUTS, LABELS)])
    for step in (probe.run, probe.score, lambda loader: analyze(plain_model(), loader, 3)):
        with pytest.raises(TypeError, match=f"loader is {found}"):
            step(loader)


@pytest.mark.parametrize("samples", [SAMPLES, Subset(SAMPLES, [0, 1])], ids=["all", "subset"])
def test_a_data_set_of_samples_is_no_loader(samples):
    with pytest.raises(ValueError, match=r"the label 0, as a data set does, .*Loader"):
        analyze(plain_model(), samples, 3)


def test_a_data_set_that_gives_batches_is_a_loader():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(make_batches())

    assert analyze(ResidualNet(), Stream(), 3).num_samples == 60
    loader = DataLoader(SAMPLES, batch_size=5)
    assert analyze(plain_model(), loader, 3).num_samples == 12


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (None, ValueError, r"loader gave None, expected \(inputs, labels\) or a mapping"),
        (INPUTS, ValueError, r"loader gave a Tensor, expected .*\[\(inputs, labels\)\]"),
        ([INPUTS], ValueError, r"loader gave a list of 1, expected \(inputs, labels\)"),
        ((1, 2, 3), ValueError, r"loader gave a tuple of 3, expected .*\(\(a, b\), labels\)"),
        ({"x": 1, "y": 2}, ValueError, "a mapping with the keys x, y, expected 'labels'"),
        ((INPUTS[0], 2), ValueError, r"a sample with the label 2, as a data set does"),
        (SAMPLES[1], ValueError, r"a sample with the label 1, as a data set does"),
        ((INPUTS, None), TypeError, "labels is a NoneType, expected a torch tensor"),
        ((INPUTS, LABELS.tolist()), TypeError, "labels is a list, expected a torch tensor"),
        ((INPUTS, LABELS[:5]), ValueError, r"labels has shape \(5,\), expected \(12,\)"),
        ((INPUTS, LABELS.float()), TypeError, "labels has dtype torch.float32, expected"),
        ((INPUTS, LABELS + 1), ValueError, r"labels\[2\] is 3, expected a class in \[0, 3\)"),
        ((None, LABELS), TypeError, "inputs is None, expected a tensor"),
        ((INPUTS.numpy(), LABELS), TypeError, "inputs is a ndarray, expected a tensor"),
    ],
)
def test_batches_that_are_broken(batch, error, message):
    model = plain_model()
    with pytest.raises(error, match=message):
        analyze(model, [(INPUTS, LABELS), batch], 3)
    assert not hooks_of(model)
    assert model.training


def test_loaders_that_are_used_up():
    with pytest.raises(ValueError, match="loader is a one-shot iterator, expected an iterable"):
        analyze(ResidualNet(), iter(make_batches()), 3, accuracy=True)
    assert analyze(ResidualNet(), iter(make_batches()), 3).num_samples == 60
    with pytest.raises(ValueError, match="loader gave no batch"):
        analyze(ResidualNet(), [], 3)


def test_sparse_features():
    for sparse in (INPUTS.to_sparse(), INPUTS.to_sparse_csr()):
        with pytest.raises(TypeError, match=r"features is a torch.sparse_\w+ tensor, expected a d"):
            class_scatter(sparse, LABELS)
        s = deeprep.ClassScatter(3, 4)
        with pytest.raises(TypeError, match=r"expected a dense one: features.to_dense\(\)"):
            s.update(sparse, LABELS)
        assert s.num_samples == 0
    with pytest.raises(TypeError, match=r"layer 'input': the input is a torch.sparse_coo"):
        analyze(plain_model(), [(INPUTS.to_sparse(), LABELS)], 3)


# ---------------------------------------------------------------- types of inputs and weights


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (plain_model(), (12, 4)),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
            (12, 1, 4, 4),
        ),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (12, 5, 4)),
    ],
    ids=["linear", "convolution", "attention"],
)
def test_inputs_of_another_type_than_the_weights(model, shape, dtype):
    message = f"inputs has dtype {dtype}, expected torch.float32, that of the model's weights"
    with pytest.raises(TypeError, match=message) as raised:
        analyze(model, [(torch.zeros(shape, dtype=dtype), LABELS)], 3)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_models_that_convert_their_inputs_are_let_be():
    class Converting(ResidualNet):
        def forward(self, inputs):
            return super().forward(inputs.float())

    batches = [(inputs.double(), labels) for inputs, labels in make_batches()]
    assert analyze(Converting(), batches, 3).num_samples == 60
    with torch.autocast("cpu", torch.bfloat16):
        halves = [(inputs.bfloat16(), labels) for inputs, labels in batches]
        assert analyze(ResidualNet(), halves, 3).num_samples == 60


def test_other_errors_of_a_model_are_its_own():
    class Failing(ResidualNet):
        def forward(self, inputs):
            raise RuntimeError("weights and biases should be the same")

    with pytest.raises(RuntimeError, match="weights and biases"):
        analyze(Failing(), make_batches(), 3)
    ids = torch.zeros(12, 4, dtype=torch.int64)

    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.linear = nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, ids):
            return self.linear(self.embedding(ids).double())

    with pytest.raises(RuntimeError, match="same dtype"):
        analyze(Mixing(), [(ids, LABELS)], 3, layers="linear")


# ---------------------------------------------------------------- models


def test_what_is_no_model():
    for model, found in ((None, "None"), (lambda x: x, "a function"), (nn.Linear, "a type")):
        with pytest.raises(TypeError, match=f"model is {found}, expected a torch.nn.Module"):
            LayerProbe(model, 3)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_takes_no_hooks():
    message = "is a TorchScript module, which takes no hooks, expected the Python module"
    model = plain_model().eval()
    scripted = torch.jit.script(model)
    for whole in (scripted, torch.jit.trace(model, INPUTS), torch.jit.freeze(scripted)):
        with pytest.raises(TypeError, match=f"model {message}"):
            analyze(whole, [(INPUTS, LABELS)], 3)
    with pytest.raises(TypeError, match=f"model {message}"):
        analyze(nn.DataParallel(scripted), [(INPUTS, LABELS)], 3)
    part = nn.Sequential(nn.Linear(4, 4), torch.jit.script(plain_model()), nn.Linear(3, 3))
    for layers in (None, "1", ["0", "*"]):
        with pytest.raises(TypeError, match=f"layer '1' {message}"):
            analyze(part, [(INPUTS, LABELS)], 3, layers=layers)
    report = analyze(part, [(INPUTS, LABELS)], 3, layers=["0", "2"])
    assert [layer.name for layer in report.layers] == ["input", "0", "2"]
    assert part[1].training
