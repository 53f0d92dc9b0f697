"""Distances from the theorem's assumptions, against their definitions in NumPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from deeprep.theory import balance_errors, minimum_norm_error, trailing_singular_values

EPS = 0.2


def network(seed, width=12, dimension=9, classes=2, depth=4):
    generator = torch.Generator().manual_seed(seed)
    sizes = [dimension, *[width] * (depth - 1), classes]
    return [
        torch.randn(after, before, dtype=torch.float64, generator=generator)
        for before, after in pairwise(sizes)
    ]


def with_idle(weights, idle):
    """The same network with hidden dimensions in which every layer is EPS * I."""
    first, *middle, last = weights
    pad = torch.nn.functional.pad
    eye = EPS * torch.eye(idle, dtype=torch.float64)
    return [
        pad(first, (0, 0, 0, idle)),
        *(torch.block_diag(weight, eye) for weight in middle),
        pad(last, (0, idle)),
    ]


def test_minimum_norm_error_is_the_distance_from_the_least_squares_map():
    weights = network(0)
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(5, 9)), generator.normal(size=(5, 2))
    product = np.linalg.multi_dot([weight.numpy() for weight in reversed(weights)])
    expected = np.linalg.norm((np.linalg.pinv(inputs) @ targets).T - product)
    found = minimum_norm_error(weights, torch.from_numpy(inputs), torch.from_numpy(targets))
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_balance_errors_are_those_of_the_definition():
    weights = network(1)
    expected = [
        np.linalg.norm(b.T @ b - a @ a.T) / np.linalg.norm(a)
        for a, b in pairwise(map(np.asarray, weights))
    ]
    np.testing.assert_allclose(balance_errors(weights), expected, rtol=1e-12)


def test_trailing_singular_values_leave_out_the_first_and_last_classes():
    weights = network(2)
    expected = [
        np.linalg.svd(w, compute_uv=False)[2 : 9 - 2] for w in map(np.asarray, weights[:-1])
    ]
    np.testing.assert_allclose(trailing_singular_values(weights), expected, rtol=1e-10)


@pytest.mark.parametrize("idle", [1, 5, 30])
def test_idle_dimensions_count_as_if_they_were_there(idle):
    weights = network(3)
    wide = with_idle(weights, idle)
    options = {"idle": idle, "idle_scale": EPS}
    np.testing.assert_allclose(balance_errors(weights, **options), balance_errors(wide), rtol=1e-12)
    np.testing.assert_allclose(
        trailing_singular_values(weights, **options), trailing_singular_values(wide), rtol=1e-10
    )


def test_batches_are_measured_one_by_one():
    networks = [network(seed) for seed in range(3)]
    batch = [torch.stack(same) for same in zip(*networks, strict=True)]
    for function in (balance_errors, trailing_singular_values):
        alone = torch.stack([function(weights) for weights in networks])
        torch.testing.assert_close(function(batch), alone)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"^idle is .*expected >= 0"):
        balance_errors(network(0), idle=-1)
    with pytest.raises(ValueError, match=r"^weights is of 4 dimensions, expected more than 2 K"):
        trailing_singular_values(network(0, dimension=4))
