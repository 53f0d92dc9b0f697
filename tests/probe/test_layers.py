"""Selection of layers: what a reader of the model would name, whatever the model is wrapped in."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from deeprep.probe.layers import (
    automatic_layers,
    embedding_layers,
    innermost_model,
    model_to_run,
    named_layers,
    select_layers,
)


class Block(nn.Module):
    """Two weights and no list: what a residual block is to the eye of the selection."""

    def __init__(self, width=6):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, inputs):
        return inputs + self.second(torch.relu(self.first(inputs)))


class OtherBlock(Block):
    pass


class Holder(nn.Module):
    """A module with the given children, which it runs in turn."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, inputs):
        for child in self.children():
            inputs = child(inputs)
        return inputs


class Stage(Holder):
    pass


def auto(model):
    return list(automatic_layers(model))


def test_layers_by_name_glob_and_type():
    model = Holder(stem=nn.Linear(4, 6), blocks=nn.Sequential(Block(), Block()), norm=nn.Identity())
    assert list(select_layers(model, ["stem", "blocks.?"])) == ["stem", "blocks.0", "blocks.1"]
    assert list(select_layers(model, nn.Identity)) == ["norm"]
    assert list(select_layers(model, "auto")) == list(select_layers(model, None))
    with pytest.raises(ValueError, match=r"layers holds 'block', which matches no module; close"):
        select_layers(model, "block")
    with pytest.raises(TypeError, match="layers holds 3, expected a name, a glob or a module type"):
        select_layers(model, [3])


def test_automatic_layers_of_common_models():
    models = torchvision.models
    with torch.device("meta"):
        resnet, vit, alexnet, mobilenet = (
            make(weights=None)
            for make in (models.resnet18, models.vit_b_16, models.alexnet, models.mobilenet_v2)
        )
    assert auto(resnet) == [f"layer{i}.{j}" for i in range(1, 5) for j in (0, 1)]
    assert auto(vit) == [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    # conv + ReLU five times, then two Linear + ReLU; pooling and the classifier are left out
    expected = [f"features.{i}" for i in (1, 4, 7, 9, 11)] + ["classifier.2", "classifier.5"]
    assert auto(alexnet) == expected
    # The stem and the last convolution are made of what the blocks are made of, and are no blocks.
    assert auto(mobilenet) == [f"features.{i}" for i in range(1, 18)]


def test_a_block_whose_type_occurs_once_is_a_layer():
    assert auto(nn.Sequential(nn.Linear(4, 6), Block(), nn.Linear(6, 2))) == ["1"]
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16), num_layers=1, enable_nested_tensor=False
    )
    assert auto(Holder(encoder=encoder, head=nn.Linear(8, 2))) == ["encoder.layers.0"]
    # A backbone in front of a head is no block: it is looked into.
    assert auto(nn.Sequential(Block(), nn.Linear(6, 2))) == ["0.first", "0.second"]


def test_items_of_a_list_are_blocks_whatever_their_types():
    model = Holder(
        stem=nn.Linear(4, 6), blocks=nn.ModuleList([Block(), OtherBlock()]), head=nn.Linear(6, 2)
    )
    assert auto(model) == ["blocks.0", "blocks.1"]
    # A type that occurs once, in the same Sequential as blocks; the classifier's is left out.
    head = Holder(hidden=nn.Linear(6, 6), out=nn.Linear(6, 2))
    assert auto(nn.Sequential(OtherBlock(), Block(), Block(), head)) == ["0", "1", "2"]


def test_stages_give_way_to_their_blocks():
    stages = nn.Sequential(
        Stage(blocks=nn.Sequential(Block(), Block()), shrink=Holder(linear=nn.Linear(6, 6))),
        Stage(blocks=nn.Sequential(Block()), shrink=Holder(linear=nn.Linear(6, 6))),
    )
    expected = [f"stages.{name}" for name in ("0.blocks.0", "0.blocks.1", "1.blocks.0")]
    assert auto(Holder(stages=stages, head=nn.Linear(6, 2))) == expected
    # A stage may hold its blocks without a list.
    direct = [Stage(b1=Block()), Stage(b1=Block(), b2=Block())]
    model = Holder(s1=direct[0], s2=direct[1], head=nn.Linear(6, 2))
    assert auto(model) == ["s1.b1", "s2.b1", "s2.b2"]
    # Experts see a part of the tokens: the layer is what holds them.
    moe = [Holder(gate=nn.Linear(6, 2), experts=nn.ModuleList([Block(), Block()])) for _ in "12"]
    assert auto(Holder(layers=nn.ModuleList(moe))) == ["layers.0", "layers.1"]


