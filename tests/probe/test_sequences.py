"""Encoder-decoder models: each sequence has its own mask, whatever their lengths."""

from __future__ import annotations

import pytest
import torch
from probe_models import assert_same, measure
from torch import nn

import deeprep
from deeprep import LayerProbe, class_scatter

LABELS = torch.arange(8) % 3
SIZES = {
    "vocab_size": 20,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def t5_config(transformers):
    return transformers.T5Config(
        vocab_size=20,
        d_model=8,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def make_model(transformers, name):
    torch.manual_seed(0)
    if name == "T5":
        return transformers.T5Model(t5_config(transformers)).eval()
    if name == "BERT to BERT":
        sizes = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2}
        sizes |= {"num_hidden_layers": 2, "intermediate_size": 16}
        encoder = transformers.BertConfig(**sizes)
        decoder = transformers.BertConfig(**sizes, is_decoder=True, add_cross_attention=True)
        config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        return transformers.EncoderDecoderModel(config).eval()
    config = getattr(transformers, f"{name}Config")(**SIZES)
    return getattr(transformers, f"{name}Model")(config).eval()


NAMES = ["T5", "Bart", "Marian", "BERT to BERT"]
# The last of the layers in each stack.
LAYERS = {
    "T5": ("encoder.block.1", "decoder.block.1"),
    "Bart": ("encoder.layers.1", "decoder.layers.1"),
    "Marian": ("encoder.layers.1", "decoder.layers.1"),
    "BERT to BERT": ("encoder.encoder.layer.1", "decoder.bert.encoder.layer.1"),
}


def make_inputs(encoder_tokens, decoder_tokens, *masked):
    """Named inputs, and the masks of both sequences, all ones where they are not given."""
    inputs, masks = {}, []
    # Other tokens in each sequence, or an exchange of the two would go unnoticed.
    lengths = {
        "": 1 + torch.arange(8) % encoder_tokens,
        "decoder_": torch.full((8,), decoder_tokens),
    }
    lengths["decoder_"][::2] -= 1
    for prefix, tokens in (("", encoder_tokens), ("decoder_", decoder_tokens)):
        inputs[f"{prefix}input_ids"] = torch.randint(2, 20, (8, tokens))
        mask = torch.ones(8, tokens, dtype=torch.int64)
        if f"{prefix}attention_mask" in masked:
            mask = (torch.arange(tokens) < lengths[prefix].unsqueeze(1)).long()
            inputs[f"{prefix}attention_mask"] = mask
        masks.append(mask.bool())
    return inputs, masks


def rows_of(hidden, mask, reduce):
    """Rows and labels of a sequence (N, T, C), reduced as they should be."""
    if reduce == "tokens":
        return hidden[mask], LABELS.repeat_interleave(mask.sum(dim=1))
    if reduce == "last":
        return hidden[torch.arange(8), mask.sum(dim=1) - 1], LABELS
    kept = mask.unsqueeze(2)
    return (hidden.double() * kept).sum(dim=1) / kept.sum(dim=1), LABELS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lengths", [(3, 5), (4, 4)])
@pytest.mark.parametrize(
    "masked",
    [
        (),
        ("attention_mask",),
        ("decoder_attention_mask",),
        ("attention_mask", "decoder_attention_mask"),
    ],
    ids=["no mask", "encoder's", "decoder's", "both"],
)
def test_each_mask_is_for_the_tokens_of_its_sequence(transformers, name, lengths, masked):
    model = make_model(transformers, name)
    inputs, masks = make_inputs(*lengths, *masked)
    hidden = []
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda *call: hidden.append(call[-1] if torch.is_tensor(call[-1]) else call[-1][0])
        )
        for layer in LAYERS[name]
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    for reduce in ("tokens", "mean", "last"):
        scatters = measure(model, (inputs, LABELS), layers=LAYERS[name], reduce=reduce)
        for layer, output, mask in zip(LAYERS[name], hidden, masks, strict=True):
            expected = class_scatter(*rows_of(output, mask, reduce), 3)
            assert_same({layer: scatters[layer]}, {layer: expected}, rtol=1e-5)
        assert scatters["input"].num_samples == (int(masks[0].sum()) if reduce == "tokens" else 8)


