"""Figure 8 and the text experiment, with their models, at sizes that train in a moment."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from figures import drawn

from deeprep.data import TextBatches, TextData, load_text
from deeprep.data.tokenizers import WordTokenizer
from deeprep.experiments import __main__, fig8, text
from deeprep.experiments.experiment import Options
from deeprep.models.projection import ProjectionNetwork, conv_extractor, resnet50_extractor
from deeprep.models.sentence import SentenceEncoder
from deeprep.probe import analyze

CPU = torch.device("cpu")


def passed(checks):
    return {check.quantity: check.passed for check in checks}


# ---------------------------------------------------------------- sentences


@pytest.fixture
def synthetic(tmp_path):
    """A file of sentences generated from templates: 3 classes of 27 sentences."""
    words = {
        "weather": ("rain snow fog", "falls lifts stays", "today again now"),
        "food": ("soup bread rice", "tastes smells cooks", "well bad slow"),
        "sport": ("team coach club", "wins loses draws", "home late twice"),
    }
    path = tmp_path / "synthetic.tsv"
    lines = [
        f"{label}\tThe {' '.join(choice)}."
        for label, parts in words.items()
        for choice in product(*(part.split() for part in parts))
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def short_training(monkeypatch):
    monkeypatch.setattr(text, "OPTIMIZATION", replace(text.OPTIMIZATION, epochs=15, batch_size=16))


def test_text_trains_on_a_file_and_judges_its_layers(synthetic, short_training, tmp_path, capsys):
    arguments = ["text", "--data", str(synthetic), "--seeds", "2", "--device", "cpu"]
    assert __main__.main([*arguments, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "text" / "result.json").read_text())
    assert result["command"].endswith("text --data synthetic.tsv --seeds 2")
    numbers = result["numbers"]
    assert numbers["class_names"] == ["food", "sport", "weather"]
    assert numbers["samples"] == [81, 81]
    assert numbers["words"] == [28, 28]  # 9 of each class, and "the"
    assert [len(layers) for layers in numbers["compression"]] == [7, 7]
    verdicts = {check["quantity"]: check["passed"] for check in result["checks"]}
    assert verdicts["training accuracy, least of all runs"]
    assert verdicts["factor of C_l a layer"]
    assert (tmp_path / "text" / "figure.png").is_file()


def test_text_resumes_with_the_same_file_only(synthetic, short_training, tmp_path, capsys):
    arguments = ["text", "--data", str(synthetic), "--seeds", "1", "--device", "cpu", "--resume"]
    arguments += ["--out", str(tmp_path)]
    found = []
    for word in ("soup", "soup", "cake"):
        synthetic.write_text(synthetic.read_text().replace("soup", word))
        assert __main__.main(arguments) == 0
        found.append("seed-0: found" in capsys.readouterr().out)
    assert found == [False, True, False]


def test_text_without_sentences_says_what_to_give(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt
    assert __main__.main(["text", "--out", str(tmp_path)]) == 1
    assert "no sentences: give --data FILE" in capsys.readouterr().err


def test_only_text_takes_data(synthetic, tmp_path, capsys):
    arguments = ["fig4a", "--data", str(synthetic), "--out", str(tmp_path / "out")]
    assert __main__.main(arguments) == 1
    assert "synthetic.tsv, which fig4a cannot use" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _apt(folder, stanzas, monkeypatch):
    """Put an apt-cache that prints these stanzas in front of all others."""
    (folder / "available").write_text("\n\n".join(stanzas))
    script = folder / "apt-cache"
    script.write_text(f'#!/bin/sh\nexec /bin/cat "{folder / "available"}"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_package_descriptions_become_a_file(monkeypatch, tmp_path):
    stanzas = [
        f"Package: {section}{index}\nTag: a,\n b: c\nDescription: {section} number {index}\n"
        f" a longer text\nSection: {'universe/' if index % 2 else ''}{section}"
        for section in (*text.SECTIONS, "libs")
        for index in range(text.LEAST_PER_SECTION)
    ]
    stanzas += [stanzas[0].replace("Section: fonts", "Section: games")]  # a sentence seen before
    stanzas += ['Package: a\nDescription: a "quoted" game\nSection: games', "Package: broken"]
    _apt(tmp_path, stanzas, monkeypatch)
    read = load_text(text._package_descriptions(tmp_path / "packages.tsv"))
    assert read.class_names == text.SECTIONS
    counts = dict(zip(read.class_names, read.labels.bincount().tolist(), strict=True))
    assert counts == {**dict.fromkeys(text.SECTIONS, 100), "games": 101}
    assert read.sentences[1] == "fonts number 1"
    assert read.sentences[-1] == 'a "quoted" game'


def test_an_apt_without_lists_is_no_source_of_sentences(monkeypatch, tmp_path):
    _apt(tmp_path, ["Package: a\nDescription: a game\nSection: games"], monkeypatch)
    with pytest.raises(FileNotFoundError, match="apt-get update"):
        text._package_descriptions(tmp_path / "packages.tsv")
    assert not (tmp_path / "packages.tsv").exists()


def test_a_class_gives_at_most_so_many_sentences():
    labels = torch.tensor([0] * 10 + [1] * 3)
    data = TextData([f"sentence {i}" for i in range(13)], labels, ("many", "few"), "a.tsv")
    drawn = text._at_most(data, 5, seed=0)
    assert drawn.labels.tolist() == [0] * 5 + [1] * 3
    assert [data.labels[data.sentences.index(s)] for s in drawn.sentences] == [0] * 5 + [1] * 3
    assert drawn.sentences != text._at_most(data, 5, seed=1).sentences
    assert text._at_most(data, None, seed=0).sentences == data.sentences


def test_text_verdicts_tell_layers_that_do_not_compress():
    layers = np.arange(7)
    geometric = {
        "data": "a.tsv",
        "class_names": ["a", "b"],
        "accuracy": [1.0, 0.995],
        "compression": [(10 * 0.5**layers).tolist()] * 2,
        "discrimination": [(0.1 * layers).tolist()] * 2,
    }
    assert all(passed(text.check(geometric)).values())
    left, _ = text.plot(geometric).axes
    assert left.get_yscale() == "log"
    assert drawn(left)["geometric fit"] == pytest.approx(drawn(left)["sentences, ours"][1:])
    flat = {**geometric, "accuracy": [1.0, 0.6], "compression": [[5.0, 4, 5, 4, 5, 4, 5]]}
    assert [check.quantity for check in text.check(flat) if not check.passed] == [
        "training accuracy, least of all runs",
        "layers l = 1 .. 6 at which C_l falls",
        "R^2 of a geometric fit to C_l, l >= 1",
        "factor of C_l a layer",
    ]


def test_words_are_numbered_by_frequency_and_cut_off():
    tokenizer = WordTokenizer(["b a", "a. B c", "A!"])
    assert tokenizer.ids == {"a": 2, "b": 3, "c": 4}
    tokens = tokenizer(["?!", "c b a unseen"], max_length=3)
    assert tokens["input_ids"].tolist() == [[1, 0, 0], [4, 3, 2]]
    assert tokens["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    with pytest.raises(ValueError, match="expected True, True, 'pt'"):
        tokenizer(["a"], padding=False)


def test_a_sentence_is_encoded_the_same_however_far_it_is_padded():
    torch.manual_seed(0)
    model = SentenceEncoder(vocab_size=9, num_classes=3, depth=3, width=8).eval()
    short, padded = torch.tensor([[2, 5]]), torch.tensor([[2, 5, 0, 0]])
    assert torch.equal(model(short), model(padded))
    # A mask says which words count, whatever the ids under it.
    masked = model(torch.tensor([[2, 5, 7]]), attention_mask=torch.tensor([[1, 1, 0]]))
    assert torch.equal(model(short), masked)
    assert model(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()


def test_layer_0_of_a_sentence_encoder_is_the_mean_of_its_words(synthetic):
    data = load_text(synthetic)
    tokenizer = WordTokenizer(data.sentences)
    model = SentenceEncoder(tokenizer.vocab_size, 3, depth=3, width=8)
    report = analyze(
        model, TextBatches(data, tokenizer, 10), 3, layers=model.probe_layers, reduce="mean"
    )
    assert [layer.name for layer in report.layers] == ["input", "layers.layer1", "layers.layer2"]
    with torch.no_grad():
        ids = tokenizer(list(data.sentences))["input_ids"]  # all of four words: no padding
        means = model.embedding(ids).mean(1).double()
    centres = torch.stack([means[data.labels == k].mean(0) for k in range(3)])
    within = (means - centres[data.labels]).square().sum(1).mean()
    between = (centres - means.mean(0)).square().sum(1).mean()
    assert report.layers[0].compression == pytest.approx(float(within / between), rel=1e-5)


# ---------------------------------------------------------------- projection heads

SMALL = replace(
    fig8.REDUCED,
    source="digits",
    source_samples=30,
    target="digits",
    target_samples=30,
    held_out=60,
    channels=4,
    head_width=16,
    optimization=replace(fig8.REDUCED.optimization, epochs=30),
)


def test_fig8_pretrains_and_transfers():
    part = fig8._train(SMALL, 2, seed=0, device=CPU)
    assert part["accuracy"] > 0.9
    assert len(part["compression"]) == 3  # the extractor and two layers of the head
    assert part["compression"][-1] < part["compression"][0]
    assert part["transfer"] > 0.5  # of five classes that the extractor never saw
    assert fig8._train(SMALL, 2, seed=0, device=CPU) == part


def test_fig8_tests_on_samples_that_the_classifier_did_not_see(monkeypatch):
    rows = {"fitted": [], "tested": []}

    class Spy(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)

    class Scatter(fig8.ClassScatter):
        def update(self, features, labels):
            content = [row.numpy().tobytes() for row in features]
            rows["fitted"] += zip(content, labels.tolist(), strict=True)
            super().update(features, labels)

    def probe(scatter):
        fitted = original(scatter)
        predict = fitted.predict

        def spied(features):
            rows["tested"] += [row.numpy().tobytes() for row in features]
            return predict(features)

        object.__setattr__(fitted, "predict", spied)
        return fitted

    original = fig8.probe
    monkeypatch.setattr(fig8, "ClassScatter", Scatter)
    monkeypatch.setattr(fig8, "probe", probe)
    accuracy = fig8._transfer_accuracy(Spy(), 64, SMALL, 0, CPU)
    assert Counter(label for _, label in rows["fitted"]) == dict.fromkeys(range(5), 30)
    assert len(rows["tested"]) == 5 * 60
    assert not set(rows["tested"]) & {row for row, _ in rows["fitted"]}
    assert accuracy > 0.6


def _numbers(compression, transfer):
    """Of five heads and three seeds, which scatter by 1 %."""
    scatter = np.array([0.99, 1.0, 1.01])
    return {
        "heads": {
            str(head): {
                "accuracy": [1.0] * 3,
                "compression": [[c * s, *[c / 2**i for i in range(1, head + 1)]] for s in scatter],
                "transfer": (t * scatter).tolist(),
            }
            for head, c, t in zip(fig8.HEADS, compression, transfer, strict=True)
        }
    }


def test_fig8_judges_whether_both_curves_rise():
    paper = _numbers(fig8.FIGURE_COMPRESSION, fig8.FIGURE_ACCURACY)
    checks = fig8.check(paper)
    assert all(check.passed for check in checks)
    slope = next(check for check in checks if "transfer" in check.quantity)
    assert slope.ours == pytest.approx(slope.paper)
    compression, transfer, *right = fig8.plot(paper).axes  # the paper's own scales on the right
    for axes, other in zip((compression, transfer), right, strict=True):
        ours, theirs = drawn(axes)["ours (left axis)"], drawn(other)["paper (right axis)"]
        assert ours == pytest.approx(theirs, rel=1e-3)
    falling = _numbers(fig8.FIGURE_COMPRESSION, fig8.FIGURE_ACCURACY[::-1])
    assert [check.quantity for check in fig8.check(falling) if not check.passed] == [
        "slope of the transfer accuracy, per layer of the head"
    ]
    paper["heads"]["1"]["accuracy"][0] = 0.7
    assert not passed(fig8.check(paper))["accuracy on the source, least of all runs"]


def test_fig8_names_the_sizes_it_uses():
    reduced, full = ({s.name: s.value for s in fig8.settings(Options(full=f))} for f in (0, 1))
    assert reduced["source"].startswith("FashionMNIST")
    assert (full["source"], full["target"]) == ("CIFAR-100", "CIFAR-10")


def test_extractors_say_how_many_features_they_give():
    for shape in ((1, 28, 28), (1, 8, 8), (3, 33, 20)):
        extractor, num_features = conv_extractor(shape, width=2)
        assert extractor(torch.zeros(2, *shape)).shape == (2, num_features)
    extractor, num_features = resnet50_extractor((3, 32, 32))
    with torch.no_grad():
        assert extractor.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, num_features)


def test_a_head_of_n_layers_is_n_layers_and_a_classifier():
    extractor, num_features = conv_extractor((1, 8, 8), width=2)
    model = ProjectionNetwork(extractor, num_features, 5, head_layers=3, width=7)
    shapes = [tuple(p.shape) for name, p in model.head.named_parameters() if p.ndim == 2]
    assert shapes == [(7, 16), (7, 7), (7, 7), (5, 7)]
    assert model.probe_layers == ["extractor", "head.layer1", "head.layer2", "head.layer3"]
