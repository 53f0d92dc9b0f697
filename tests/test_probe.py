"""LayerProbe and analyze: right features, right layers, and a model left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

import deeprep
from deeprep import LayerProbe, analyze, class_scatter
from deeprep._layers import automatic_layers, select_layers
from deeprep.probe import reduce_features


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, inputs):
        return inputs + torch.relu(self.linear(inputs))


class ResidualNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.last_block = Block(6)  # defined out of order on purpose
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.Sequential(Block(6), Block(6))
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        hidden = self.blocks(self.stem(inputs))
        return self.head(self.norm(self.dropout(self.last_block(hidden))))


def make_batches(num_batches=3, size=20):
    labels = torch.arange(num_batches * size) % 3
    inputs = torch.randn(3, 4)[labels] + 0.5 * torch.randn(num_batches * size, 4)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def test_statistics_are_those_of_the_layers_features():
    model, batches = ResidualNet().eval(), make_batches()
    report = analyze(model, batches, 3)
    inputs = torch.cat([x for x, _ in batches])
    labels = torch.cat([y for _, y in batches])
    with torch.no_grad():
        hidden = model.blocks[0](model.stem(inputs))
    names = [layer.name for layer in report.layers]
    assert names == ["input", "blocks.0", "blocks.1", "last_block"]  # in order of execution
    expected = class_scatter(hidden, labels, full=True)
    layer = report.layers[1]
    assert layer.compression == pytest.approx(deeprep.compression(expected), rel=1e-5)
    assert layer.discrimination == pytest.approx(deeprep.discrimination(expected), rel=1e-5)
    assert layer.nc1 == pytest.approx(deeprep.metrics.nc1(expected), rel=1e-4)
    assert layer.numerical_rank == deeprep.metrics.numerical_rank(expected)
    probe = deeprep.metrics.probe(expected)
    assert layer.probe_accuracy == pytest.approx(probe.accuracy(hidden, labels))
    assert layer.ncc_accuracy == pytest.approx(
        deeprep.metrics.ncc_accuracy(expected, hidden, labels)
    )


def test_analyze_leaves_the_model_as_it_was():
    model = ResidualNet()
    model.train()
    model.norm.eval()  # a frozen BatchNorm in a training model
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    analyze(model, make_batches(), 3)
    # make_batches draws numbers, analyze must not: compare against drawing alone
    after = torch.get_rng_state()
    torch.set_rng_state(random_state)
    make_batches()
    assert torch.equal(after, torch.get_rng_state())
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_and_flags_survive_an_exception_in_the_forward(error):
    class Failing(ResidualNet):
        def forward(self, inputs):
            super().forward(inputs)
            raise error

    model = Failing()
    with pytest.raises(error):
        analyze(model, make_batches(), 3)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


def test_training_steps_can_be_probed_and_keep_their_gradients():
    model = ResidualNet()
    with LayerProbe(model, 3, layers="blocks.*") as probe:
        for inputs, labels in make_batches():
            nn.functional.cross_entropy(probe(inputs, labels), labels).backward()
        model(torch.randn(5, 4))  # outside the probe: not counted
    assert {s.num_samples for s in probe.scatters.values()} == {60}
    order = ["input", "blocks.0.linear", "blocks.0", "blocks.1.linear", "blocks.1"]
    assert list(probe.scatters) == order
    assert model.stem.weight.grad is not None
    with pytest.raises(RuntimeError, match="not attached"):
        probe(*make_batches()[0])


def test_layers_by_name_glob_and_type():
    model = ResidualNet()
    assert list(select_layers(model, ["stem", "blocks.?"])) == ["stem", "blocks.0", "blocks.1"]
    assert list(select_layers(model, nn.BatchNorm1d)) == ["norm"]
    with pytest.raises(ValueError, match=r"layers holds 'block', which matches no module; close"):
        select_layers(model, "block")


def test_automatic_layers_of_common_models():
    resnet = torchvision.models.resnet18(weights=None)
    assert list(automatic_layers(resnet)) == [f"layer{i}.{j}" for i in range(1, 5) for j in (0, 1)]
    vit = torchvision.models.vit_b_16(weights=None)
    assert list(automatic_layers(vit)) == [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    alexnet = torchvision.models.alexnet(weights=None)
    # conv + ReLU five times, then two Linear + ReLU; pooling and the classifier are left out
    expected = [f"features.{i}" for i in (1, 4, 7, 9, 11)] + ["classifier.2", "classifier.5"]
    assert list(automatic_layers(alexnet)) == expected


def test_a_module_called_twice_is_two_layers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, inputs):
            return self.linear(self.linear(inputs))

    report = analyze(Twice(), make_batches(), 3, layers="linear")
    assert [layer.name for layer in report.layers] == ["input", "linear", "linear#2"]
    assert report.layers[1].compression != report.layers[2].compression


def test_reductions():
    image = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    assert reduce_features(image, "flatten").shape == (2, 60)
    assert torch.equal(reduce_features(image, "mean"), image.mean(dim=(2, 3)))
    tokens = image[:, 0]
    assert torch.equal(reduce_features((tokens, None), "mean"), tokens.mean(dim=1))
    assert torch.equal(reduce_features({"a": image}, lambda x: x[:, :, 0, 0]), image[:, :, 0, 0])
    with pytest.raises(ValueError, match="reduce is 'max', expected"):
        LayerProbe(ResidualNet(), 3, reduce="max")
    with pytest.raises(TypeError, match="the output is a str, expected a tensor"):
        reduce_features("text", "flatten")


def test_a_layer_that_does_not_fit_is_named():
    class Shrinking(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut = nn.Identity()

        def forward(self, inputs):
            return self.cut(inputs[: len(inputs) // 2])

    with pytest.raises(
        ValueError, match=r"layer 'cut': labels has shape \(20,\), expected \(10,\)"
    ):
        analyze(Shrinking(), make_batches(), 3, layers="cut")


def test_loaders_that_cannot_serve_are_refused():
    with pytest.raises(ValueError, match="one-shot iterator"):
        analyze(ResidualNet(), iter(make_batches()), 3)
    with pytest.raises(ValueError, match="no batch"):
        analyze(ResidualNet(), [], 3)
    report = analyze(ResidualNet(), iter(make_batches()), 3, accuracy=False)
    assert report.layers[0].probe_accuracy is None


def test_nan_is_reported_with_layer_and_class():
    class Breaking(nn.Module):
        def __init__(self):
            super().__init__()
            self.spoil = nn.Identity()

        def forward(self, inputs):
            return self.spoil(inputs / (inputs[:, :1] != self.marker))

    model = Breaking()
    batches = make_batches()
    model.marker = batches[0][0][1, 0]  # a sample of class 1
    report = analyze(model, batches, 3, layers="spoil")
    assert any("layer 'spoil'" in line and "1 class (1)" in line for line in report.warnings)
    assert report.layers[1].ncc_accuracy is None
    assert not report.layers[1].compression < float("inf")
    assert report.layers[0].compression < float("inf")