def test_cross_attention_reads_the_one_and_writes_the_other(transformers):
    model = make_model(transformers, "T5")
    inputs, masks = make_inputs(4, 4, "attention_mask", "decoder_attention_mask")
    attention = "decoder.block.0.layer.1.EncDecAttention"
    layers = ["*.embed_tokens", attention, f"{attention}.[qkvo]", "decoder.block.0.layer.0.*.k"]
    scatters = measure(model, (inputs, LABELS), layers=layers, reduce="tokens")
    of_encoder, of_decoder = (int(mask.sum()) for mask in masks)
    assert of_encoder != of_decoder
    counts = {name: s.num_samples for name, s in scatters.items()}
    keys = {f"{attention}.k", f"{attention}.v", "input", "encoder.embed_tokens"}
    assert counts == {n: of_encoder if n in keys else of_decoder for n in counts}
    assert {"decoder.embed_tokens", f"{attention}.q", f"{attention}.o", attention} < counts.keys()


def test_the_stacks_themselves(transformers):
    inputs, masks = make_inputs(4, 4, "attention_mask", "decoder_attention_mask")
    model, layers = make_model(transformers, "BERT to BERT"), ["encoder", "decoder"]
    scatters = measure(model, (inputs, LABELS), layers=layers, reduce="tokens")
    for layer, mask in zip(layers, masks, strict=True):
        assert scatters[layer].num_samples == int(mask.sum())


def test_a_sample_without_a_token_is_skipped_in_its_own_sequence(transformers):
    model = make_model(transformers, "T5")
    inputs, _ = make_inputs(4, 4, "attention_mask", "decoder_attention_mask")
    inputs["decoder_attention_mask"][2] = 0
    for reduce in ("mean", "cls", "flatten"):
        scatters = measure(model, (inputs, LABELS), reduce=reduce)
        assert scatters["encoder.block.1"].num_samples == 8
        assert scatters["decoder.block.1"].num_samples == 7


