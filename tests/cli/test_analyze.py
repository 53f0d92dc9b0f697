"""`deeprep analyze` from end to end: every kind of model and data, on little of it."""

import csv
import io
import json
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file

import deeprep
from deeprep import ClassScatter, LayerReport
from deeprep.cli import main
from deeprep.cli.analysis import Analysis, checkpoint_names
from deeprep.data import DataSettings, load_data
from deeprep.models import ModelSettings
from deeprep.run import run
from deeprep.run.settings import MeasurementSettings, OptimizationSettings, RunSettings, Settings

DIGITS = ["--data", "digits", "--samples-per-class", "4"]

MODELS = """
import torch
from torch import nn


def cnn(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, num_classes),
    )


class Sentences(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embedding = nn.Embedding(257, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, num_classes)

    def forward(self, input_ids, attention_mask):
        return self.head(self.blocks(self.embedding(input_ids)).mean(1))


class Fails(nn.Linear):
    def forward(self, images):
        return [][3]


def fails():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Fails(8, 8), nn.Linear(8, 8))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Everything happens in a directory of its own, in which `models.py` holds own models."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_models.py").write_text(MODELS)
    yield tmp_path
    sys.modules.pop("own_models", None)


def analyzed(capsys, *arguments, status=0):
    """What `deeprep analyze ... --json` prints."""
    assert main(["analyze", *map(str, arguments), "--json"]) == status
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def only_report(result):
    (checkpoint,) = result["checkpoints"]
    return LayerReport.from_dict(checkpoint["report"])


def cnn(seed):
    torch.manual_seed(seed)
    namespace = {}
    exec(MODELS, namespace)
    return namespace["cnn"](10)


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


def test_bfloat16_loses_digits_of_features_only(capsys):
    arguments = ("own_models:cnn", *DIGITS)
    exact = only_report(analyzed(capsys, *arguments)).layers
    rounded = only_report(analyzed(capsys, *arguments, "--dtype", "bfloat16")).layers
    assert rounded[0].compression == exact[0].compression
    assert rounded[2].compression == pytest.approx(exact[2].compression, rel=0.05)
    assert rounded[2].compression != exact[2].compression


def test_out_holds_tables_figures_and_states(folder, capsys):
    result = analyzed(capsys, "own_models:cnn", *DIGITS, "--out", "o", "--save-states")
    written = sorted(str(p.relative_to(folder / "o")) for p in (folder / "o").rglob("*.*"))
    states = [f"states/00{i}-{name}.safetensors" for i, name in enumerate(("input", "1", "3"))]
    assert written == ["analysis.json", "layers.csv", "report.json", "report.png", *states]
    assert json.loads((folder / "o/analysis.json").read_text()) == result
    report = only_report(result)
    assert LayerReport.from_dict(json.loads((folder / "o/report.json").read_text())) == report
    for state, layer in zip(states, report.layers, strict=True):
        scatter = ClassScatter.load(folder / "o" / state)
        assert deeprep.compression(scatter) == layer.compression


def test_every_checkpoint_of_a_training_run(folder, capsys):
    torch.save({"model": cnn(1).state_dict()}, "epoch-2.pt")
    torch.save({f"module.{k}": v for k, v in cnn(2).state_dict().items()}, "epoch-10.pt")
    save_file(cnn(3).state_dict(), "last.safetensors")
    weights = ("--weights", "epoch-*.pt", "--weights", "last.safetensors")
    result = analyzed(capsys, "own_models:cnn", *DIGITS, *weights, "--out", "o")
    names = [checkpoint["name"] for checkpoint in result["checkpoints"]]
    assert names == ["epoch-2", "epoch-10", "last"]
    for seed, checkpoint in enumerate(result["checkpoints"], start=1):
        alone = deeprep.analyze(cnn(seed), digits(), 10, reduce="mean")
        found = LayerReport.from_dict(checkpoint["report"])
        assert found.layers[2].compression == pytest.approx(alone.layers[2].compression, rel=1e-5)
    with (folder / "o/layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["checkpoint"] for row in rows] == [name for name in names for _ in range(3)]
    assert [row["name"] for row in rows] == ["input", "1", "3"] * 3
    for name in ("evolution.png", "report.png"):
        assert (folder / "o" / name).read_bytes().startswith(b"\x89PNG")
    for checkpoint in result["checkpoints"]:
        report = json.loads((folder / "o" / checkpoint["name"] / "report.json").read_text())
        assert report == checkpoint["report"]


def digits():
    data = load_data("digits", samples_per_class=4)
    return [(data.inputs, data.labels)]


def test_a_checkpoint_that_fails_is_named_and_the_others_go_on(capsys):
    torch.save(cnn(1).state_dict(), "e-1.pt")
    torch.save({"weight": torch.ones(2)}, "e-2.pt")
    (broken := open("e-3.pt", "w")).write("broken")  # noqa: SIM115
    broken.close()
    torch.save(cnn(2).state_dict(), "e-4.pt")
    assert main(["analyze", "own_models:cnn", *DIGITS, "--weights", "e-*.pt"]) == 1
    captured = capsys.readouterr()
    assert "e-1" in captured.out
    assert "e-4" in captured.out
    errors = captured.err.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith("error: weights e-2.pt do not fit a Sequential: 6 missing (")
    assert errors[1].startswith("error: weights e-3.pt is damaged")
    assert main(["analyze", "own_models:cnn", *DIGITS, "--weights", "e-2.pt", "e-3.pt"]) == 1
    assert "compression" not in capsys.readouterr().out


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


def test_ctrl_c_leaves_no_file(folder, capsys, monkeypatch):
    def interrupted(self, *batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassScatter, "update", interrupted)
    assert main(["analyze", "own_models:cnn", *DIGITS, "--out", "o"]) == 130
    assert capsys.readouterr().out == ""
    assert not (folder / "o").exists()


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


def test_names_of_checkpoints_are_distinct(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = [tmp_path / f / n for f in ("a", "b") for n in ("m.pt", "m.safetensors")]
    assert checkpoint_names(paths) == ["0-m", "1-m", "2-m", "3-m"]
    assert len(set(checkpoint_names(paths[::2]))) == 2


@pytest.mark.parametrize(
    ("names", "numbers"),
    [(["e-1", "e-20", "f-300"], [1, 20, 300]), (["init", "e-2"], [0, 1]), (["b-2", "a-1"], [0, 1])],
)
def test_a_series_is_drawn_at_its_epochs_where_names_tell_them(names, numbers):
    scatter = deeprep.class_scatter(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    analysis = Analysis({}, "", is_series=True)
    for name in names:
        analysis.add(name, LayerReport.from_scatters({"input": scatter}))
    assert [number for number, _ in analysis._series()] == numbers


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_tables_keep_their_columns_in_a_pipe_and_those_asked_for_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["analyze", "own_models:cnn", *DIGITS, "--full", "--accuracy", "--jackknife"]
    asked = ("NC1", "eff. rank", "stable rank", "RankMe", "probe", "NCC", "dir. CDNV")
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(heading in text for heading in (*asked, "closest", "ETF", "GNC2"))
    assert "no room for" not in text
    assert "…" not in text
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert main(arguments) == 0
    text, _, left_out = sys.stdout.getvalue().partition("no room for")
    assert max(map(len, text.splitlines()[2:])) <= 80
    assert all(heading in text for heading in asked)
    assert "GNC2" in left_out


class Forwards(torch.nn.Module):
    """Counts how often it runs."""

    count = 0

    def __init__(self, num_classes):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Linear(8, num_classes))

    def forward(self, images):
        Forwards.count += 1
        return self.layers(images.flatten(1))


def test_states_are_saved_without_another_pass(folder, capsys, monkeypatch):
    namespace = type(sys)("counting_models")
    namespace.Forwards = Forwards
    monkeypatch.setitem(sys.modules, "counting_models", namespace)
    flags = ("--batch-size", "40", "--out", "o", "--save-states")
    for more, passes in (((), 1), (("--accuracy",), 2)):
        monkeypatch.setattr(Forwards, "count", 0)
        analyzed(capsys, "counting_models:Forwards", *DIGITS, *flags, *more)
        assert Forwards.count == passes
        assert (folder / "o/states/000-input.safetensors").is_file()


def test_metrics_are_chosen_by_name(capsys):
    arguments = ("own_models:cnn", *DIGITS, "--metrics", "cdnv", "gnc2", "--metrics", "etf_error")
    layer = only_report(analyzed(capsys, *arguments)).layers[1]
    assert None not in (layer.cdnv, layer.gnc2, layer.etf_error)
    assert layer.equinorm is None
    assert main(["analyze", "own_models:cnn", *DIGITS, "--metrics", "nc1"]) == 1
    assert "metrics holds 'nc1', which needs states with full=True" in capsys.readouterr().err
