"""LayerProbe: right features, and a model left as it was."""

from __future__ import annotations

import weakref

import pytest
import torch
from probe_models import (
    Encoder,
    ResidualNet,
    assert_same,
    hooks_of,
    make_batches,
    make_sentences,
    measure,
)
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import ConvNeXt, SwinTransformer
from torchvision.models.convnext import CNBlockConfig

from deeprep import LayerProbe, class_scatter

# ---------------------------------------------------------------- a loop of one's own


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
    assert not hooks_of(model)
    with pytest.raises(RuntimeError, match="not attached"):
        probe(*make_batches()[0])


def test_a_batch_context_measures_the_forwards_inside():
    model, ((inputs, labels), *_) = ResidualNet().eval(), make_batches()
    expected = measure(model, (inputs, labels), (inputs, labels))
    with LayerProbe(model, 3) as probe:
        with probe.batch(labels):
            model(inputs)
            model(inputs)
            with pytest.raises(RuntimeError, match="a batch already"), probe.batch(labels):
                pass
        model(inputs)
    assert_same(probe.scatters, expected)


def test_a_probe_is_entered_once_at_a_time():
    model, batches = ResidualNet().eval(), make_batches()
    probe = LayerProbe(model, 3)
    with probe:
        with pytest.raises(RuntimeError, match="on the model already"), probe:
            pass
        probe(*batches[0])
    assert not hooks_of(model)
    with probe:  # and goes on where it was
        probe(*batches[1])
    assert_same(probe.scatters, measure(model, *batches[:2]))


def test_a_failing_batch_leaves_no_hooks_and_no_labels_behind():
    model, (batch, *_) = ResidualNet(), make_batches()
    with LayerProbe(model, 3) as probe:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            probe(torch.randn(20, 5), batch[1])
        samples = {name: s.num_samples for name, s in probe.scatters.items()}
        model(batch[0])
    assert {name: s.num_samples for name, s in probe.scatters.items()} == samples
    assert not hooks_of(model)


def test_modules_called_twice_are_two_layers():
    linear = nn.Linear(4, 4)
    model = nn.Sequential(linear, linear)
    assert list(measure(model, *make_batches(), layers="0")) == ["input", "0", "0#2"]


def test_a_module_named_input_is_not_layer_0():
    model = nn.Sequential()
    model.add_module("input", nn.Linear(4, 4))
    scatters = measure(model, make_batches()[0], layers="input")
    assert [s.num_samples for s in scatters.values()] == [20, 20]
    assert list(scatters) == ["input", "input#2"]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_by_checkpointing_counts_once(use_reentrant):
    class Checkpointed(ResidualNet):
        def forward(self, inputs):
            hidden = self.stem(inputs)
            return checkpoint(self.blocks, hidden, use_reentrant=use_reentrant)

    model, ((inputs, labels), *_) = Checkpointed(), make_batches()
    with LayerProbe(model, 3, layers="blocks.0") as probe, probe.batch(labels):
        model(inputs).sum().backward()
    assert {name: s.num_samples for name, s in probe.scatters.items()} == {
        "input": 20,
        "blocks.0": 20,
    }


def test_no_feature_map_outlives_its_update():
    references = []

    class Watched(nn.Module):
        def forward(self, inputs):
            # What earlier layers gave is gone unless the model itself still holds it.
            alive.append(sum(reference() is not None for reference in references))
            output = inputs.clone()
            references.append(weakref.ref(output))
            return output

    alive = []
    model = nn.Sequential(*(Watched() for _ in range(4)))
    for reduce in ("flatten", "mean", "tokens"):
        with LayerProbe(model, 3, layers=Watched, reduce=reduce) as probe:
            probe(torch.randn(6, 3, 4), torch.arange(6) % 3)
            assert max(alive) == 1  # the one that is the next one's input
            assert sum(reference() is not None for reference in references) == 0


# ---------------------------------------------------------------- sentences


