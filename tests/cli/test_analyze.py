"""`deeprep analyze` from end to end: every kind of model and data, on little of it."""

import json
import sys
import warnings

import pytest
import torch
from analyze_command import DIGITS, MODELS, analyzed, cnn, only_report

import deeprep
from deeprep import LayerReport
from deeprep.cli import main
from deeprep.data import DataSettings, load_data
from deeprep.models import ModelSettings
from deeprep.run import run
from deeprep.run.settings import MeasurementSettings, OptimizationSettings, RunSettings, Settings

pytestmark = pytest.mark.usefixtures("folder")


def test_a_torchvision_model_on_images(capsys):
    assert main(["analyze", "squeezenet1_1", *DIGITS]) == 0
    captured = capsys.readouterr()
    assert (
        "squeezenet1_1 on digits (40 samples of shape (1, 8, 8) in 10 classes), cpu" in captured.out
    )
    assert "weights: random (seed 0)" in captured.out
    assert "network.features.12" in captured.out
    assert captured.err == ""


def test_an_own_model_is_measured_as_analyze_does(capsys):
    result = analyzed(capsys, "own_models:cnn", *DIGITS, "--seed", "3", "--full", "--accuracy")
    report = only_report(result)
    data = load_data("digits", samples_per_class=4, seed=3)
    wanted = deeprep.analyze(
        cnn(3),
        [(data.inputs, data.labels)],
        10,
        reduce="mean",
        full="auto",
        accuracy=True,
        class_names=data.class_names,
    )
    assert [layer.name for layer in report.layers] == ["input", "1", "3"]
    for found, expected in zip(report.layers, wanted.layers, strict=True):
        assert found.compression == pytest.approx(expected.compression, rel=1e-5)
        assert found.nc1 == pytest.approx(expected.nc1, rel=1e-3)
        assert found.ncc_accuracy == expected.ncc_accuracy
    assert report.class_names == list("0123456789")
    assert result["reduce"] == "mean"


def test_test_data_are_scored_by_the_means_and_probes_of_the_others(folder, sentences, capsys):
    lines = [f"good\t{'b' * (4 + i)} end\n" for i in range(5)]
    (folder / "others.tsv").write_text("".join(lines))  # lacks a class
    arguments = ("own_models:Sentences", "--data", sentences, "--test-data", "others.tsv", "--full")
    result = analyzed(capsys, *arguments, "--accuracy", "--out", "o")
    report = only_report(result)
    assert result["test_data"] == "others.tsv"
    assert report.test.num_samples == 5
    assert report.test.class_names == report.class_names == ["bad", "good"]
    assert report.test.layers[2].probe_accuracy is not None
    assert report.neural_collapse.classifier == report.test.neural_collapse.classifier == "head"
    (folder / "more.tsv").write_text("".join(lines) + "odd\tccc\n")
    chosen = (*arguments[:3], "--test-data", "more.tsv", "--classes", "2")
    assert only_report(analyzed(capsys, *chosen)).test.num_samples == 5
    header = (folder / "o/layers.csv").read_text().splitlines()[0]
    assert "test_probe_accuracy" in header
    assert main(["analyze", *arguments]) == 0
    text = capsys.readouterr().out
    assert "tested on others.tsv (5 sentences" in text
    assert "probe, test" in text
    assert "neural collapse at the input of 'head'" in text


def test_test_images_are_scaled_as_the_others(folder, capsys):
    from PIL import Image

    for split, brightness in (("train", 90), ("held_out", 190)):
        for name in ("cat", "dog") if split == "train" else ("dog",):
            (folder / split / name).mkdir(parents=True)
            for index in range(3):
                image = Image.new("L", (9, 9), brightness + 9 * index + (name == "dog"))
                image.putpixel((index, 2), 0)
                image.save(folder / split / name / f"{index}.png")
    flags = ("--data", "image-folder", "--data-dir", "train", "--image-size", "8")
    result = analyzed(capsys, "squeezenet1_1", *flags, "--test-data", "held_out")
    report = only_report(result)
    assert report.test.num_samples == 3
    assert report.class_names == ["cat", "dog"]
    # Normalised by its own statistics, the brighter set would look like the other.
    assert report.test.layers[0].ncc_accuracy is not None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--test-data", "digits"), "test_data is 'digits', the data that are measured"),
        (("--test-data", "nothing.tsv"), "nothing.tsv is not a file"),
        (("--test-data", "nowhere"), "test_data is 'nowhere', expected digits"),
        (("--test-data", "others.tsv"), "test_data has the classes good, expected some of data"),
        (("--test-data", "orthogonal"), "test_data has samples of shape"),
    ],
)
def test_test_data_that_do_not_fit(folder, flags, message, capsys):
    (folder / "others.tsv").write_text("good\tyes\n")
    assert main(["analyze", "own_models:cnn", *DIGITS, *flags]) == 1
    assert message in capsys.readouterr().err