@pytest.mark.parametrize("tokens", [3, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_after_both_has_the_tokens_of_the_decoder(transformers, tokens, tied):
    config = t5_config(transformers)
    config.tie_word_embeddings = tied  # then it reads a scaled copy of the decoder's output
    model = transformers.T5ForConditionalGeneration(config).eval()
    for masked in ((), ("attention_mask",), ("attention_mask", "decoder_attention_mask")):
        inputs, masks = make_inputs(tokens, 4, *masked)
        found = measure(model, (inputs, LABELS), layers="lm_head", reduce="tokens")
        assert found["lm_head"].num_samples == int(masks[1].sum())
    with torch.no_grad():
        outputs = model.encoder(inputs.pop("input_ids"), inputs["attention_mask"])
    inputs["encoder_outputs"] = (outputs.last_hidden_state,)
    again = measure(model, (inputs, LABELS), layers="lm_head", reduce="tokens")
    assert_same({"lm_head": again["lm_head"]}, {"lm_head": found["lm_head"]})


def test_a_layer_before_both_that_needs_a_mask_is_refused():
    model = Translator().eval()
    inputs = dict(zip(("source", "target"), torch.randint(20, (2, 8, 4)), strict=True))
    mask = torch.ones(8, 4, dtype=torch.bool)
    message = r"layer 'words': it cannot be told whether the 4 tokens .* expected a layer inside"
    with (
        LayerProbe(model, 3, layers=["words"], reduce="mean") as probe,
        pytest.raises(ValueError, match=message),
    ):
        probe(inputs, LABELS, (mask, mask))
    with LayerProbe(model, 3, layers=["words"], reduce="mean") as probe:
        probe(inputs, LABELS, (None, None))  # without a mask there is nothing to tell
    assert probe.scatters["words"].num_samples == 8


def test_a_decoder_alone_calls_its_masks_otherwise(transformers):
    model = make_model(transformers, "Bart").get_decoder()
    named, (encoder_mask, mask) = make_inputs(4, 4, "attention_mask", "decoder_attention_mask")
    inputs = {
        "input_ids": named["decoder_input_ids"],
        "attention_mask": named["decoder_attention_mask"],
        "encoder_hidden_states": torch.randn(8, 4, 8),
        "encoder_attention_mask": named["attention_mask"],
    }
    layers = ["layers.1", "layers.1.encoder_attn.k_proj", "layers.1.self_attn.k_proj"]
    scatters = measure(model, (inputs, LABELS), layers=layers, reduce="tokens")
    counts = {name: s.num_samples for name, s in scatters.items()}
    of_encoder, own = int(encoder_mask.sum()), int(mask.sum())
    assert counts == {
        "input": own,
        "layers.1": own,
        "layers.1.encoder_attn.k_proj": of_encoder,
        "layers.1.self_attn.k_proj": own,
    }


@pytest.mark.parametrize("encoder_tokens", [3, 5])
def test_embeddings_given_to_a_decoder_are_its_own(transformers, encoder_tokens):
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1, "intermediate_size": 16}
    config = transformers.BertConfig(**sizes, is_decoder=True, add_cross_attention=True)
    named, (_, mask) = make_inputs(encoder_tokens, 5, "attention_mask", "decoder_attention_mask")
    inputs = {
        "inputs_embeds": torch.randn(8, 5, 8),
        "attention_mask": named["decoder_attention_mask"],
        "encoder_hidden_states": torch.randn(8, encoder_tokens, 8),
        "encoder_attention_mask": named["attention_mask"],
    }
    model = transformers.BertModel(config).eval()
    found = measure(model, (inputs, LABELS), layers="encoder.layer.0", reduce="mean")
    expected = class_scatter(*rows_of(inputs["inputs_embeds"], mask, "mean"), 3)
    assert_same({"input": found["input"]}, {"input": expected}, rtol=1e-5)


def test_what_the_encoder_gave_may_be_passed_in(transformers):
    model = make_model(transformers, "T5")
    inputs, _ = make_inputs(4, 4, "attention_mask")
    expected = measure(model, (inputs, LABELS), layers=["decoder.block.?"], reduce="tokens")
    with torch.no_grad():
        outputs = model.encoder(inputs.pop("input_ids"), inputs["attention_mask"])
    inputs["encoder_outputs"] = (outputs.last_hidden_state,)
    scatters = measure(model, (inputs, LABELS), layers=["decoder.block.?"], reduce="tokens")
    assert scatters["input"].num_samples == 32  # the decoder's own embeddings
    del scatters["input"], expected["input"]
    assert_same(scatters, expected)


def test_masks_of_a_loop_of_ones_own(transformers):
    model = make_model(transformers, "T5")
    inputs, masks = make_inputs(4, 4, "attention_mask", "decoder_attention_mask")
    expected = measure(model, (inputs, LABELS), reduce="tokens")
    # The model is called by position, so that only the probe knows the masks.
    arguments = [inputs[n] for n in ("input_ids", "attention_mask", "decoder_input_ids")]
    arguments.append(inputs["decoder_attention_mask"])
    with LayerProbe(model, 3, reduce="tokens") as probe, probe.batch(LABELS, tuple(masks)):
        model(*arguments)
    assert_same(probe.scatters, expected)
    with (
        LayerProbe(model, 3, reduce="tokens") as probe,
        pytest.raises(ValueError, match="mask is that of one sequence, expected a pair: the layer"),
        probe.batch(LABELS, masks[0]),
    ):
        model(*arguments)
    with (
        LayerProbe(model, 3) as probe,
        pytest.raises(ValueError, match="mask is a tuple of 3, expected a pair"),
        probe.batch(LABELS, (*masks, None)),
    ):
        pass


@pytest.mark.parametrize("tokens", [3, 4])
def test_one_mask_of_an_encoder_decoder_model_is_the_encoders(transformers, tokens):
    model = make_model(transformers, "T5")
    inputs, _ = make_inputs(4, tokens, "attention_mask")
    expected = measure(model, (inputs, LABELS), reduce="tokens")
    assert expected["decoder.block.1"].num_samples == 8 * tokens
    mask = inputs.pop("attention_mask")
    with LayerProbe(model, 3, reduce="tokens") as probe, probe.batch(LABELS, mask):
        model(inputs["input_ids"], mask, inputs["decoder_input_ids"])
    assert_same(probe.scatters, expected)
    with LayerProbe(model, 3, reduce="tokens") as probe, probe.batch(LABELS, mask):
        model(**inputs, attention_mask=mask.bool())
    assert_same(probe.scatters, expected)


@pytest.mark.parametrize("reduce", ["tokens", "mean", "last"])
def test_a_decoder_that_is_given_nothing_has_the_mask_of_the_encoder(transformers, reduce):
    model = make_model(transformers, "Bart")
    inputs, masks = make_inputs(4, 4, "attention_mask")
    del inputs["decoder_input_ids"]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        outputs = model(**inputs)
    layers = ["encoder.layers.1", "decoder.layers.1"]
    hidden = outputs.encoder_last_hidden_state, outputs.last_hidden_state
    expected = {
        layer: class_scatter(*rows_of(output, masks[0], reduce), 3)
        for layer, output in zip(layers, hidden, strict=True)
    }

    def same(probe):
        assert_same({layer: probe.scatters[layer] for layer in layers}, expected, rtol=1e-5)

    for batch, given in ((inputs, None), ({"input_ids": ids}, mask)):
        with LayerProbe(model, 3, layers=layers, reduce=reduce) as probe:
            probe(batch, LABELS, given)
        # The model masks its encoder's padding only where it is told of it.
        if given is None:
            same(probe)
        else:
            counts = {probe.scatters[layer].num_samples for layer in layers}
            assert counts == {int(mask.sum()) if reduce == "tokens" else 8}
    with LayerProbe(model, 3, layers=layers, reduce=reduce) as probe, probe.batch(LABELS, mask):
        model(ids, mask)
    same(probe)
    with LayerProbe(model, 3, layers=layers, reduce=reduce) as probe:
        probe(inputs, LABELS, (mask, None))  # a pair is taken at its word
    if reduce == "tokens":
        assert probe.scatters["decoder.layers.1"].num_samples == 32


def test_labels_of_tokens_are_the_input_of_the_decoder(transformers):
    model = transformers.T5ForConditionalGeneration(t5_config(transformers)).eval()
    inputs, masks = make_inputs(4, 4, "attention_mask")
    targets = inputs.pop("decoder_input_ids")
    layers = ["encoder.block.1", "decoder.block.1"]
    with LayerProbe(model, 3, layers=layers, reduce="tokens") as probe, probe.batch(LABELS):
        model(**inputs, labels=targets)
    counts = [probe.scatters[layer].num_samples for layer in layers]
    assert counts == [int(masks[0].sum()), 32]


class Translator(nn.Module):
    """An encoder-decoder model of PyTorch's own layers, with arguments of its own."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.core = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
        self.head = nn.Linear(8, 8)

    def forward(self, source, target, attention_mask=None):
        return self.head(self.core(self.words(source), self.words(target)))


def test_layers_of_pytorch_take_a_pair_or_say_that_they_need_one():
    model = Translator().eval()
    named, masks = make_inputs(4, 4, "attention_mask", "decoder_attention_mask")
    inputs = {"source": named["input_ids"], "target": named["decoder_input_ids"]}
    layers = ["core.encoder.layers.0", "core.decoder.layers.0"]
    with LayerProbe(model, 3, layers=layers, reduce="tokens") as probe:
        probe(inputs, LABELS, tuple(masks))
    encoder, decoder = (probe.scatters[name].num_samples for name in layers)
    assert (encoder, decoder) == tuple(int(mask.sum()) for mask in masks)
    message = (
        r"layer 'core.decoder.layers.0': it cannot be told whether the 4 tokens .* expected "
        r"a pair of masks, as mask=\(None, decoder's\); or a layer inside"
    )
    with pytest.raises(ValueError, match=message):
        measure(
            model, ({**inputs, "attention_mask": masks[0]}, LABELS), layers=layers, reduce="mean"
        )
    assert (
        measure(model, (inputs, LABELS), layers=layers, reduce="tokens")[layers[1]].num_samples
        == 32
    )


class Captions(nn.Module):
    """A decoder of PyTorch's, over an image that is another sequence."""

    def __init__(self, image_tokens):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.image = nn.Parameter(torch.randn(1, image_tokens, 8))
        self.dec = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2)

    def forward(self, input_ids, attention_mask=None):
        return self.dec(self.words(input_ids), self.image.expand(len(input_ids), -1, -1))