def test_an_encoder_is_measured_token_by_token_and_sentence_by_sentence():
    model = Encoder().eval()
    inputs, labels = make_sentences()
    mask = inputs["attention_mask"].bool()
    hidden = model(**inputs).last_hidden_state.detach()
    embedded = model.embeddings(inputs["input_ids"]).detach()
    lengths = mask.sum(dim=1)
    weights = mask.double() / lengths.unsqueeze(1)
    reduced = {
        "mean": lambda x: torch.einsum("nt,ntc->nc", weights, x.double()),
        "cls": lambda x: x[:, 0],
        "last": lambda x: x[torch.arange(8), lengths - 1],
        "flatten": lambda x: x.flatten(1),
    }
    for reduce, rows in reduced.items():
        scatters = measure(model, (inputs, labels), reduce=reduce)
        assert list(scatters) == ["input", "layer.0", "layer.1"]
        expected = {
            "input": class_scatter(rows(embedded), labels, 3),
            "layer.1": class_scatter(rows(hidden), labels, 3),
        }
        assert_same({name: scatters[name] for name in expected}, expected)
    scatters = measure(model, (inputs, labels), reduce="tokens")
    expected = class_scatter(hidden[mask], labels.repeat_interleave(lengths), 3)
    assert_same({"layer.1": scatters["layer.1"]}, {"layer.1": expected})
    assert {s.num_samples for s in scatters.values()} == {int(mask.sum())}


def test_batches_of_different_lengths_and_labels_per_token():
    model = Encoder().eval()
    batches = [make_sentences(num_tokens) for num_tokens in (5, 7)]
    scatters = measure(model, *batches, reduce="mean")
    assert {s.num_samples for s in scatters.values()} == {16}
    with pytest.raises(
        ValueError, match=r"layer 'input': features have width 42, expected 30 .*'mean'"
    ):
        measure(model, *batches)
    inputs, _ = batches[0]
    labels = torch.randint(3, (8, 5))
    scatters = measure(model, (inputs, labels), reduce="tokens")
    counts = labels[inputs["attention_mask"].bool()].bincount(minlength=3)
    assert torch.equal(scatters["layer.0"].counts, counts)


def test_embeddings_given_by_name_and_ids_given_by_position():
    model = Encoder().eval()
    inputs, labels = make_sentences()
    by_ids = measure(model, (inputs, labels), reduce="mean")
    named = {
        "attention_mask": inputs["attention_mask"],
        "inputs_embeds": model.embeddings(inputs["input_ids"]).detach(),
    }
    assert_same(measure(model, (named, labels), reduce="mean"), by_ids)
    # Without names nobody knows of the mask.
    arguments = tuple(inputs.values())
    with LayerProbe(model, 3, reduce="mean") as probe:
        probe(arguments, labels, inputs["attention_mask"])
    assert_same(probe.scatters, by_ids)


def test_layer_0_of_ids_is_what_looks_them_up():
    bag = nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    ids, labels = torch.randint(10, (6, 5)), torch.arange(6) % 3
    expected = class_scatter(bag[0](ids), labels)
    scatters = measure(bag, (ids, labels), layers="1")
    assert_same({"input": scatters["input"]}, {"input": expected})

    class OneHot(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(10, 4)

        def forward(self, ids):
            return self.linear(nn.functional.one_hot(ids, 10).float())

    with LayerProbe(OneHot(), 3, layers="linear", reduce="mean") as probe:
        probe(ids, labels)
    assert list(probe.scatters) == ["linear"]
    assert probe.silent_layers == ["input"]


def test_an_attention_mask_of_another_kind_is_refused():
    model = Encoder().eval()
    inputs, labels = make_sentences()
    inputs["attention_mask"] = inputs["attention_mask"].unsqueeze(1)
    with pytest.raises(ValueError, match=r"attention_mask does not fit: mask has shape \(8, 1, 5"):
        measure(model, (inputs, labels))


def test_reductions_of_single_layers():
    model = Encoder().eval()
    inputs, labels = make_sentences()
    reduce = {"input": "cls", "layer.1": "tokens", "*": "mean"}
    scatters = measure(model, (inputs, labels), reduce=reduce)
    expected = [8, 8, int(inputs["attention_mask"].sum())]
    assert [s.num_samples for s in scatters.values()] == expected
    with pytest.raises(ValueError, match="reduce holds 'layers', which matches none"):
        LayerProbe(model, 3, reduce={"layers": "mean"})


# As many channels as rows and columns: shapes do not tell which axis is which.
@pytest.mark.parametrize(
    ("model", "positions"),
    [
        (SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=3), (1, 2)),
        (ConvNeXt([CNBlockConfig(8, 8, 1), CNBlockConfig(8, None, 1)], num_classes=3), (2, 3)),
    ],
    ids=["Swin", "ConvNeXt"],
)
@pytest.mark.parametrize("reduce", ["mean", "tokens"])
def test_maps_with_their_channels_first_and_last(model, positions, reduce):
    images, labels, maps = torch.randn(6, 3, 32, 32), torch.arange(6) % 3, []
    handle = model.features[1].register_forward_hook(lambda *call: maps.append(call[-1]))
    with LayerProbe(model.eval(), 3, layers="features.1", reduce=reduce) as probe:
        probe(images, labels)
    handle.remove()
    assert maps[0].shape == (6, 8, 8, 8)
    rows = maps[0].movedim(positions, (1, 2)).detach()
    if reduce == "mean":
        expected = class_scatter(rows.mean(dim=(1, 2)), labels)
    else:
        expected = class_scatter(rows.reshape(-1, 8), labels.repeat_interleave(64))
    assert_same({"map": probe.scatters["features.1"]}, {"map": expected})


