"""Language models: the next token as the label of every position, against loops over the words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deeprep
from deeprep import LayerProbe, TokenLabels, reference
from deeprep.probe import token_counts

VOCABULARY = 13
END = 12  # also what pads
IGNORED = -100


class Causal(nn.Module):
    """Running sums of embeddings through two layers: the smallest causal model there is."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 6)
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 5)
        self.head = nn.Linear(5, VOCABULARY)

    def forward(self, input_ids, attention_mask=None, position_ids=None, seq_idx=None):
        hidden = self.tokens(input_ids).cumsum(dim=1) / 4
        return self.head(torch.tanh(self.second(torch.tanh(self.first(hidden)))))


class Bidirectional(Causal):
    def forward(self, input_ids, attention_mask=None):
        hidden = self.tokens(input_ids)
        return self.head(self.second(self.first(hidden + hidden.mean(dim=1, keepdim=True))))


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def padded(sequences, side):
    """Token ids and mask of sequences that end in END, padded with END."""
    length = max(map(len, sequences))
    ids = torch.full((len(sequences), length), END)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        where = slice(0, len(tokens)) if side == "right" else slice(length - len(tokens), length)
        ids[row, where], mask[row, where] = torch.tensor(tokens), 1
    return {"input_ids": ids, "attention_mask": mask}


def some_sequences(count=5):
    generator = torch.Generator().manual_seed(1)
    lengths = [7, 3, 5, 1, 6][:count]
    drawn = (torch.randint(END, (n,), generator=generator).tolist() for n in lengths)
    return [[*tokens, END] for tokens in drawn]


def targets_in(probe, *batches):
    """The labels of each position that a layer was given."""
    seen = []
    with probe:
        update = probe._update
        probe._update = lambda layer, rows, labels: (
            seen.append(labels.clone()) if layer == "first" else None,
            update(layer, rows, labels),
        )
        for inputs, labels in batches:
            probe(inputs, labels)
    return [each.tolist() for each in seen]


def next_tokens(sequences, length, side="right"):
    """Those of each position, by going through the words one by one."""
    rows = []
    for tokens in sequences:
        labels = [*tokens[1:], IGNORED]
        gap = [IGNORED] * (length - len(tokens))
        rows += labels + gap if side == "right" else gap + labels
    return rows


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("given", ["none", "input_ids", "-100 by mask", "shifted"])
def test_each_position_has_the_token_after_it(side, given):
    sequences = some_sequences()
    inputs = padded(sequences, side)
    ids = inputs["input_ids"]
    labels = {
        "none": None,
        "input_ids": ids,
        "-100 by mask": ids.masked_fill(inputs["attention_mask"] == 0, IGNORED),
        "shifted": torch.cat([ids[:, 1:], torch.full((len(ids), 1), IGNORED)], dim=1),
    }[given]
    probe = LayerProbe(Causal(), labels="next-token", layers=["first"])
    assert probe.num_classes == VOCABULARY
    (found,) = targets_in(probe, (inputs, labels))
    # The end of a sequence is a token like any other, though it also pads.
    assert found == next_tokens(sequences, ids.shape[1], side)
    assert probe.scatters["first"].num_samples == sum(len(each) - 1 for each in sequences)
    said = any("input_ids: shifted by one" in text for text in probe.report().warnings)
    assert said == (given in ("input_ids", "-100 by mask"))


def test_shifted_labels_give_the_last_position_its_own():
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    probe = LayerProbe(Causal(), labels="next-token", layers=["first"])
    assert targets_in(probe, (ids[:, :-1], ids[:, 1:])) == [[2, 3, 4, 5]]


def test_labels_that_the_loss_ignores_are_left_out():
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    answer = ids.masked_fill(torch.tensor([[True, True, True, False, False]]), IGNORED)
    probe = LayerProbe(Causal(), labels="next-token", layers=["first"])
    assert targets_in(probe, (ids, answer)) == [[IGNORED, IGNORED, 4, 5, IGNORED]]
    # Also in a loop of one's own, where the mask tells a prompt from padding.
    targets = TokenLabels().targets(IGNORED)
    found = targets.classes(answer, None, torch.ones_like(ids))
    assert found.tolist() == [[IGNORED, IGNORED, 4, 5, IGNORED]]
    padded_left = torch.tensor([[0, 0, 0, 1, 1]])
    found = targets.classes(answer, None, padded_left)
    assert found.tolist() == [[IGNORED, IGNORED, IGNORED, 5, IGNORED]]