@pytest.mark.parametrize("image_tokens", [7, 5])
@pytest.mark.parametrize("reduce", ["tokens", "mean", "last"])
def test_the_one_mask_of_a_model_that_only_decodes_is_the_decoders(image_tokens, reduce):
    torch.manual_seed(0)
    model = Captions(image_tokens).eval()
    named, (_, mask) = make_inputs(5, 5, "decoder_attention_mask")
    ids = named["decoder_input_ids"]
    with torch.no_grad():
        hidden = model.words(ids), model(ids)
    scatters = measure(
        model, ({"input_ids": ids, "attention_mask": mask}, LABELS), layers="dec", reduce=reduce
    )
    expected = {
        name: class_scatter(*rows_of(output, mask, reduce), 3)
        for name, output in zip(("input", "dec"), hidden, strict=True)
    }
    assert_same(scatters, expected, rtol=1e-5)
    for given in (mask, (None, mask)):
        with LayerProbe(model, 3, layers=["dec"], reduce=reduce) as probe:
            probe(ids, LABELS, given)
        assert_same(probe.scatters, expected, rtol=1e-5)
    inside = measure(
        model, ({"input_ids": ids, "attention_mask": mask}, LABELS), layers="dec.*", reduce=reduce
    )
    of_decoder = int(mask.sum()) if reduce == "tokens" else 8
    assert {found.num_samples for found in inside.values()} == {of_decoder}


