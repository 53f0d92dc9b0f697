"""Models by name: what is built, what it takes, and what is said of what cannot be built."""

import sys

import pytest
import torch
from torch import nn

from deeprep.data import ByteTokenizer
from deeprep.models import FittedImages, VisionModel
from deeprep.models.load import load_model

GREY = (1, 8, 8)

FACTORIES = """
import torch
from torch import nn


def net(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, num_classes))


class Sentences(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embedding, self.head = nn.Embedding(257, 6), nn.Linear(6, num_classes)

    def forward(self, input_ids, attention_mask):
        weights = attention_mask / attention_mask.sum(1, keepdim=True)
        return self.head((self.embedding(input_ids) * weights.unsqueeze(2)).sum(1))


def with_tokenizer(num_classes):
    return Sentences(num_classes), tokenize


def tokenize(text, **options):
    ids = torch.tensor([[len(sentence)] for sentence in text])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def needs_width(width):
    return nn.Linear(width, width)


def fails():
    return {}["missing"]


built = nn.Linear(3, 2)
number = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module of one's own; its name is new in every test, as modules are imported once."""
    name = f"factories_of_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def test_a_torchvision_classifier_takes_grey_images():
    model = load_model("squeezenet1_1", 7, GREY)
    assert isinstance(model.module, VisionModel)
    assert model.weights == "random"
    assert model.module.eval()(torch.zeros(2, *GREY)).shape == (2, 7)


def test_weights_with_another_number_of_outputs(tmp_path):
    torch.save(VisionModel("squeezenet1_1", GREY, 3).network.state_dict(), tmp_path / "own.pt")
    other = VisionModel("squeezenet1_1", (3, 64, 64), 12)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "pretrained.pt")
    model = load_model("squeezenet1_1", 3, GREY)
    model.load_weights(tmp_path / "pretrained.pt")
    assert model.num_outputs == 12
    assert model.weights == str(tmp_path / "pretrained.pt")
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.module.state_dict()[name], tensor), name
    model.load_weights(tmp_path / "own.pt")
    assert model.num_outputs == 3


def test_weights_that_do_not_fit_change_nothing(tmp_path):
    model = load_model("squeezenet1_1", 3, GREY)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt do not fit a SqueezeNet: 52 missing"):
        model.load_weights(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="is a folder, expected a file"):
        model.load_weights(tmp_path)
    assert model.weights == "random"
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(before[name], tensor), name


def test_own_factories(factories):
    assert load_model(f"{factories}:net", 4, GREY).module[-1].out_features == 4
    assert load_model(f"{factories}:built", 4, (3,)).module.out_features == 2
    text = load_model(f"{factories}:Sentences", 4)
    assert isinstance(text.tokenizer, ByteTokenizer)
    assert text.module(**text.tokenizer(["one", "three"])).shape == (2, 4)
    own = load_model(f"{factories}:with_tokenizer", 4)
    assert own.module(**own.tokenizer(["one", "three"])).shape == (2, 4)


@pytest.mark.parametrize(
    ("attribute", "error", "message"),
    [
        ("nett", ValueError, "has no 'nett'; did you mean net"),
        ("needs_width", TypeError, "needs width, expected a factory without arguments"),
        ("fails", ValueError, r"raised KeyError: 'missing' \(.*factories_of_.*\.py, line \d+\)"),
        ("number", TypeError, "is a int, expected a function or class"),
        ("tokenize", TypeError, "needs text"),
        ("ByteTokenizer", ValueError, "has no 'ByteTokenizer'"),
    ],
)
def test_factories_that_fail(factories, attribute, error, message):
    with pytest.raises(error, match=message):
        load_model(f"{factories}:{attribute}", 4, GREY)


def test_modules_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "module_with_a_slip.py").write_text("import no_such_library_at_all\n")
    with pytest.raises(ValueError, match="there is no module 'no_such_module'"):
        load_model("no_such_module:net", 4, GREY)
    with pytest.raises(ValueError, match="a_slip raised ModuleNotFoundError: No module named 'no"):
        load_model("module_with_a_slip:net", 4, GREY)


def test_a_model_that_takes_no_ids_is_told_what_sentences_need(factories):
    with pytest.raises(TypeError, match=r"takes \(input\), expected forward\(input_ids, atten"):
        load_model(f"{factories}:net", 4)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnt18", GREY, "model is 'resnt18', expected .* did you mean resnet18"),
        ("mlp", GREY, "model mlp has no depth and width of its own"),
        ("resnet18", None, "data holds sentences, expected images for model resnet18"),
        ("resnet18", (50,), r"data has samples of \(50,\), expected images"),
        ("resnet18", (4, 8, 8), "with 1 or 3 channels"),
    ],
)
def test_names_and_data_that_do_not_go_together(name, shape, message):
    with pytest.raises(ValueError, match=message):
        load_model(name, 4, shape)