def test_labels_that_may_be_shifted_or_not_are_what_those_before_them_were():
    same, last = torch.tensor([[7, 7, 7]]), torch.tensor([[7, 7, IGNORED]])
    single = torch.tensor([[5]])
    shifted = TokenLabels().targets(IGNORED)
    assert shifted.tokens(same[:, :2], torch.tensor([[7, 8]]), None).tolist() == [[7, 8]]
    assert shifted.tokens(same, last, None).tolist() == [[7, 7, IGNORED]]
    assert shifted.tokens(single, single, None).tolist() == [[5]]
    assert not shifted.were_shifted
    not_shifted = TokenLabels().targets(IGNORED)
    assert not_shifted.tokens(same, last, None).tolist() == [[7, IGNORED, IGNORED]]
    assert not_shifted.tokens(single, single, None).tolist() == [[IGNORED]]


def test_a_mask_by_position_is_not_silently_left_out():
    batch = padded(some_sequences(), "right")
    ids, mask = batch.values()
    with pytest.raises(ValueError, match="seems to hold a mask, expected it by name"):
        deeprep.analyze(Causal(), [((ids, mask), ids)], labels="next-token")
    whole = ids[:1], mask[:1]  # hides nothing
    assert deeprep.analyze(Causal(), [(whole, None)], labels="next-token").num_samples == 7
    with LayerProbe(Causal(), labels="next-token") as probe:
        probe((ids, mask), None, mask)
    assert probe.scatters["first"].num_samples == int(mask.sum()) - len(ids)


@pytest.mark.parametrize("how", ["position_ids", "seq_idx", "attention_mask", "labels"])
def test_packed_sequences_do_not_run_into_one_another(how):
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, END]])
    number = torch.tensor([[1, 1, 1, 2, 2, 3, 0]])
    inputs, labels = {"input_ids": ids, "attention_mask": (number > 0).long()}, None
    if how == "position_ids":
        inputs[how] = torch.tensor([[0, 1, 2, 0, 1, 0, 0]])
    elif how == "labels":
        labels = torch.tensor([[IGNORED, 2, 3, IGNORED, 5, IGNORED, IGNORED]])
    else:
        inputs[how] = number
    probe = LayerProbe(Causal(), labels="next-token", layers=["first"])
    found = targets_in(probe, (inputs, labels))
    assert found == [[2, 3, IGNORED, 5, IGNORED, IGNORED, IGNORED]]


def test_current_tokens_are_measured_where_that_is_asked_for():
    inputs = padded([[1, 2, END], [3, END]], "right")
    probe = LayerProbe(Causal(), labels="current-token", layers=["first"])
    found = targets_in(probe, (inputs, inputs["input_ids"]))
    assert found == [[1, 2, END, 3, END, IGNORED]]
    assert not probe.report().warnings or "shifted" not in str(probe.report().warnings)


@pytest.mark.parametrize("under_the_mask", [END, IGNORED, 0])
def test_input_ids_are_never_taken_for_labels_silently(under_the_mask):
    batch = padded(some_sequences(), "right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, under_the_mask)
    loader = [{**batch, "labels": torch.full_like(labels, IGNORED)}, {**batch, "labels": labels}]
    with pytest.raises(ValueError, match="labels are the input_ids, expected labels='next-token'"):
        deeprep.analyze(Causal(), loader, VOCABULARY, reduce="tokens")
    loader = [{**batch, "labels": labels.numpy()}]
    with pytest.raises(ValueError, match="labels are the input_ids"):
        deeprep.analyze(Causal(), loader, VOCABULARY, reduce="tokens")
    with (
        LayerProbe(Causal(), VOCABULARY, reduce="tokens") as probe,
        pytest.raises(ValueError, match="labels are the input_ids"),
    ):
        probe(batch, labels)
    model = Causal()
    with (
        LayerProbe(model, VOCABULARY, reduce="tokens") as probe,
        pytest.raises(ValueError, match="labels are the input_ids"),
        probe.batch(labels, batch["attention_mask"]),
    ):
        model(**batch)


def test_other_labels_of_positions_are_taken_as_they_are():
    batch = padded(some_sequences(), "right")
    batch["labels"] = batch["input_ids"] % 2
    report = deeprep.analyze(Causal(), [batch], 2, reduce="tokens")
    assert report.num_samples == int(batch["attention_mask"].sum())


def test_collators_labels_are_shifted(transformers):
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(END)} | {"<end>": END}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(
            tokenizers.models.WordLevel(words, unk_token="<end>")
        ),
        pad_token="<end>",
        eos_token="<end>",
    )
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    sequences = some_sequences()
    batch = collate([{"input_ids": tokens} for tokens in sequences])
    # This collator masks by the token's id, and so hides the ends from the loss as well.
    assert (batch["labels"] == END).sum() == 0
    report = deeprep.analyze(Causal(), [batch], labels="next-token")
    assert report.num_samples == sum(len(tokens) - 2 for tokens in sequences)
    assert "shifted by one" in report.warnings[0]