def test_flags_reach_the_measurement(capsys):
    flags = ("--layers", "0", "--layers", "2", "--reduce", "flatten", "--weighting", "prior")
    more = ("--corrected", "--jackknife", "--dtype", "float64", "--batch-size", "7")
    report = only_report(
        analyzed(capsys, "own_models:cnn", *DIGITS, *flags, *more, "--classes", "3", "1", "8", "0")
    )
    assert [layer.name for layer in report.layers] == ["input", "0", "2"]
    assert [layer.num_features for layer in report.layers] == [64, 4 * 36, 6 * 16]
    assert (report.weighting, report.corrected) == ("prior", True)
    assert report.class_names == ["3", "1", "8", "0"]
    assert all(layer.compression_error > 0 for layer in report.layers)
    assert all(layer.nc1 is None and layer.ncc_accuracy is None for layer in report.layers)


def test_small_classes_are_left_out(folder, capsys):
    lines = [
        f"{label}\t{label * 5} {i}" for label, n in (("a", 4), ("b", 3), ("c", 1)) for i in range(n)
    ]
    (folder / "few.tsv").write_text("label\ttext\n" + "\n".join(lines) + "\n")
    arguments = ("own_models:Sentences", "--data", "few.tsv", "--full", "--min-count", "2")
    report = only_report(analyzed(capsys, *arguments))
    assert (report.num_classes, report.num_measured_classes, report.min_count) == (3, 2, 2)
    assert report.warnings[0] == (
        "all layers: 1 of 3 classes have fewer than 2 samples and are left out"
    )
    assert all(layer.closest_classes == (0, 1) for layer in report.layers)
    # A single sample has no spread: the scatter is that of the others.
    assert all(layer.vci is not None for layer in report.layers)


def test_bfloat16_loses_digits_of_features_only(capsys):
    arguments = ("own_models:cnn", *DIGITS)
    exact = only_report(analyzed(capsys, *arguments)).layers
    rounded = only_report(analyzed(capsys, *arguments, "--dtype", "bfloat16")).layers
    assert rounded[0].compression == exact[0].compression
    assert rounded[2].compression == pytest.approx(exact[2].compression, rel=0.05)
    assert rounded[2].compression != exact[2].compression


@pytest.fixture
def sentences(folder):
    text = "".join(f"{'good' if i % 2 else 'bad'}\t{'ab'[i % 2] * (3 + i)} end\n" for i in range(8))
    (folder / "reviews.tsv").write_text(text)
    return "reviews.tsv"


def test_sentences_go_to_an_own_model_as_bytes(sentences, capsys):
    arguments = ("own_models:Sentences", "--data", sentences)
    report = only_report(analyzed(capsys, *arguments))
    assert report.class_names == ["bad", "good"]
    assert report.num_samples == 8
    assert [(layer.name, layer.num_features) for layer in report.layers] == [
        ("input", 8),
        ("blocks.1", 8),
        ("blocks.3", 8),
    ]
    # Padding is left out of the mean: the size of the batch, and with it the padding, is no matter.
    alone = only_report(analyzed(capsys, *arguments, "--batch-size", "1"))
    for layer, unpadded in zip(report.layers, alone.layers, strict=True):
        assert layer.compression == pytest.approx(unpadded.compression, rel=1e-4)
    short = only_report(analyzed(capsys, *arguments, "--max-length", "3"))
    assert short.layers[0].compression < 1e-9  # only aaa and bbb are left
    tokens = only_report(analyzed(capsys, *arguments, "--reduce", "tokens"))
    assert tokens.num_samples == sum(3 + i + len(" end") for i in range(8))


def test_a_hugging_face_folder(sentences, folder, capsys):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: index for index, word in enumerate(("[UNK]", "end", "aaaa", "bbbbb"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]"
    ).save_pretrained(folder / "gpt")
    transformers.GPT2Config(
        n_embd=8, n_layer=2, n_head=2, vocab_size=4, bos_token_id=0, eos_token_id=0
    ).save_pretrained(folder / "gpt")
    report = only_report(analyzed(capsys, "hf:gpt", "--data", sentences, "--reduce", "last"))
    assert [layer.name for layer in report.layers] == ["input", "h.0", "h.1"]
    assert main(["analyze", "gpt", "--data", sentences]) == 1
    assert "model gpt is no run directory; if a Hugging Face folder, hf:gpt" in (
        capsys.readouterr().err
    )


WORDS = ["<end>", "the", "cat", "sat", "on", "mat"]