@pytest.mark.parametrize("tokens", [3, 5])
def test_the_memory_of_a_decoder_may_come_first(tokens):
    class Reader(Captions):
        def forward(self, memory, input_ids):
            return self.dec(self.words(input_ids), memory)

    named, masks = make_inputs(tokens, 5, "attention_mask", "decoder_attention_mask")
    model = Reader(tokens).eval()
    with LayerProbe(model, 3, layers=["dec"], reduce="tokens") as probe:
        probe((torch.randn(8, tokens, 8), named["decoder_input_ids"]), LABELS, tuple(masks))
    assert probe.scatters["dec"].num_samples == int(masks[1].sum())
    if tokens == 3:
        assert probe.scatters["input"].num_samples == int(masks[0].sum())


def test_analyze_counts_the_tokens_of_each_sequence(transformers):
    """The case that was found: T5 with 3 tokens in the encoder and 5 in the decoder."""
    inputs, _ = make_inputs(3, 5)
    report = deeprep.analyze(make_model(transformers, "T5"), [(inputs, LABELS)], 3, reduce="tokens")
    assert report.warnings == []
    probe = LayerProbe(make_model(transformers, "T5"), 3, reduce="tokens")
    probe.run([(inputs | {"attention_mask": torch.ones(8, 3).long()}, LABELS)])
    counts = {name: s.num_samples for name, s in probe.scatters.items()}
    assert counts["encoder.block.1"] == 24
    assert counts["decoder.block.1"] == 40