# ---------------------------------------------------------------- which tokens are a class


def test_most_frequent_tokens():
    ids = torch.tensor([[0, 7, 7, 3, 7, 3, 9, 7]])
    loader = [{"input_ids": ids}, ids[:, :3]]
    counts = token_counts(loader)
    assert counts.tolist() == [0, 0, 0, 2, 0, 0, 0, 6, 0, 1]
    labels = TokenLabels(most_frequent=2, counts=counts)
    assert (labels.num_classes, labels.class_tokens.tolist()) == (2, [7, 3])
    probe = LayerProbe(Causal(), labels=labels, layers=["first"])
    assert targets_in(probe, (ids, None)) == [[0, 0, 1, 0, 1, IGNORED, 0, IGNORED]]
    report = deeprep.analyze(Causal(), loader, labels=TokenLabels(most_frequent=2))
    assert (report.num_classes, report.num_samples) == (2, 8)
    assert report.class_names == ["token 7", "token 3"]
    everything = deeprep.analyze(Causal(), loader, labels=TokenLabels(most_frequent=500))
    assert (everything.num_classes, everything.num_samples) == (3, 9)


def test_the_most_frequent_tokens_of_no_or_one_pass_are_not_known():
    labels = TokenLabels(most_frequent=2)
    for nothing in ([], [torch.tensor([[3], [4]])]):
        with pytest.raises(ValueError, match="loader gave no position with a next token"):
            deeprep.analyze(Causal(), nothing, labels=labels)
    one_shot = iter([torch.tensor([[3, 4]])])
    with pytest.raises(ValueError, match=r"; or give the labels their counts$"):
        deeprep.analyze(Causal(), one_shot, labels=labels)


@pytest.mark.parametrize(
    "classes", [{2: 1, 5: 0, 7: 1}, torch.tensor([-1, -1, 1, -1, -1, 0, -1, 1, -1])]
)
def test_tokens_without_a_class_are_ignored(classes):
    ids = torch.tensor([[5, 2, 8, 7, 2, 5]])
    probe = LayerProbe(Causal(), labels=TokenLabels(classes=classes), layers=["first"])
    assert probe.num_classes == 2
    assert targets_in(probe, (ids, None)) == [[1, IGNORED, 1, 1, 0, IGNORED]]


@pytest.mark.parametrize("classes", [{0: 0, 5: 1}, torch.tensor([0, 2, 2, 2, 2, 1])])
def test_negative_ids_have_no_class(classes):
    targets = TokenLabels(classes=classes).targets(IGNORED)
    found = targets.classes(torch.tensor([[5, 0, -200, 5]]), None, None)
    assert found.tolist() == [[0, IGNORED, 1, IGNORED]]


