"""Which module is the classifier, what enters it and what the model decides, for many models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from probe_models import ResidualNet, make_batches
from torch import nn

from deeprep import LayerProbe, analyze, reference

LABELS = torch.arange(12) % 3


def collapse_of(model, inputs, labels=LABELS, num_classes=3, **options):
    loader = [(inputs[:7], labels[:7]), (inputs[7:], labels[7:])]
    options = {"reduce": "mean", "full": "auto", "accuracy": True} | options
    return analyze(model, loader, num_classes, **options).neural_collapse


class Net(nn.Module):
    """Features, a head, and what comes after the head."""

    def __init__(self, head, after=None):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), head
        self.after = after or (lambda scores: scores)

    def forward(self, inputs):
        return self.after(self.head(torch.relu(self.body(inputs))))


@pytest.mark.parametrize(
    ("head", "after"),
    [
        (nn.Linear(6, 3), None),
        (nn.Linear(6, 3, bias=False), lambda scores: {"loss": None, "logits": scores}),
        (nn.Linear(6, 3), lambda scores: (scores, None)),
        (nn.Linear(6, 3), lambda scores: scores.log_softmax(dim=1)),
        (nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), None),
    ],
)
def test_it_is_found_without_being_asked_for(head, after):
    inputs = torch.randn(12, 4)
    model = Net(head, after)
    found = collapse_of(model, inputs)
    assert found.classifier == "head"
    assert found.reasons == {}
    features = torch.relu(model.body(inputs)).detach().numpy()
    decisions = head(torch.relu(model.body(inputs))).argmax(dim=1).numpy()
    weight = head.weight.detach().numpy()
    expected = reference.self_duality(features, LABELS.numpy(), weight)
    assert found.self_duality == pytest.approx(expected, rel=1e-5)
    assert found.ncc_mismatch == reference.ncc_mismatch(features, LABELS.numpy(), decisions)
    assert found.model_accuracy == np.mean(decisions == LABELS.numpy())


def test_the_model_itself_may_be_it():
    found = collapse_of(nn.Linear(4, 3), torch.randn(12, 4))
    assert (found.classifier, found.num_features) == ("the model itself", 4)


def test_a_hidden_layer_as_wide_as_the_classes_is_not_it():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    assert collapse_of(model, torch.randn(12, 4)).classifier == "2"


class TwoHeads(Net):
    """The mean of two heads, as of distilled transformers."""

    def __init__(self):
        super().__init__(nn.Linear(6, 3))
        self.second = nn.Linear(6, 3)

    def forward(self, inputs):
        hidden = torch.relu(self.body(inputs))
        return (self.head(hidden) + self.second(hidden)) / 2


class Cosine(nn.Linear):
    """Scores by cosines: of the shape of a Linear, but not linear."""

    def forward(self, inputs):
        return nn.functional.normalize(inputs) @ nn.functional.normalize(self.weight).T


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (TwoHeads(), "'head', 'second'; classifier= takes the name of a module"),
        (Net(nn.Linear(6, 5)), r"output has shape (7, 5), expected (N, 3)"),
        (Net(nn.Linear(6, 1)), r"output has shape (7, 1), expected (N, 3)"),
        (Net(nn.Linear(6, 3), lambda scores: None), "output holds no scores"),
        (Net(nn.Linear(6, 3), lambda scores: scores[:, [1, 2, 0]]), "is not that of a linear map"),
    ],
)
def test_the_reason_where_it_is_not_clear(model, reason):
    found = collapse_of(model, torch.randn(12, 4))
    assert found.classifier is found.nc1 is found.ncc_mismatch is None
    assert reason in found.reasons["classifier"]


def test_a_head_that_is_not_linear_leaves_all_but_the_third():
    found = collapse_of(Net(Cosine(6, 3)), torch.randn(12, 4))
    assert found.classifier == "head"
    assert list(found.reasons) == ["self_duality"]
    assert found.ncc_mismatch is not None


def test_one_can_be_named():
    inputs, model = torch.randn(12, 4), TwoHeads()
    by_name = collapse_of(model, inputs, classifier="second")
    assert by_name == collapse_of(model, inputs, classifier=model.second)
    assert by_name.self_duality is not None
    hidden = torch.relu(model.body(inputs)).detach().numpy()
    decisions = model(inputs).argmax(dim=1).numpy()
    expected = reference.ncc_mismatch(hidden, LABELS.numpy(), decisions)
    assert by_name.ncc_mismatch == expected
    with pytest.raises(ValueError, match=r"classifier is 'secnd', .*close names: second"):
        LayerProbe(model, 3, classifier="secnd")
    with pytest.raises(ValueError, match="classifier is a Linear, expected a module of the model"):
        LayerProbe(model, 3, classifier=nn.Linear(6, 3))
    with pytest.raises(TypeError, match="classifier is 3, expected a name"):
        LayerProbe(model, 3, classifier=3)
    assert collapse_of(model, inputs, classifier=None) is None


class LastToken(nn.Module):
    """Scores of every token, those of the last one returned, as of GPT-2's classifier."""

    def __init__(self):
        super().__init__()
        self.body, self.score = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, inputs):
        return self.score(torch.tanh(self.body(inputs)))[:, -1]


def test_the_token_that_the_model_decides_by_is_measured():
    inputs, model = torch.randn(12, 5, 4), LastToken()
    found = collapse_of(model, inputs)
    features = torch.tanh(model.body(inputs[:, -1])).detach().numpy()
    assert found.nc1 == pytest.approx(reference.nc1(features, LABELS.numpy()), rel=1e-5)
    assert found.num_features == 6


