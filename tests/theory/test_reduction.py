"""The reduction against direct training at full width, along the whole trajectory."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

import deeprep
from deeprep.data import orthogonal
from deeprep.theory import draw_wide_deep_linear, reduce_deep_linear

WIDTH, DEPTH, CLASSES = 200, 4, 3


def wide_network(generator, width=WIDTH, dimension=50, scale=0.3):
    sizes = [dimension, *[width] * (DEPTH - 1), CLASSES]
    return [
        torch.nn.init.orthogonal_(
            torch.empty(after, before, dtype=torch.float64), gain=scale, generator=generator
        )
        for before, after in pairwise(sizes)
    ]


def features(weights, inputs):
    layers = [inputs]
    for weight in weights:
        layers.append(layers[-1] @ weight.T)
    return layers  # the last are the outputs


def squared_error(outputs, labels):
    return (outputs - one_hot(labels, CLASSES)).square().sum() / len(labels)


def trajectory(weights, inputs, labels, loss=squared_error, steps=100, every=20, rows=None, **sgd):
    """Yield the weights before and after every so many steps of autograd and torch.optim.SGD."""
    weights = [weight.clone().requires_grad_() for weight in weights]
    optimizer = torch.optim.SGD(weights, **sgd)
    for step in range(steps + 1):
        if step % every == 0:
            yield [weight.detach().clone() for weight in weights]
        batch = slice(None) if rows is None else rows[step % len(rows)]
        optimizer.zero_grad()
        loss(features(weights, inputs[batch])[-1], labels[batch]).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("loss", "sgd"),
    [
        (squared_error, {"lr": 0.5}),
        (squared_error, {"lr": 0.5, "weight_decay": 0.005}),
        (cross_entropy, {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ],
)
def test_training_reduced_is_training_directly(loss, sgd):
    data = orthogonal(CLASSES, 10, 50)
    inputs, labels = data.inputs.double(), data.labels
    wide = wide_network(torch.Generator().manual_seed(1))
    small = reduce_deep_linear(wide, inputs)
    assert small.weights[1].shape[0] <= 30 + CLASSES + 1  # with the witness
    moved = 0.0
    for direct, reduced in zip(
        trajectory(wide, inputs, labels, loss, **sgd),
        trajectory(small.weights, small.inputs, labels, loss, **sgd),
        strict=True,
    ):
        for expected, rebuilt in zip(direct, small.rebuild(reduced), strict=True):
            torch.testing.assert_close(rebuilt, expected, rtol=0, atol=1e-12)
        layers = zip(
            features(direct, inputs)[:-1], features(reduced, small.inputs)[:-1], strict=True
        )
        for expected, found in layers:
            torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=0, atol=1e-12)
            here, there = (deeprep.class_scatter(z, labels) for z in (found, expected))
            for metric in (deeprep.compression, deeprep.discrimination):
                assert metric(here) == pytest.approx(metric(there), rel=1e-9)
        moved = max(moved, float((direct[0] - wide[0]).abs().max()))
    assert moved > 0.05  # training has gone somewhere


def test_the_first_and_last_layer_may_start_anywhere_and_batches_may_be_small():
    generator = torch.Generator().manual_seed(2)
    data = orthogonal(CLASSES, 10, 50)
    inputs, labels = data.inputs.double(), data.labels
    wide = wide_network(generator)
    for layer in (0, -1):
        shape = wide[layer].shape
        wide[layer] = 0.05 * torch.randn(shape, dtype=torch.float64, generator=generator)
    small = reduce_deep_linear(wide, inputs)
    rows = [slice(0, 7), slice(7, 20), slice(20, 30)]
    options = {"lr": 0.2, "rows": rows, "weight_decay": 0.01, "every": 100}
    *_, direct = trajectory(wide, inputs, labels, **options)
    *_, reduced = trajectory(small.weights, small.inputs, labels, **options)
    for expected, rebuilt in zip(direct, small.rebuild(reduced), strict=True):
        torch.testing.assert_close(rebuilt, expected, rtol=0, atol=1e-12)


def test_reduced_on_every_input_it_serves_any_data():
    data = orthogonal(CLASSES, 10, 50)
    inputs, labels = data.inputs.double(), data.labels
    wide = wide_network(torch.Generator().manual_seed(3))
    small = reduce_deep_linear(wide, torch.eye(50, dtype=torch.float64))
    *_, direct = trajectory(wide, inputs, labels, lr=0.5)
    *_, reduced = trajectory(small.weights, inputs @ small.inputs, labels, lr=0.5)
    for expected, rebuilt in zip(direct, small.rebuild(reduced), strict=True):
        torch.testing.assert_close(rebuilt, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [33, 40, 120])
def test_a_drawn_network_is_the_wide_one_whose_layers_are_multiples_of_the_identity(width):
    data = orthogonal(CLASSES, 10, 30)
    inputs, labels = data.inputs.double(), data.labels
    drawn = draw_wide_deep_linear(width, 30, CLASSES, DEPTH, 0.3, torch.Generator().manual_seed(4))
    identity = 0.3 * torch.eye(width, dtype=torch.float64)
    last = torch.nn.init.orthogonal_(
        torch.empty(CLASSES, width, dtype=torch.float64),
        gain=0.3,
        generator=torch.Generator().manual_seed(4),
    )
    wide = [identity[:, :30], *[identity] * (DEPTH - 2), last]
    assert drawn[1].shape == (33, 33)
    for small, large in zip(
        trajectory(drawn, inputs, labels, lr=0.5),
        trajectory(wide, inputs, labels, lr=0.5),
        strict=True,
    ):
        everywhere = torch.eye(30, dtype=torch.float64)
        for found, expected in zip(
            features(small, everywhere)[:-1], features(large, everywhere)[:-1], strict=True
        ):
            torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            features(small, everywhere)[-1], features(large, everywhere)[-1], rtol=0, atol=1e-12
        )


def test_the_last_layer_is_drawn_uniformly():
    # E <v, e_j>^2 = 1 / width for any coordinate of a uniform unit vector; variance 2 / width^2.
    generator = torch.Generator().manual_seed(5)
    draws = 2000
    squares = [
        float(draw_wide_deep_linear(40, 5, 2, 2, 1.0, generator)[-1][0, 0]) ** 2
        for _ in range(draws)
    ]
    standard_error = math.sqrt(2 / draws) / 40
    assert abs(sum(squares) / draws - 1 / 40) < 4 * standard_error
    signs = float(draw_wide_deep_linear(40, 5, 2, 2, 1.0, generator)[-1][0].sign().sum())
    assert abs(signs) < 7  # not all of one sign


def test_data_of_low_rank_reduces_further_and_a_narrow_network_stays_as_it_is():
    generator = torch.Generator().manual_seed(6)
    low = torch.randn(30, 5, dtype=torch.float64) @ torch.randn(5, 50, dtype=torch.float64)
    small = reduce_deep_linear(wide_network(generator), low)
    assert [tuple(weight.shape) for weight in small.weights[:2]] == [(9, 6), (9, 9)]
    narrow = wide_network(generator, width=20)  # fewer hidden dimensions than the data's rank
    inputs = torch.randn(30, 50, dtype=torch.float64)
    small = reduce_deep_linear(narrow, inputs)
    assert small.weights[1].shape == (21, 21)
    for expected, rebuilt in zip(narrow, small.rebuild(small.weights), strict=True):
        torch.testing.assert_close(rebuilt, expected, rtol=0, atol=1e-13)


def test_two_layers_have_no_middle():
    generator = torch.Generator().manual_seed(7)
    wide = wide_network(generator)
    inputs, labels = orthogonal().inputs.double(), orthogonal().labels
    wide = [wide[0], wide[-1]]
    small = reduce_deep_linear(wide, inputs)
    *_, direct = trajectory(wide, inputs, labels, lr=0.5, weight_decay=0.1)
    *_, reduced = trajectory(small.weights, small.inputs, labels, lr=0.5, weight_decay=0.1)
    for expected, rebuilt in zip(direct, small.rebuild(reduced), strict=True):
        torch.testing.assert_close(rebuilt, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, x: (w[:1], x), "weights is 1 matrices, expected at least 2 matrices"),
        (lambda w, x: ([w[0], w[1][:5], *w[2:]], x), r"weights is .*expected shapes"),
        (lambda w, x: (w, x[:, :4]), r"weights is .*for d = 4, expected shapes"),
        (lambda w, x: (w, x[0]), r"inputs is of shape \(50,\), expected one of shape \(N, d\)"),
        (lambda w, x: (w, x.float()), r"weights\[0\] is .*expected float32 or float64, the same"),
        (lambda w, x: (w, x * 0), "inputs is zero everywhere, expected a matrix of rank >= 1"),
        (lambda w, x: (w, x / 0), "inputs is not finite, expected finite"),
        (
            lambda w, x: ([w[0], w[1] * 0, *w[2:]], x),
            r"weights\[1\] is .*expected a positive multiple",
        ),
        (
            lambda w, x: ([w[0], w[1], w[2] + torch.eye(WIDTH), w[3]], x),
            r"weights\[2\] is .*expected a multiple of an orthogonal matrix",
        ),
    ],
)
def test_what_cannot_be_reduced_is_refused(change, message):
    wide = wide_network(torch.Generator().manual_seed(8))
    inputs = torch.randn(30, 50, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"^{message}"):
        reduce_deep_linear(*change(wide, inputs))


def test_rebuild_refuses_weights_of_other_shapes():
    wide = wide_network(torch.Generator().manual_seed(9))
    small = reduce_deep_linear(wide, torch.randn(30, 50, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^weights is .*expected shapes"):
        small.rebuild(wide)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((40, 50, 3, 4, 0.1), "width"), ((60, 50, 3, 1, 0.1), "depth"), ((60, 50, 3, 4, 0.0), "init")],
)
def test_errors_of_a_draw_name_the_argument(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}.* is "):
        draw_wide_deep_linear(*arguments)
