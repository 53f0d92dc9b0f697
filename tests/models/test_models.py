"""Architectures: their shapes, layer names and initialisations, and what they refuse."""

import pytest
import torch
from torch import nn

from deeprep.models import LayerStack, ModelSettings, VisionModel, build_model, check_architecture
from deeprep.models.stack import initialize
from deeprep.run.defaults import resolve
from deeprep.run.settings import Settings


def build(arch, input_shape=(1, 8, 8), num_classes=10, **options):
    settings = resolve(Settings(model=ModelSettings(arch=arch, **options)))
    return build_model(settings.model, input_shape, num_classes)


@pytest.mark.parametrize(
    ("arch", "nonlinear"), [("linear", 0), ("mlp", 7), ("hybrid", 3)], ids=lambda v: str(v)
)
def test_architectures_of_the_paper(arch, nonlinear):
    model = build(arch, depth=8, width=16)
    assert model.probe_layers == [f"layer{index}" for index in range(1, 8)]
    layers = [model.get_submodule(name) for name in model.probe_layers]
    kinds = [[type(module) for module in layer] for layer in layers]
    wanted = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [wanted] * nonlinear + [[nn.Linear]] * (7 - nonlinear)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 8, "an L-layer net has L weight matrices, the last is the classifier"
    assert all(linear.bias is None for linear in linears)
    assert model(torch.randn(4, 1, 8, 8)).shape == (4, 10)


def test_bias_and_batch_norm_flags():
    model = build("mlp", width=16, depth=3, bias=True, batch_norm=False)
    assert [type(module) for module in model.layer1] == [nn.Linear, nn.ReLU]
    assert model.layer1.linear.bias.abs().max() == 0


def test_a_linear_network_multiplies_its_matrices():
    model = build("linear", (6,), 3, width=5, depth=3)
    inputs = torch.randn(4, 6)
    product = model.classifier.weight @ model.layer2.linear.weight @ model.layer1.linear.weight
    torch.testing.assert_close(model(inputs), inputs @ product.T)


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3)])
def test_orthogonal_weights_have_equal_singular_values(shape):
    linear = nn.Linear(shape[1], shape[0])
    initialize(linear, "orthogonal", 0.3)
    values = torch.linalg.svdvals(linear.weight)
    torch.testing.assert_close(values, torch.full((min(shape),), 0.3))
    assert linear.bias.abs().max() == 0


def test_gaussian_weights_keep_the_norm_up_to_the_scale():
    linear = nn.Linear(2000, 2000, bias=False)
    torch.manual_seed(0)
    initialize(linear, "gaussian", 0.5)
    inputs = torch.randn(1, 2000)
    ratio = (linear(inputs).norm() / inputs.norm()).item()
    assert ratio == pytest.approx(0.5, rel=0.05)


def test_default_init_is_that_of_pytorch():
    torch.manual_seed(0)
    model = LayerStack((6,), 3, depth=2, width=5)
    torch.manual_seed(0)
    torch.testing.assert_close(model.layer1.linear.weight, nn.Linear(6, 5, bias=False).weight)


def test_a_stack_of_resolved_settings_can_keep_pytorchs_init():
    settings = resolve(Settings(model=ModelSettings(init="default", depth=2, width=5)))
    torch.manual_seed(0)
    model = build_model(settings.model, (6,), 3)
    torch.manual_seed(0)
    torch.testing.assert_close(model.layer1.linear.weight, nn.Linear(6, 5, bias=False).weight)


def test_torchvision_models_accept_small_grey_images():
    model = build("resnet18", (1, 8, 8), 7)
    assert isinstance(model, VisionModel)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    assert model.network.fc.out_features == 7


def test_images_are_enlarged_to_what_the_network_needs_and_no_more():
    model = VisionModel("squeezenet1_1", (3, 16, 24), 5).eval()
    sizes = []
    model.network.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape))
    model(torch.zeros(1, 3, 16, 24))
    model(torch.zeros(1, 1, 40, 40))
    assert sizes == [(1, 3, 32, 48), (1, 3, 40, 40)]


def test_vision_transformers_get_the_one_size_they_take():
    with torch.device("meta"):  # shapes only: the weights are large
        model = VisionModel("vit_b_32", (3, 32, 32), 5)
        assert model(torch.zeros(1, 3, 300, 200)).shape == (1, 5)


def test_auxiliary_classifiers_are_left_out():
    with torch.device("meta"):
        assert VisionModel("googlenet", (3, 32, 32), 5).network.aux1 is None


def test_vectors_into_a_vision_model_are_refused():
    with pytest.raises(
        ValueError, match=r"samples of shape \(50,\), expected images .* for arch resnet18"
    ):
        build("resnet18", (50,), 3)


def test_unknown_names_suggest_known_ones():
    with pytest.raises(ValueError, match="did you mean resnet50"):
        check_architecture("resnet5O")
    with pytest.raises(ValueError, match=r"arch is 'zzz', .*; known: linear, mlp, hybrid, alexnet"):
        check_architecture("zzz")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"depth": 1, "width": 5}, "depth"),
        ({"depth": 3, "width": 0}, "width"),
        ({"depth": 3, "width": 5, "linear_layers": 3}, "linear_layers"),
        ({"depth": 3, "width": 5, "init": "xavier"}, "init"),
    ],
)
def test_stack_errors_name_the_argument(options, name):
    with pytest.raises(ValueError, match=f"^{name} is "):
        LayerStack((6,), 3, **options)
