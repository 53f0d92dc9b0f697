"""Many classes: their memory is told before there is any, and layers are measured in turns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deeprep
from deeprep.probe import turns
from deeprep.probe.turns import LayerSize, layers_in_turns, state_bytes

CPU = torch.device("cpu")
MANY = turns.MANY_CLASSES


def make_model():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(4)]
    return nn.Sequential(*layers, nn.Linear(6, 3))


LOADER = [(torch.randn(20, 6), torch.arange(20) % 3) for _ in range(3)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("states", [1, 2, 5, 100])
def test_turns_change_no_number(full, states):
    one = state_bytes(3, LayerSize(6, full, CPU))
    whole = deeprep.analyze(make_model(), LOADER, 3, full=full, accuracy=True)
    calls = []
    model = make_model()
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    seen = []
    report = deeprep.analyze(
        model,
        LOADER,
        3,
        full=full,
        accuracy=True,
        max_memory=states * one,
        progress=lambda done, total: seen.append((done, total)),
    )
    handle.remove()
    assert report == whole
    passes = -(-5 // states)
    assert len(calls) == 1 + 2 * 3 * passes  # one batch tells what states there will be
    assert seen[-1] == (6 * passes, 6 * passes)


def test_states_of_no_turn_are_more_than_was_allowed(monkeypatch):
    held = []
    update = deeprep.LayerProbe._update

    def watched(self, *arguments):
        update(self, *arguments)
        held.append(len(self.scatters))

    monkeypatch.setattr(deeprep.LayerProbe, "_update", watched)
    limit = 2 * state_bytes(3, LayerSize(6, False, CPU))
    deeprep.analyze(make_model(), LOADER, 3, max_memory=limit)
    assert max(held) == 2


def test_a_layer_that_does_not_run_is_named_once():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, inputs):
            return self.used(inputs)

    report = deeprep.analyze(
        Lazy(),
        LOADER,
        3,
        layers=["used", "idle"],
        max_memory=state_bytes(3, LayerSize(6, False, CPU)),
    )
    assert [layer.name for layer in report.layers] == ["input", "used"]
    assert [layer.index for layer in report.layers] == [0, 1]
    assert sum("did not run" in text for text in report.warnings) == 1


@pytest.mark.parametrize("states", [1, 2, 5])
def test_turns_say_of_all_layers_what_one_pass_says(states):
    one_class = [(inputs, torch.zeros_like(labels)) for inputs, labels in LOADER]
    whole = deeprep.analyze(make_model(), one_class, 3, full=True)
    assert len(whole.warnings) == 2
    limit = states * state_bytes(3, LayerSize(6, True, CPU))
    report = deeprep.analyze(make_model(), one_class, 3, full=True, max_memory=limit)
    assert report == whole


def test_what_is_said_of_one_turn_is_not_said_of_all():
    model = make_model()
    nn.init.constant_(model[2][0].weight, torch.nan)
    whole = deeprep.analyze(model, LOADER, 3)
    limit = 2 * state_bytes(3, LayerSize(6, False, CPU))
    report = deeprep.analyze(model, LOADER, 3, max_memory=limit)
    assert report.warnings == whole.warnings
    assert whole.warnings


def test_limits_that_are_none():
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_memory is"):
            deeprep.analyze(make_model(), LOADER, 3, max_memory=wrong)
    with pytest.raises(TypeError, match=r"max_memory is 1\.5"):
        deeprep.analyze(make_model(), LOADER, 3, max_memory=1.5)
    with pytest.raises(ValueError, match="max_memory is 100, expected at least the 192 bytes"):
        deeprep.analyze(make_model(), LOADER, 3, max_memory=100)
    with pytest.raises(ValueError, match=r"one-shot iterator.*; or leave out max_memory$"):
        deeprep.analyze(make_model(), iter(LOADER), 3, max_memory=10**6)
    both = "; or pass accuracy=False and leave out max_memory$"
    with pytest.raises(ValueError, match=both):
        deeprep.analyze(make_model(), iter(LOADER), 3, accuracy=True, max_memory=10**6)
    with pytest.raises(ValueError, match="gave no batch"):
        deeprep.analyze(make_model(), [], 3, max_memory=10**6)


def no_states(monkeypatch):
    made = []
    monkeypatch.setattr("deeprep.probe.passes.ClassScatter", lambda *sizes, **_: made.append(sizes))
    return made


def test_too_little_memory_is_said_before_any_is_taken(monkeypatch):
    monkeypatch.setattr(turns, "available_memory", lambda device: 10**6)
    made = no_states(monkeypatch)
    said = rf"5 layers take 2\.5 MiB on cpu, up to 0\.5 MiB a layer of {MANY} classes, expected no "
    with pytest.raises(ValueError, match=said) as error:
        deeprep.analyze(make_model(), LOADER, MANY)
    assert not made
    for way_out in ("layers=", "max_memory=", "most_frequent", "deeprep.sharded"):
        assert way_out in str(error.value)


def test_in_turns_it_is_enough(monkeypatch):
    monkeypatch.setattr(turns, "available_memory", lambda device: 10**6)
    report = deeprep.analyze(make_model(), LOADER, MANY, max_memory=600_000)
    assert len(report.layers) == 5
    wanted = deeprep.analyze(make_model(), LOADER, 3)
    for found, expected in zip(report.layers, wanted.layers, strict=True):
        assert found.compression == expected.compression


def test_much_memory_is_told_of(monkeypatch):
    monkeypatch.setattr(turns, "_TOLD_BYTES", 10**6)
    monkeypatch.setattr(turns, "available_memory", lambda device: 2**34)
    with pytest.warns(UserWarning, match=r"take 2\.5 MiB on cpu.*of 16\.0 GiB that are free"):
        deeprep.analyze(make_model(), LOADER, MANY)


def test_few_classes_cost_no_look_ahead():
    calls = []
    model = make_model()
    model.register_forward_hook(lambda *_: calls.append(1))
    deeprep.analyze(model, LOADER, 3)
    assert len(calls) == len(LOADER)
    one_shot = iter(LOADER)
    deeprep.analyze(model, one_shot, MANY)
    assert len(calls) == 2 * len(LOADER) + 1


def test_tokens_of_a_large_model_take_a_gibibyte_a_layer():
    size = LayerSize(4096, False, CPU)
    assert state_bytes(32_000, size) == 32_000 * (8 * 4096 + 16)
    assert state_bytes(32_000, size._replace(full=True)) > 2 * state_bytes(32_000, size)
    sizes = {f"block{i}": size for i in range(32)}
    turns_of_8 = layers_in_turns(32_000, sizes, 2**33)
    assert [len(turn) for turn in turns_of_8] == [8, 8, 8, 8]


def test_a_turn_begins_anew_after_batches_outside_of_run():
    probe = deeprep.LayerProbe(torch.nn.Linear(4, 2), 2)
    batch = torch.eye(4), torch.tensor([0, 0, 1, 1])
    with probe:
        probe(*batch)
    probe.start_turn(["input"])
    probe.run([batch])
    assert probe.report().neural_collapse.classifier == "the model itself"