def test_a_whole_vocabulary_of_classes_covers_every_token():
    labels = TokenLabels(classes=torch.arange(6) % 2)
    with pytest.raises(ValueError, match="input_ids holds 9, expected tokens below 6"):
        deeprep.analyze(Causal(), [torch.tensor([[1, 9, 2]])], labels=labels)
    with pytest.raises(ValueError, match=rf"labels\[1\] is {VOCABULARY + 1}, expected a class"):
        deeprep.analyze(Causal(), [torch.tensor([[1, 2, VOCABULARY + 1]])], labels="next-token")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"which": "previous-token"}, "which is 'previous-token'"),
        ({"classes": {1: 0}, "most_frequent": 3}, "beside classes"),
        ({"counts": torch.ones(3).long()}, "counts is given without most_frequent"),
        ({"most_frequent": 0}, "most_frequent is 0"),
        ({"most_frequent": 2, "counts": torch.zeros(3).long()}, "counts are all 0"),
        ({"most_frequent": 2, "counts": torch.ones(3)}, "counts has shape"),
        ({"classes": {}}, "classes holds no class"),
        ({"classes": torch.tensor([-1, -1])}, "classes holds no class"),
        ({"classes": {-1: 0}}, "classes holds -1: 0"),
        ({"classes": {"the": 0}}, "classes holds 'the': 0, expected whole numbers"),
        ({"classes": {1: 0.5}}, r"classes holds 1: 0\.5, expected whole numbers"),
        ({"classes": torch.eye(2)}, "classes has shape"),
    ],
)
def test_classes_that_are_none(arguments, said):
    with pytest.raises((ValueError, TypeError), match=said):
        TokenLabels(**arguments)


def test_contradictions_are_errors(transformers):
    ids = torch.tensor([[1, 2, 3]])
    for reduce in ("mean", "flatten", {"*": "tokens"}):
        with pytest.raises(ValueError, match="expected 'tokens' or None"):
            deeprep.analyze(Causal(), [ids], labels="next-token", reduce=reduce)
    with pytest.raises(ValueError, match="num_classes is 5, expected 13, the size of the vocab"):
        deeprep.analyze(Causal(), [ids], 5, labels="next-token")
    with pytest.raises(ValueError, match="labels is 'next', expected 'next-token'"):
        deeprep.analyze(Causal(), [ids], labels="next")
    with pytest.raises(ValueError, match="most_frequent without counts"):
        LayerProbe(Causal(), labels=TokenLabels(most_frequent=3))
    with pytest.raises(ValueError, match="num_classes is None"):
        deeprep.analyze(nn.Conv2d(1, 1, 1), [ids], labels="next-token")
    with pytest.raises(TypeError, match="num_classes is None"):
        deeprep.analyze(Causal(), [(ids, ids)])
    for labels, said in (
        (torch.tensor([1]), "labels has shape"),
        (torch.tensor([[1, 1, 1]]), "labels are other than the input_ids"),
        (torch.rand(1, 3), "labels has shape"),
    ):
        with pytest.raises(ValueError, match=said):
            deeprep.analyze(Causal(), [(ids, labels)], labels="next-token")
    batch = {"input_ids": ids, "attention_mask": torch.ones(1, 1, 3, 3)}
    with pytest.raises(ValueError, match=r"mask has shape \(1, 1, 3, 3\)"):
        deeprep.analyze(Causal(), [batch], labels="next-token")
    with pytest.raises(TypeError, match="inputs holds no input_ids"):
        deeprep.analyze(Causal(), [torch.rand(1, 3)], labels="next-token")
    batch = {"input_ids": ids, "label": torch.tensor([3])}
    with pytest.raises(ValueError, match="labels has shape"):
        deeprep.analyze(Causal(), [batch], labels="next-token")
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="model has an encoder and a decoder"):
        LayerProbe(transformers.T5ForConditionalGeneration(config), labels="next-token")


@pytest.mark.parametrize("ids", [torch.zeros(0, 4).long(), torch.zeros(3, 1).long()])
def test_positions_without_a_next_token_are_no_samples(ids):
    report = deeprep.analyze(Causal(), [ids], labels="next-token")
    assert report.num_samples == 0


# ---------------------------------------------------------------- whole models


def small_model(transformers, kind):
    torch.manual_seed(0)
    if kind == "GPT-2":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=2, n_head=2
        )
        return transformers.GPT2LMHeadModel(config), ["transformer.h.0", "transformer.h.1"]
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return transformers.LlamaForCausalLM(config), ["model.layers.0", "model.layers.1"]


