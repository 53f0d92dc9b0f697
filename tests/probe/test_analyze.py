"""analyze: one pass over a loader, a report, and a model left as it was."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from probe_models import ResidualNet, make_batches
from torch import nn

import deeprep
from deeprep import analyze, class_scatter


class Counted:
    """A loader that counts how often it is run through."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def test_statistics_are_those_of_the_layers_features():
    model, batches = ResidualNet().eval(), make_batches()
    report = analyze(model, batches, 3, full="auto", accuracy=True)
    inputs = torch.cat([x for x, _ in batches])
    labels = torch.cat([y for _, y in batches])
    with torch.no_grad():
        hidden = model.blocks[0](model.stem(inputs))
    assert [layer.name for layer in report.layers] == [
        "input",
        "blocks.0",
        "blocks.1",
        "last_block",
    ]
    expected = class_scatter(hidden, labels, full=True)
    layer = report.layers[1]
    assert layer.compression == pytest.approx(deeprep.compression(expected), rel=1e-5)
    assert layer.discrimination == pytest.approx(deeprep.discrimination(expected), rel=1e-5)
    assert layer.nc1 == pytest.approx(deeprep.metrics.nc1(expected), rel=1e-4)
    assert layer.numerical_rank == deeprep.metrics.numerical_rank(expected)
    probe = deeprep.metrics.probe(expected)
    assert layer.probe_accuracy == pytest.approx(probe.accuracy(hidden, labels))
    assert layer.ncc_accuracy == pytest.approx(
        deeprep.metrics.ncc_accuracy(expected, hidden, labels)
    )


def test_one_forward_pass_unless_accuracy_is_asked_for():
    loader = Counted(make_batches())
    report = analyze(ResidualNet(), loader, 3)
    assert loader.passes == 1
    layer = report.layers[1]
    assert layer.nc1 is layer.ncc_accuracy is layer.probe_accuracy is layer.numerical_rank is None
    report = analyze(ResidualNet(), loader, 3, accuracy=True)
    assert loader.passes == 3
    assert report.layers[1].ncc_accuracy is not None


def test_options_of_the_report_arrive():
    names = ["cat", "dog", "owl", "eel"]
    options = {"weighting": "prior", "corrected": True, "jackknife": True, "class_names": names}
    model, batches = ResidualNet(), make_batches(num_classes=4)
    report = analyze(model, batches, 4, layers="stem", **options)
    model.eval()
    features = torch.cat([model.stem(x) for x, _ in batches]).detach()
    s = class_scatter(features, torch.cat([y for _, y in batches]))
    layer = report.layers[1]
    expected = deeprep.compression(s, "prior", corrected=True)
    assert layer.compression == pytest.approx(expected, rel=1e-6)
    errors = deeprep.metrics.jackknife(s, "prior", corrected=True)
    assert layer.compression_error == pytest.approx(errors.compression, rel=1e-4)
    assert set(report.most_confused()[0][:2]) <= set(names)


# ---------------------------------------------------------------- the model stays as it was


def state_of(model):
    return {
        "flags": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "grads": [(p.requires_grad, p.grad) for p in model.parameters()],
        "mode": (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()),
    }


