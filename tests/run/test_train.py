"""The training loop: losses and steps by hand, determinism, stopping, and precision."""

import contextlib
import copy
import math

import pytest
import torch
from torch import nn

from deeprep.data import Batches
from deeprep.run.defaults import resolve
from deeprep.run.settings import OptimizationSettings, Settings
from deeprep.run.train import (
    NonFiniteLossError,
    evaluate,
    learning_rate,
    make_optimizer,
    measurement_epochs,
    train,
    training_loss,
)


def settings(**options):
    return resolve(Settings(optimization=OptimizationSettings(**options))).optimization


def problem(num_samples=40, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_samples, 6, generator=generator).to(dtype)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    ).to(dtype)


def trained(options, batch_size=8, dtype=torch.float32, seed=0):
    model, config = network(dtype), settings(**options)
    batches = Batches(*problem(dtype=dtype), batch_size)
    results = list(train(model, make_optimizer(model, config), batches, config, seed=seed))
    return model, results


def test_mse_is_the_sum_over_classes_and_the_mean_over_samples():
    outputs = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]])
    loss = training_loss(outputs, torch.tensor([2, 0]), settings(alpha=2.0))
    wanted = (2.0**2 + 4.0**2 + 5.0**2 + 1.0**2 + 2.0**2 + 1.0**2) / 2
    assert loss.item() == pytest.approx(wanted)


def test_cross_entropy_is_pytorchs():
    outputs, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    loss = training_loss(outputs, labels, settings(loss="cross-entropy"))
    torch.testing.assert_close(loss, nn.functional.cross_entropy(outputs, labels))


def test_one_full_batch_step_is_gradient_descent_with_weight_decay():
    inputs, labels = problem()
    model = nn.Linear(6, 3, bias=False)
    before = model.weight.detach().clone()
    config = settings(lr=0.1, momentum=0.0, weight_decay=0.01, batch_size=0, epochs=1)
    list(train(model, make_optimizer(model, config), Batches(inputs, labels, 0), config, seed=0))
    error = inputs @ before.T - nn.functional.one_hot(labels, 3)
    gradient = 2 * error.T @ inputs / len(labels) + 0.01 * before
    torch.testing.assert_close(model.weight.detach(), before - 0.1 * gradient)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "mse", "lr": 0.02},
        {"loss": "cross-entropy", "lr": 0.1},
        {"optimizer": "adam", "lr": 0.01},
        {"loss": "cross-entropy", "lr": 0.1, "dtype": "bf16"},
        {"lr": 0.02, "schedule": "constant"},
    ],
    ids=str,
)
def test_every_kind_of_training_learns(options):
    model, results = trained({"epochs": 40, **options})
    assert results[-1].loss < 0.8 * results[0].loss
    _, accuracy = evaluate(model, Batches(*problem(), 0), settings(**options))
    assert accuracy > 0.8
    assert [result.epoch for result in results] == list(range(1, 41))
    assert [result.finished for result in results] == [False] * 39 + [True]


def test_the_seed_fixes_every_bit_and_another_seed_does_not():
    first, second = (trained({"epochs": 3})[0].state_dict() for _ in range(2))
    other = trained({"epochs": 3}, seed=1)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_goes_on_to_the_same_bits_from_any_epoch(optimizer):
    config = settings(epochs=6, optimizer=optimizer)
    batches = Batches(*problem(), 8)
    model = network()
    steps = make_optimizer(model, config)
    epochs = train(model, steps, batches, config, seed=3)
    for _ in range(2):
        next(epochs)
    saved = copy.deepcopy((model.state_dict(), steps.state_dict()))
    list(epochs)

    resumed = network()
    resumed.load_state_dict(saved[0])
    steps = make_optimizer(resumed, config)
    steps.load_state_dict(saved[1])
    torch.rand(17)  # what other code draws in between must not matter
    list(train(resumed, steps, batches, config, seed=3, first_epoch=3))
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.state_dict().items())


def test_training_stops_below_the_loss():
    _, results = trained({"epochs": 50, "stop_loss": 0.6})
    assert results[-1].loss < 0.6 <= results[-2].loss
    assert results[-1].finished


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_epoch():
    with pytest.raises(NonFiniteLossError, match=r"the loss of epoch \d is (nan|inf); lower lr"):
        trained({"epochs": 9, "lr": 1e20})


def test_float64_trains_in_float64():
    model, _ = trained({"epochs": 2, "dtype": "float64"}, dtype=torch.float64)
    assert model[0].weight.dtype == torch.float64


def test_evaluation_leaves_the_model_as_it_was():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, labels = problem()
    loss, accuracy = evaluate(model, Batches(inputs, labels, 7), settings(alpha=1.0))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    outputs = model.eval()(inputs)
    assert loss == pytest.approx(training_loss(outputs, labels, settings(alpha=1.0)).item())
    assert accuracy == (outputs.argmax(1) == labels).sum().item() / len(labels)


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_leaves_frozen_modules_frozen(fails):
    """Whoever freezes BatchNorm's statistics puts it in eval mode while the rest trains."""
    model = network()
    model[1].eval()
    before = [module.training for module in model.modules()]
    # An input of the wrong width fails in the first layer, with the model in eval mode.
    batches = Batches(torch.zeros(4, 5 if fails else 6), torch.zeros(4, dtype=torch.int64), 0)
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        evaluate(model, batches, settings())
    assert [module.training for module in model.modules()] == before
    assert before.count(False) == 1


def test_the_cosine_schedule_is_pytorchs():
    config = settings(lr=0.3, final_lr_fraction=0.1, epochs=10)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.03)
    for epoch in range(1, 11):
        assert learning_rate(config, epoch) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("epochs", "count"), [(1, 2), (3, 12), (100, 12), (5000, 30)])
def test_measurements_are_taken_first_last_and_in_between(epochs, count):
    schedule = measurement_epochs(epochs, count)
    assert schedule[0] == 0
    assert schedule[-1] == epochs
    assert list(schedule) == sorted(set(schedule))
    assert len(schedule) <= count
    assert math.isclose(len(schedule), min(count, epochs + 1), abs_tol=0.3 * count)