def test_tokens_with_labels_of_their_own():
    class Tagger(LastToken):
        def forward(self, inputs):
            return self.score(torch.tanh(self.body(inputs)))

    inputs, model = torch.randn(12, 5, 4), Tagger()
    labels = torch.arange(60).reshape(12, 5) % 3
    labels[:, 3] = -100
    found = collapse_of(model, inputs, labels, reduce="tokens")
    kept = labels.flatten() >= 0
    features = torch.tanh(model.body(inputs)).detach().flatten(0, 1)[kept].numpy()
    expected = reference.etf_error(features, labels.flatten()[kept].numpy())
    assert found.etf_error == pytest.approx(expected, rel=1e-5)
    without = collapse_of(model, inputs)
    assert "expected a score for each class and each label" in without.reasons["classifier"]


def test_what_cannot_be_had_says_why():
    model, data = ResidualNet(), make_batches()
    found = analyze(model, data, 3).neural_collapse
    assert found.reasons["nc1"] == "needs full=True"
    assert found.reasons["ncc_mismatch"] == "needs a second pass, accuracy=True"
    with LayerProbe(model, 3) as probe:
        probe(*data[0])
    assert "outside of `run`" in probe.report().neural_collapse.reasons["classifier"]
    broken = [(torch.full_like(x, torch.nan), y) for x, y in data]
    found = analyze(model, broken, 3, full=True, accuracy=True).neural_collapse
    assert "NaN or Inf" in found.reasons["ncc_mismatch"]
    assert "hold NaN or Inf" in found.reasons["nc1"]


def test_no_hook_stays():
    model = ResidualNet()
    probe = LayerProbe(model, 3)
    with pytest.raises(OSError, match="gone"):
        probe.run(failing())
    assert not any(module._forward_hooks for module in model.modules())


def failing():
    yield make_batches()[0]
    raise OSError("gone")


@pytest.mark.parametrize(
    ("name", "classifier"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")]
)
def test_torchvision(name, classifier):
    models = pytest.importorskip("torchvision").models
    model = models.get_model(name, weights=None, num_classes=3)
    found = collapse_of(model, torch.randn(12, 3, 32, 32), layers=classifier)
    assert found.classifier == classifier
    assert found.reasons == {}


def test_a_classifier_of_torchvision_that_is_no_linear_map_of_vectors():
    models = pytest.importorskip("torchvision").models
    model = models.get_model("squeezenet1_1", weights=None, num_classes=3)
    found = collapse_of(model, torch.randn(12, 3, 64, 64), layers="classifier")
    assert "not that of a linear map" in found.reasons["classifier"]


@pytest.mark.parametrize(
    ("name", "classifier"),
    [("resnet10t", "fc"), ("test_vit", "head"), ("test_convnext", "head.fc")],
)
def test_timm(name, classifier):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False, num_classes=3)
    size = model.default_cfg["input_size"]
    found = collapse_of(model, torch.randn(12, *size), layers=classifier)
    assert found.classifier == classifier
    assert found.reasons == {}


_SMALL = {"num_labels": 3, "vocab_size": 30, "pad_token_id": 0}
_BERT = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    **_SMALL,
}


@pytest.mark.parametrize(
    ("kind", "settings", "classifier"),
    [
        ("Bert", _BERT, "classifier"),
        ("Roberta", {**_BERT, "max_position_embeddings": 32}, "classifier.out_proj"),
        ("GPT2", {"n_embd": 8, "n_layer": 2, "n_head": 2, **_SMALL}, "score"),
    ],
)
def test_hugging_face(kind, settings, classifier):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    ids = torch.randint(1, 30, (12, 6))
    ids[::2, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": LABELS}
    report = analyze(
        model, [batch], 3, reduce="mean", full=True, accuracy=True, test_loader=[batch]
    )
    found = report.neural_collapse
    assert found.classifier == classifier
    assert found.reasons == {}
    assert report.test.neural_collapse.ncc_mismatch == found.ncc_mismatch
    with torch.no_grad():
        logits = model.eval()(**{n: v for n, v in batch.items() if n != "labels"}).logits
    assert found.model_accuracy == pytest.approx(
        (logits.argmax(dim=1) == LABELS).float().mean().item()
    )


class HiddenOfK(nn.Module):
    """Its only Linear is hidden and as wide as there are classes."""

    def __init__(self):
        super().__init__()
        self.hidden, self.weight = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 3))

    def forward(self, inputs):
        return torch.relu(self.hidden(inputs)) @ self.weight


def test_a_hidden_layer_that_happens_to_agree_on_one_sample_is_not_it():
    inputs = torch.randn(60, 4)
    model = HiddenOfK()
    for first in range(12):
        loader = [(inputs[first : first + 1], LABELS[first : first + 1]), (inputs[:12], LABELS)]
        found = analyze(model, loader, 3).neural_collapse
        assert "not that of a linear map" in found.reasons["classifier"]


@pytest.mark.parametrize("after", [torch.softmax, torch.log_softmax])
def test_a_softmax_of_one_sample_is_known(after):
    model = Net(nn.Linear(6, 3), lambda scores: after(scores, dim=1))
    loader = list(zip(torch.randn(12, 1, 4), LABELS[:, None], strict=True))
    assert analyze(model, loader, 3).neural_collapse.classifier == "head"


def test_the_scores_are_found_behind_a_loss():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, inputs):
            scores = self.fc(inputs)
            return scores.logsumexp(dim=1).mean(), scores

    assert collapse_of(WithLoss(), torch.randn(12, 4)).classifier == "fc"