@pytest.mark.parametrize(("name", "package"), [("timm:a", "timm"), ("hf:a", "transformers")])
def test_a_library_that_is_not_installed_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"model {name} needs {package}.*pip install {package}"):
        load_model(name, 4, GREY)


def test_images_are_fitted():
    seen = []
    network = nn.Identity()
    network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    images = torch.zeros(2, 1, 4, 8)
    FittedImages(network, fixed_size=(6, 5))(images)
    FittedImages(network, channels=1, least_size=8)(images)
    FittedImages(network, channels=2)(images)
    assert seen == [(2, 3, 6, 5), (2, 1, 8, 16), (2, 2, 4, 8)]


# --------------------------------------------------- libraries that may not be installed


def test_timm(tmp_path):
    timm = pytest.importorskip("timm")
    model = load_model("timm:test_vit", 4, GREY)
    assert model.module.eval()(torch.zeros(1, *GREY)).shape == (1, 4)
    other = timm.create_model("test_vit", num_classes=6)
    torch.save(other.state_dict(), tmp_path / "a.pt")
    model.load_weights(tmp_path / "a.pt")
    assert torch.equal(model.module.network.head.weight, other.head.weight)
    with pytest.raises(ValueError, match="timm has no 'hf-hub:x/y'"):  # not on the network
        load_model("timm:hf-hub:x/y", 4, GREY)


@pytest.fixture
def bert(tmp_path):
    """A Hugging Face folder with a tiny BERT that was trained with a head, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "good", "bad"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    config = transformers.BertConfig(
        vocab_size=4,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
    )
    folder = tmp_path / "bert"
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    return folder, model


def test_hugging_face_folder(bert, tmp_path):
    folder, trained = bert
    with pytest.warns(UserWarning, match="pooler.dense.*: random here") as caught:
        model = load_model(f"hf:{folder}", 2)
    assert caught[0].filename == __file__
    assert model.weights == str(folder)
    assert model.max_length == 20
    ids = model.tokenizer(["good bad", "other"], padding=True, return_tensors="pt")
    assert ids["input_ids"].tolist() == [[2, 3], [1, 0]]
    model.module.eval()
    outputs = model.module(**ids).last_hidden_state
    torch.testing.assert_close(outputs, trained.bert.eval()(**ids).last_hidden_state)

    # Checkpoints of a trainer: folders, and files with the head in them.
    with torch.no_grad():
        trained.bert.embeddings.word_embeddings.weight.fill_(1)
    trained.save_pretrained(tmp_path / "checkpoint-1")
    with pytest.warns(UserWarning, match="checkpoint-1 lack pooler"):
        model.load_weights(tmp_path / "checkpoint-1")
    assert (model.module.embeddings.word_embeddings.weight == 1).all()
    with pytest.raises(ValueError, match=r"2 missing \(pooler\.dense\.weight, pooler\.dense\.bia"):
        model.load_weights(tmp_path / "checkpoint-1" / "model.safetensors")


def test_hugging_face_errors(bert, tmp_path):
    folder, _ = bert
    with pytest.raises(FileNotFoundError, match="is not a folder with a config"):
        load_model("hf:bert-base-uncased", 2)  # not on the network
    with (
        pytest.warns(UserWarning, match="pooler"),
        pytest.raises(
            ValueError, match=r"data holds samples of \(1, 8, 8\), expected input_ids for"
        ),
    ):
        load_model(f"hf:{folder}", 2, GREY)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with (
        pytest.warns(UserWarning, match="pooler"),
        pytest.raises(FileNotFoundError, match="has no tokenizer in"),
    ):
        load_model(f"hf:{folder}", 2)
    (folder / "tokenizer.json").write_text("{")
    with (
        pytest.warns(UserWarning, match="pooler"),
        pytest.raises(ValueError, match="has no tokenizer that loads"),
    ):
        load_model(f"hf:{folder}", 2)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=f"{folder}: "):
        load_model(f"hf:{folder}", 2)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_hugging_face_folder_is_named(bert, name):
    folder, _ = bert
    whole = (folder / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"[]", whole.replace(b'"', b"'", 1)):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{folder}: "):
            load_model(f"hf:{folder}", 2)


def test_hugging_face_images_and_random_weights(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
    ).save_pretrained(tmp_path)
    model = load_model(f"hf:{tmp_path}", 2, GREY)
    assert model.weights == "random"
    assert model.module(torch.zeros(2, *GREY)).last_hidden_state.shape == (2, 5, 8)
    with pytest.raises(ValueError, match=r"data holds sentences, expected pixel_values for"):
        load_model(f"hf:{tmp_path}", 2)