def test_parametrised_layers_are_layers_and_stay_untouched():
    parametrizations = nn.utils.parametrizations
    spectral = parametrizations.spectral_norm(nn.Linear(8, 8))
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 8)),
        nn.ReLU(),
        spectral,
        parametrizations.orthogonal(nn.Linear(8, 8)),
        nn.Linear(8, 2),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert auto(model) == ["1", "2", "3"]
    assert not any("parametrizations" in name for name in select_layers(model, "*"))
    # Reading spectral_norm's weight in training mode would have moved its buffers.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated, and in use
def test_quantised_layers_are_layers():
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert auto(torch.ao.quantization.quantize_dynamic(plain)) == auto(plain) == ["1", "3"]


def test_a_single_linear_has_no_hidden_layer():
    assert auto(nn.Linear(3, 2)) == []
    assert auto(nn.Sequential(nn.Flatten(), nn.Linear(3, 2))) == []


def test_a_model_may_list_its_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.probe_layers = ["1"]
    assert auto(model) == ["1"]
    model.probe_layers = ["2"]
    with pytest.raises(ValueError, match=r"probe_layers of the model holds \['2'\]"):
        automatic_layers(model)


def test_wrappers_leave_no_trace_in_names():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    blocks = [checkpoint_wrapper(Block()), torch.compile(Block(), backend="eager"), Block()]
    model = nn.Sequential(nn.Linear(4, 6), *blocks, nn.Linear(6, 2))
    assert auto(model) == ["1", "2", "3"]
    assert all(type(module) is Block for module in automatic_layers(model).values())
    assert "2.first" in named_layers(model)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert auto(wrapped) == ["1", "2", "3"]
        assert model_to_run(wrapped) is innermost_model(wrapped) is model


def test_embedding_is_the_largest_module_without_other_weights():
    words, positions = nn.Embedding(10, 6), nn.Embedding(5, 6)
    embeddings = Holder(words=words, positions=positions, norm=nn.LayerNorm(6))
    model = Holder(embeddings=embeddings, blocks=nn.ModuleList([Block(), Block()]))
    assert embedding_layers(model, automatic_layers(model)) == [embeddings]
    # A chosen layer cannot be inside layer 0.
    assert embedding_layers(model, select_layers(model, "*.norm")) == [words, positions]
    # A list never runs, and the model itself is not its own input.
    table = Holder(tables=nn.ModuleList([words, positions]), head=nn.Linear(6, 2))
    assert embedding_layers(table, {}) == [words, positions]
    assert embedding_layers(nn.Sequential(words, nn.Linear(6, 2)), {}) == [words]


def test_a_plain_stack_leaves_its_embedding_to_layer_0():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    assert auto(model) == ["2"]


def test_hugging_face_models_give_each_block_once():
    transformers = pytest.importorskip("transformers")
    small = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    bert = transformers.BertModel(transformers.BertConfig(**small))
    assert auto(bert) == ["encoder.layer.0", "encoder.layer.1"]
    assert embedding_layers(bert, automatic_layers(bert)) == [bert.embeddings]
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    assert auto(transformers.GPT2LMHeadModel(config)) == ["transformer.h.0", "transformer.h.1"]
    config = transformers.ViTConfig(image_size=8, patch_size=4, **small)
    assert len(auto(transformers.ViTModel(config))) == 2
    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2
    )
    expected = [f"{part}.block.{i}" for part in ("encoder", "decoder") for i in (0, 1)]
    assert auto(transformers.T5Model(config)) == expected


def test_timm_models_give_each_block_once():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        names = ("resnet10t", "vit_tiny_patch16_224", "convnext_atto")
        resnet, vit, convnext = map(timm.create_model, names)
    assert auto(resnet) == [f"layer{i}.0" for i in range(1, 5)]
    assert auto(vit) == [f"blocks.{i}" for i in range(12)]
    # Stages of 2, 2, 6 and 2 blocks.
    expected = [f"stages.{s}.blocks.{i}" for s, n in enumerate((2, 2, 6, 2)) for i in range(n)]
    assert auto(convnext) == expected