class Interrupted(ResidualNet):
    """A model that draws random numbers, and then is stopped."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, inputs):
        output = super().forward(inputs + 0 * torch.rand(()))
        if self.error is not None:
            raise self.error
        return output


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_analyze_leaves_the_model_as_it_was(error):
    model, batches = Interrupted(error), make_batches()
    model.norm.eval()  # a frozen BatchNorm in a training model
    model.stem.weight.requires_grad_(False)
    model.blocks[0].register_forward_hook(lambda *_: None)
    tensors, state = copy.deepcopy(model.state_dict()), state_of(model)
    random_state = torch.get_rng_state()
    if error is None:
        analyze(model, batches, 3, accuracy=True)
    else:
        with pytest.raises(error):
            analyze(model, batches, 3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert state_of(model) == state
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


def test_a_loader_that_fails_leaves_the_model_as_it_was():
    def failing():
        yield from make_batches()
        raise OSError("disk gone")

    model = ResidualNet()
    state = state_of(model)
    with pytest.raises(OSError, match="disk gone"):
        analyze(model, failing(), 3)
    assert state_of(model) == state


def test_training_flags_do_not_go_through_overridden_methods():
    class Merging(nn.Linear):
        """An adapter that folds itself into the weight when told to evaluate."""

        def train(self, mode=True):
            if not mode:
                self.weight.data.add_(1.0)
            return super().train(mode)

    model = nn.Sequential(Merging(4, 6), nn.Linear(6, 3))
    before = model[0].weight.clone()
    analyze(model, make_batches(), 3)
    assert torch.equal(model[0].weight, before)
    assert model[0].training


# ---------------------------------------------------------------- loaders


def test_mappings_that_hold_their_labels():
    class Model(ResidualNet):
        def forward(self, pixel_values, labels=None):
            assert labels is None  # or it would compute a loss
            return {"logits": super().forward(pixel_values)}

    model, batches = Model(), make_batches()
    expected = analyze(model, [({"pixel_values": x}, y) for x, y in batches], 3)
    for key in ("labels", "label"):
        loader = [{"pixel_values": x, key: y} for x, y in batches]
        assert analyze(model, loader, 3) == expected
        assert all(key in batch for batch in loader)  # the loader's own batches stay whole


def test_several_inputs_and_a_data_loader():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 6)

        def forward(self, first, second):
            return self.linear(first + second)

    model, batches = Sum(), make_batches()
    pairs = [((x, 2 * x), y) for x, y in batches]
    report = analyze(model, pairs, 3, layers="linear")
    rows = [((x[i], 2 * x[i]), y[i]) for x, y in batches for i in range(len(x))]
    loader = torch.utils.data.DataLoader(rows, batch_size=20)  # makes lists of tuples
    assert analyze(model, loader, 3, layers="linear") == report


def test_loaders_that_cannot_serve_are_refused():
    with pytest.raises(ValueError, match="one-shot iterator"):
        analyze(ResidualNet(), iter(make_batches()), 3, accuracy=True)
    assert analyze(ResidualNet(), iter(make_batches()), 3).num_samples == 60
    with pytest.raises(ValueError, match="loader gave no batch"):
        analyze(ResidualNet(), [], 3)


def test_progress_is_reported_and_shown_on_terminals_only(capsys, monkeypatch):
    calls = []
    analyze(ResidualNet(), make_batches(), 3, accuracy=True, progress=lambda *x: calls.append(x))
    assert calls == [(i, 6) for i in range(1, 7)]
    calls.clear()
    analyze(ResidualNet(), iter(make_batches()), 3, progress=lambda *x: calls.append(x))
    assert calls == [(1, None), (2, None), (3, None)]
    analyze(ResidualNet(), make_batches(), 3, progress=True)
    assert capsys.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    analyze(ResidualNet(), make_batches(), 3, progress=True)
    assert "3/3" in terminal.getvalue()


# ---------------------------------------------------------------- warnings


def test_layers_that_did_not_run_are_named():
    class Skipping(ResidualNet):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(3, 3)

    report = analyze(Skipping(), make_batches(), 3, layers=["stem", "unused"])
    assert [layer.name for layer in report.layers] == ["input", "stem"]
    assert "layer 'unused': did not run" in report.warnings

    class OneHot(ResidualNet):
        def forward(self, ids):
            return super().forward(nn.functional.one_hot(ids, 4).float())

    labels = torch.arange(12) % 3
    report = analyze(OneHot(), [(torch.randint(4, (12,)), labels)], 3, layers="stem")
    assert [layer.name for layer in report.layers] == ["stem"]
    assert any("layer 'input': " in line for line in report.warnings)


def test_nan_is_reported_with_layer_and_class():
    class Breaking(nn.Module):
        def __init__(self):
            super().__init__()
            self.spoil = nn.Identity()

        def forward(self, inputs):
            return self.spoil(inputs / (inputs[:, :1] != self.marker))

    model = Breaking()
    batches = make_batches()
    model.marker = batches[0][0][1, 0]  # a sample of class 1
    report = analyze(model, batches, 3, layers="spoil", accuracy=True)
    assert any("layer 'spoil'" in line and "1 class (1)" in line for line in report.warnings)
    assert report.layers[1].ncc_accuracy is None
    assert not report.layers[1].compression < float("inf")
    assert report.layers[0].compression < float("inf")


def test_all_processes_together(tmp_path):
    from torch import distributed

    model, batches = ResidualNet(), make_batches()
    alone = analyze(model, batches, 3, accuracy=True)
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        assert analyze(model, batches, 3, accuracy=True, all_reduce=True) == alone
        with pytest.raises(ValueError, match="loader gave no batch"):
            analyze(model, [], 3, all_reduce=True)
    finally:
        distributed.destroy_process_group()