def test_hugging_face_models():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=10,
        hidden_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
    )
    bert = transformers.BertModel(config).eval()
    config = transformers.GPT2Config(
        vocab_size=10, n_embd=6, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    gpt2 = transformers.GPT2Model(config).eval()
    inputs, labels = make_sentences()
    mask = inputs["attention_mask"].bool()
    for model in (bert, gpt2):
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states
            scatters = measure(model, (inputs, labels), reduce="tokens")
        assert len(scatters) == 3
        targets = labels.repeat_interleave(mask.sum(dim=1))
        expected = class_scatter(hidden[1][mask], targets, 3)
        name = list(scatters)[1]
        assert_same({name: scatters[name]}, {name: expected}, rtol=1e-5)
    # BERT's layer 0 holds positions and normalisation, GPT-2's is the table of words.
    name = "input"
    scatters = measure(bert, (inputs, labels), reduce="tokens")
    assert_same(
        {name: scatters[name]},
        {name: class_scatter(bert.embeddings(inputs["input_ids"])[mask].detach(), targets, 3)},
        rtol=1e-5,
    )


# ---------------------------------------------------------------- what is refused


def test_labels_are_checked_before_anything_is_taken_in():
    model = ResidualNet()
    inputs, _ = make_batches()[0]
    with LayerProbe(model, 3) as probe:
        for labels, error, message in (
            (torch.full((20,), 3), ValueError, r"labels\[0\] is 3, expected a class in \[0, 3\)"),
            (torch.zeros(20), TypeError, "labels has dtype torch.float32"),
            (torch.zeros(19).long(), ValueError, r"layer 'input': labels has shape \(19,\)"),
            (torch.zeros(20, 3).long(), ValueError, r"layer 'input': labels has shape \(20, 3\)"),
        ):
            with pytest.raises(error, match=message):
                probe(inputs, labels)
    assert not probe.scatters


def test_a_layer_that_does_not_fit_is_named():
    class Shrinking(nn.Module):
        def __init__(self, output):
            super().__init__()
            self.cut, self.output = nn.Identity(), output

        def forward(self, inputs):
            return self.cut(self.output(inputs))

    batch = make_batches()[0]
    for output, error, message in (
        (lambda x: x[:10], ValueError, r"layer 'cut': labels has shape \(20,\), expected \(10,\)"),
        (lambda x: x > 0, TypeError, "layer 'cut': the output has dtype torch.bool"),
        (lambda x: "text", TypeError, "layer 'cut': the output is a str"),
    ):
        with pytest.raises(error, match=message):
            measure(Shrinking(output), batch, layers="cut")
    widths = iter((4, 3))
    model = Shrinking(lambda x: x[:, : next(widths)])
    with pytest.raises(ValueError, match="layer 'cut': features have width 3, expected 4"):
        measure(model, batch, batch, layers="cut")


def test_arguments_that_do_not_fit_are_refused():
    for options, error, message in (
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"full": "yes"}, ValueError, "full is 'yes', expected True, False or 'auto'"),
        ({"reduce": "max"}, ValueError, "reduce is 'max', expected"),
        ({"layers": "missing"}, ValueError, "layers holds 'missing'"),
    ):
        with pytest.raises(error, match=message):
            LayerProbe(ResidualNet(), **{"num_classes": 3, **options})


def test_full_states_by_choice_and_by_width():
    model, batch = nn.Sequential(nn.Linear(4, 2050), nn.Linear(2050, 3)), make_batches()[0]
    assert not any(s.full for s in measure(model, batch).values())
    full = {name: s.full for name, s in measure(model, batch, full="auto").items()}
    assert full == {"input": True, "0": False}