@pytest.mark.parametrize("kind", ["GPT-2", "Llama"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_layer_agrees_with_a_loop_over_the_tokens(transformers, kind, side):
    model, blocks = small_model(transformers, kind)
    sequences = some_sequences()
    batches = [padded(sequences[:3], side), padded(sequences[3:], side)]
    report = deeprep.analyze(model, batches, labels="next-token", accuracy=True)
    assert [layer.name for layer in report.layers][-2:] == blocks
    assert not any("causal" in text for text in report.warnings)
    features, labels = {name: [] for name in blocks}, []
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, rows=features[name]: rows.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        for name in blocks
    ]
    with torch.no_grad():
        for batch in batches:
            model.eval()(**batch)
    for handle in handles:
        handle.remove()
    rows = {name: [] for name in blocks}
    for number, batch in enumerate(batches):
        for row, (ids, mask) in enumerate(
            zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
        ):
            for t in range(len(ids) - 1):
                if mask[t] and mask[t + 1]:
                    labels.append(ids[t + 1])
                    for name in blocks:
                        rows[name].append(features[name][number][row, t].double())
    labels = torch.tensor(labels).numpy()
    assert report.num_samples == len(labels)
    for layer in report.layers[-2:]:
        wanted = reference.compression(torch.stack(rows[layer.name]).numpy(), labels)
        assert layer.compression == pytest.approx(wanted, rel=1e-5)
        assert layer.ncc_accuracy is not None


def test_a_model_that_reads_ahead_is_told_of():
    batch = padded(some_sequences(), "right")
    report = deeprep.analyze(Bidirectional(), [batch], labels="next-token")
    assert any("model is not causal" in text for text in report.warnings)
    plain = deeprep.analyze(Bidirectional(), [batch], labels="current-token")
    assert not any("causal" in text for text in plain.warnings)


def test_a_short_first_sequence_does_not_hide_it():
    batch = padded([[END], [1, END], [3, 1, 4, 1, 5, END]], "right")
    report = deeprep.analyze(Bidirectional(), [batch], labels="next-token")
    assert any("model is not causal" in text for text in report.warnings)


def test_a_model_whose_weights_lie_with_several_processes_runs_as_often_as_it_is_given_batches():
    calls = []

    class Gathering(nn.Module):
        def __init__(self):
            super().__init__()
            self._fsdp_wrapped_module = Bidirectional()

        def forward(self, input_ids):
            calls.append(len(input_ids))
            return self._fsdp_wrapped_module(input_ids)

    report = deeprep.analyze(Gathering(), [torch.tensor([[1, 2, 3]])] * 2, labels="next-token")
    assert calls == [1, 1]
    assert report.num_samples == 4


def test_a_model_that_takes_no_single_row_is_measured_all_the_same():
    class Pairs(Causal):
        def forward(self, input_ids):
            if len(input_ids) != 2:
                raise KeyError("two rows")
            return super().forward(input_ids)

    report = deeprep.analyze(Pairs(), [torch.tensor([[1, 2], [2, 1]])], labels="next-token")
    assert report.num_samples == 2


def test_a_loop_of_ones_own():
    model = Causal()
    inputs = padded(some_sequences(), "right")
    wanted = deeprep.analyze(model, [inputs], labels="next-token")
    with LayerProbe(model, labels="next-token") as probe:
        probe(inputs, None)
    with LayerProbe(model, labels="next-token") as beside:
        mask = inputs["attention_mask"]
        with beside.batch(inputs["input_ids"].masked_fill(mask == 0, IGNORED), mask):
            model(**inputs)
    for found in (probe, beside):
        assert found.report().layers == wanted.layers


def test_of_several_processes_the_tokens_are_counted_together(run_ranks):
    exits, results = run_ranks(measure_share, 2)
    assert exits == [0, 0]
    sequences = [[7, 7, 7], [3, 3, 3, 3], [9, 9]]
    whole = deeprep.analyze(
        make_causal(),
        [torch.tensor([each]) for each in sequences],
        labels=TokenLabels(most_frequent=2),
    )
    for _ in range(2):
        names, values = results.get()
        assert names == ["token 3", "token 7"] == whole.class_names
        assert values == pytest.approx([layer.compression for layer in whole.layers])


def make_causal():
    torch.manual_seed(3)
    return Causal()


def measure_share(rank, size, store, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size
    )
    share = [[[7, 7, 7], [9, 9]], [[3, 3, 3, 3]]][rank]
    report = deeprep.analyze(
        make_causal(),
        [torch.tensor([each]) for each in share],
        labels=TokenLabels(most_frequent=2),
        all_reduce=True,
        max_memory=400,
    )
    results.put((report.class_names, [layer.compression for layer in report.layers]))
    torch.distributed.destroy_process_group()