@pytest.fixture
def language_model(folder):
    """A GPT-2 and a tokenizer without a token for padding, as GPT-2 has none."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<end>", eos_token="<end>"
    ).save_pretrained(folder / "gpt")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=8, n_layer=2, n_head=2, vocab_size=6, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "gpt")
    (folder / "cat.txt").write_text("the cat sat on the mat the cat sat on the <end> the cat sat")
    return "hf:gpt"


def test_next_tokens_of_a_text_file(language_model, folder, capsys):
    arguments = (language_model, "--data", "cat.txt", "--labels", "next-token")
    result = analyzed(capsys, *arguments, "--max-length", "8", "--accuracy")
    report = only_report(result)
    assert result["labels"] == "next-token"
    assert result["reduce"] == "tokens"
    assert [layer.name for layer in report.layers] == ["input", "h.0", "h.1"]
    assert (report.num_samples, report.num_classes) == (7 + 6, 6)
    assert report.class_names == WORDS
    assert report.layers[-1].ncc_accuracy is not None
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(folder / "gpt", local_files_only=True)
    ids = torch.tensor([[WORDS.index(word) for word in (folder / "cat.txt").read_text().split()]])
    blocks = [ids[:, :8], ids[:, 8:]]
    wanted = deeprep.analyze(model, blocks, labels="next-token", layers=["h.0", "h.1"])
    for found, expected in zip(report.layers, wanted.layers, strict=True):
        assert found.compression == pytest.approx(expected.compression, rel=1e-5)


def test_most_frequent_next_tokens_of_documents(language_model, folder, capsys):
    (folder / "cats.jsonl").write_text('{"text": "the cat sat the cat"}\n{"text": "mat the cat"}\n')
    arguments = (language_model, "--data", "cats.jsonl", "--labels", "next-token")
    report = only_report(analyzed(capsys, *arguments, "--most-frequent", "2"))
    assert (report.num_samples, report.class_names) == (5, ["cat", "the"])
    (folder / "cats.tsv").write_text("a\tthe cat sat\nb\tthe mat\n")
    assert main(["analyze", language_model, "--data", "cats.tsv", "--labels", "next-token"]) == 0
    assert "cats.tsv (next tokens in 2 blocks of 2 documents)" in capsys.readouterr().out


def test_next_tokens_of_an_own_model_are_bytes(folder, capsys):
    (folder / "a.txt").write_text("abcabcab")
    arguments = ("own_models:Sentences", "--data", "a.txt", "--labels", "next-token")
    report = only_report(analyzed(capsys, *arguments, "--layers", "blocks"))
    assert (report.num_samples, report.num_classes) == (7, 257)
    assert report.class_name(98) == "token 98"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "cat.txt", "--most-frequent", "3"), "most_frequent needs labels next-token"),
        (("--data", "digits", "--labels", "next-token"), "data is digits, expected a .txt, .tsv"),
        (("--labels", "next-token"), "data is None, expected a .txt"),
        (("--data", "cat.txt", "--labels", "next-token", "--reduce", "mean"), "reduce is mean"),
        (("--data", "cat.txt", "--labels", "next-token", "--classes", "2"), "classes is for label"),
        (("--data", "none.txt", "--labels", "next-token"), "data none.txt is not a file"),
        (("--data", "cat.txt", "--labels", "next-token", "--max-length", "1"), "max_length is 1"),
    ],
)
def test_flags_that_do_not_go_with_next_tokens(language_model, capsys, arguments, said):
    assert main(["analyze", language_model, *arguments]) == 1
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    settings = Settings(
        ModelSettings("mlp", depth=3, width=16),
        DataSettings("digits", classes=(3,), samples_per_class=20),
        OptimizationSettings(epochs=3, dtype="float64"),
        MeasurementSettings(measurements=3, weighting="prior"),
        RunSettings(runs_dir=tmp_path_factory.mktemp("runs"), name="r"),
    )
    return run(settings).path


def test_a_run_directory_shows_what_the_run_measured(run_directory, capsys):
    before = {path: path.read_bytes() for path in run_directory.iterdir()}
    result = analyzed(capsys, run_directory)
    lines = (run_directory / "metrics.jsonl").read_text().splitlines()
    recorded = [json.loads(line) for line in lines]
    assert len(recorded) >= 3
    assert [c["report"] for c in result["checkpoints"]] == [each["report"] for each in recorded]
    names = [c["name"] for c in result["checkpoints"]]
    assert names == [f"epoch-{each['epoch']}" for each in recorded]
    assert {path: path.read_bytes() for path in run_directory.iterdir()} == before


def test_a_run_directory_is_measured_anew_where_asked(run_directory, capsys):
    result = analyzed(capsys, run_directory, "--remeasure")
    (checkpoint,) = result["checkpoints"]
    lines = (run_directory / "metrics.jsonl").read_text().splitlines()
    last = LayerReport.from_dict(json.loads(lines[-1])["report"])
    again = LayerReport.from_dict(checkpoint["report"])
    assert (result["dtype"], result["weighting"], result["reduce"]) == (
        "float64",
        "prior",
        "flatten",
    )
    assert [layer.name for layer in again.layers] == [layer.name for layer in last.layers]
    for new, old in zip(again.layers, last.layers, strict=True):
        assert new.compression == pytest.approx(old.compression, rel=1e-9)
    other = only_report(analyzed(capsys, run_directory, *DIGITS, "--layers", "layer2"))
    assert (other.num_samples, other.num_classes) == (40, 10)
    assert [layer.name for layer in other.layers] == ["input", "layer2"]
    assert main(["analyze", str(run_directory), "--classes", "2"]) == 1
    assert "classes needs data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18"], "data is left out, expected digits, orthogonal, mnist"),
        (["resnet18", "--data", "digit"], "data is 'digit', expected digits, orthogonal"),
        (["resnet18", "--data", "none.tsv"], "data none.tsv is not a file"),
        (["resnt18", *DIGITS], "model is 'resnt18', expected"),
        (["own_models:cnn", *DIGITS, "--layers", "layer9"], "layers holds 'layer9'"),
        (["own_models:cnn", *DIGITS, "--weights", "x*.pt"], "weights x*.pt matches no file"),
        (["own_models:cnn", *DIGITS, "--weights", "."], "weights . is a folder, expected a file"),
        (["own_models:cnn", *DIGITS, "--device", "gpu"], "device is 'gpu', expected auto"),
        (["own_models:cnn", *DIGITS, "--seed", "1" + 30 * "0"], "seed is 1000"),
        (["own_models:cnn", *DIGITS, "--batch-size", "0"], "batch_size is 0, expected"),
        (["own_models:cnn", *DIGITS, "--min-count", "0"], "min_count is 0, expected"),
        (["own_models:cnn", *DIGITS, "--save-states"], "save_states needs out"),
        (["own_models:cnn", *DIGITS, "--out", "a/b"], "out is a/b, but there is no directory a"),
        (
            ["own_models:cnn", *DIGITS, "--out", "own_models.py"],
            "out is own_models.py, which is a file",
        ),
        (["own_models:cnn", *DIGITS, "--out", "."], "out is ., which holds other files"),
        (
            ["own_models:cnn", "--data", "digits", "--classes", "11"],
            "classes is 11, expected at most 10",
        ),
        (["own_models:fails", *DIGITS], "model own_models:fails failed: IndexError: list index"),
        (["timm:nothing", *DIGITS], "model timm:nothing needs timm"),
    ],
)
def test_an_error_is_one_line_and_nothing_is_written(
    folder, capsys, monkeypatch, arguments, message
):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(["analyze", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert [p.name for p in folder.iterdir() if p.name != "__pycache__"] == ["own_models.py"]


@pytest.mark.parametrize("text", ["5", "[]", '"settings"', "{}"])
def test_a_folder_whose_config_is_of_something_else(folder, capsys, text):
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text(text)
    assert main(["analyze", "other"]) == 1
    assert capsys.readouterr().err.startswith("error: model other is no run directory")


def test_the_place_of_an_error_in_an_own_model_is_named(folder, capsys):
    line = MODELS.splitlines().index("        return [][3]") + 1
    assert main(["analyze", "own_models:fails", *DIGITS]) == 1
    assert f"({folder / 'own_models.py'}, line {line})" in capsys.readouterr().err


def test_warnings_of_models_are_lines_and_come_once(folder, capsys):
    (folder / "own_models.py").write_text(
        MODELS.replace(
            "def cnn(num_classes):",
            "import warnings\ndef cnn(num_classes):\n"
            "    warnings.warn('odd\\nmore')\n    warnings.warn('odd\\nmore')\n"
            "    warnings.warn('old', DeprecationWarning)",
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # they must not get out
        assert main(["analyze", "own_models:cnn", *DIGITS]) == 0
    assert capsys.readouterr().err == "warning: odd\n"


def test_metrics_are_chosen_by_name(capsys):
    arguments = ("own_models:cnn", *DIGITS, "--metrics", "cdnv", "gnc2", "--metrics", "etf_error")
    layer = only_report(analyzed(capsys, *arguments)).layers[1]
    assert None not in (layer.cdnv, layer.gnc2, layer.etf_error)
    assert layer.equinorm is None
    assert main(["analyze", "own_models:cnn", *DIGITS, "--metrics", "nc1"]) == 1
    assert "metrics holds 'nc1', which needs states with full=True" in capsys.readouterr().err
