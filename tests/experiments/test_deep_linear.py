"""Batched training against autograd, network by network."""

import math
from dataclasses import replace

import pytest
import torch

import deeprep
from deeprep.experiments.deep_linear import (
    GradientDescent,
    Synthetic,
    layer_metrics,
    train,
    train_directly,
    train_reduced,
)

DESCENT = GradientDescent(lr=0.3, final_lr_fraction=0.1, epochs=300, stop_loss=1e-6)
RUN = Synthetic(dimension=32, width=32, depth=3, init_scale=0.4, descent=DESCENT)
CPU = torch.device("cpu")


def draw(seeds, run=RUN):
    weights = [torch.stack(same) for same in zip(*map(run.draw_weights, seeds), strict=True)]
    return weights, torch.stack([run.draw_inputs(seed) for seed in seeds])


def by_autograd(weights, inputs, labels, descent, alpha):
    """Weights, last loss and steps of one network trained by torch alone."""
    weights = [weight.clone().requires_grad_() for weight in weights]
    optimizer = torch.optim.SGD(weights, descent.lr, weight_decay=descent.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, descent.epochs, eta_min=descent.lr * descent.final_lr_fraction
    )
    targets = torch.nn.functional.one_hot(labels).double()
    for steps in range(1, descent.epochs + 1):  # noqa: B007
        outputs = inputs
        for weight in weights:
            outputs = outputs @ weight.T
        loss = (alpha * outputs - targets).square().sum() / len(labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if loss.item() < descent.stop_loss:
            break
    return [weight.detach() for weight in weights], loss.item(), steps


@pytest.mark.parametrize(("alpha", "weight_decay"), [(1.0, 0.0), (2.0, 0.0), (1.0, 1e-3)])
def test_every_network_of_a_batch_trains_as_it_does_alone(alpha, weight_decay):
    descent = replace(DESCENT, weight_decay=weight_decay)
    weights, inputs = draw(range(3))
    labels = RUN.labels()
    trained = train(weights, inputs, labels, descent, alpha=alpha)
    for index in range(3):
        alone, loss, steps = by_autograd(
            [weight[index] for weight in weights], inputs[index], labels, descent, alpha
        )
        assert trained.epochs[index] == steps
        assert float(trained.losses[index]) == pytest.approx(loss, rel=1e-6)
        for found, expected in zip(trained.weights, alone, strict=True):
            torch.testing.assert_close(found[index], expected, rtol=0, atol=1e-11)


def test_networks_stop_one_by_one_and_say_whether_they_got_there():
    easy, hard = (replace(RUN, init_scale=scale) for scale in (0.6, 1e-3))
    weights = [
        torch.stack(pair) for pair in zip(easy.draw_weights(0), hard.draw_weights(0), strict=True)
    ]
    inputs = torch.stack([RUN.draw_inputs(0)] * 2)
    trained = train(weights, inputs, RUN.labels(), DESCENT)
    assert trained.converged.tolist() == [True, False]
    assert trained.epochs[0] < trained.epochs[1] == DESCENT.epochs
    assert trained.losses[0] < DESCENT.stop_loss < trained.losses[1]


def test_a_network_that_diverges_leaves_the_others_alone():
    weights, inputs = draw([0, 1])
    large = [weight.clone() for weight in weights]
    for weight in large:
        weight[1] *= 100
    trained = train(large, inputs, RUN.labels(), DESCENT)
    assert trained.converged.tolist() == [True, False]
    assert not math.isfinite(trained.losses[1])
    undisturbed = train([w[:1] for w in weights], inputs[:1], RUN.labels(), DESCENT)
    for found, expected in zip(trained.weights, undisturbed.weights, strict=True):
        torch.testing.assert_close(found[:1], expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("restore_threads")
def test_the_weights_given_and_the_threads_are_left_as_they_were():
    weights, inputs = draw([0])
    before = [weight.clone() for weight in weights]
    torch.set_num_threads(2)
    train(weights, inputs, RUN.labels(), replace(DESCENT, epochs=3))
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    assert torch.get_num_threads() == 2


def test_no_epochs_are_refused():
    weights, inputs = draw([0])
    with pytest.raises(ValueError, match=r"^epochs is 0, expected >= 1"):
        train(weights, inputs, RUN.labels(), replace(DESCENT, epochs=0))


def test_layers_are_measured_as_class_scatter_does():
    weights, inputs = draw([0, 1])
    labels = RUN.labels()
    measured = layer_metrics(weights, inputs, labels)
    features = inputs[1] @ weights[0][1].T @ weights[1][1].T
    scatter = deeprep.class_scatter(features, labels)
    assert measured["compression"][1][2] == pytest.approx(deeprep.compression(scatter))
    assert measured["discrimination"][1][2] == pytest.approx(deeprep.discrimination(scatter))
    assert [len(layers) for layers in measured["compression"]] == [3, 3]  # l = 0, 1, 2


def test_reduced_networks_compress_at_the_rate_of_the_direct_ones():
    run = replace(RUN, width=60, depth=4, descent=replace(DESCENT, stop_loss=1e-10, epochs=2000))
    seeds = range(4)
    direct = torch.tensor(train_directly(run, seeds, CPU)["compression"])
    trained, inputs = train_reduced([run.draw_reduced(seed) for seed in seeds], run, CPU)
    assert bool(trained.converged.all())
    reduced = torch.tensor(layer_metrics(trained.weights, inputs, run.labels())["compression"])
    # The same data, other draws of the weights: C_0 is the same, the rest differs by chance.
    torch.testing.assert_close(reduced[:, 0], direct[:, 0], rtol=1e-9, atol=0)
    ratios = [(each[:, -1] / each[:, 1]).log().mean() for each in (direct, reduced)]
    assert float(ratios[0]) == pytest.approx(float(ratios[1]), abs=0.05)


def test_networks_of_different_shapes_are_no_batch():
    other = replace(RUN, depth=4)
    with pytest.raises(ValueError, match=r"^networks is 2 shapes, expected one shape"):
        train_reduced([RUN.draw_reduced(0), other.draw_reduced(0)], RUN, CPU)
