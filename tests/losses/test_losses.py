"""Losses: values of the metrics, gradients, degenerate batches, memory, torch.compile."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

import deeprep
from deeprep import UndefinedStatisticError, losses, metrics
from deeprep.losses import batch

# The metrics warn where the losses are nan as well.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

VARIANTS = {
    "compression": ("compression", {}),
    "compression, prior": ("compression", {"weighting": "prior"}),
    "compression, corrected": ("compression", {"corrected": True}),
    "compression, corrected prior": ("compression", {"weighting": "prior", "corrected": True}),
    "discrimination": ("discrimination", {}),
    "discrimination, centered": ("discrimination", {"centered": True}),
    "cdnv": ("cdnv", {}),
    "equinorm": ("equinorm", {}),
    "etf_error": ("etf_error", {}),
}
K = 6


def loss_of(variant):
    name, options = VARIANTS[variant]
    return partial(getattr(losses, name), **options)


def metric_of(variant, features, labels, num_classes=K):
    """The metric; nan where it raises that it is undefined."""
    name, options = VARIANTS[variant]
    s = deeprep.class_scatter(features.detach(), labels, num_classes)
    try:
        return getattr(metrics, name)(s, **options)
    except UndefinedStatisticError:
        return math.nan


def make_batch(seed=0, num_rows=40, width=7, dtype=torch.float64, offset=0.0):
    """Class 4 is empty, some rows are ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % (K - 1)
    labels[labels == 4] = 5
    labels = labels[torch.randperm(num_rows, generator=generator)]
    means = torch.randn(K, width, dtype=torch.float64, generator=generator)
    features = means[labels] + offset
    features += torch.randn(num_rows, width, dtype=torch.float64, generator=generator)
    labels[::11] = -100
    return features.to(dtype).requires_grad_(), labels


@st.composite
def batches(draw):
    """Few rows: empty classes, single samples, coinciding and zero means are drawn on purpose."""
    num_rows, width = draw(st.integers(0, 12)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = torch.from_numpy(rng.integers(0, draw(st.integers(1, K)), num_rows))
    labels[torch.from_numpy(rng.random(num_rows) < 0.1)] = -100
    if draw(st.booleans()):
        features = rng.integers(-3, 4, (num_rows, width)) / 4
    else:
        features = rng.standard_normal((num_rows, width)) + draw(st.sampled_from([0.0, 100.0]))
    if draw(st.integers(0, 5)) == 0:
        features[:1] = draw(st.sampled_from([np.nan, np.inf]))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    return torch.from_numpy(features.astype(np.float64)).to(dtype), labels


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=100, deadline=None)
@given(data=batches(), num_classes=st.sampled_from([K, 50]))
def test_equals_the_metric(variant, data, num_classes):
    features, labels = data
    found = loss_of(variant)(features, labels, num_classes)
    assert found.dtype == torch.float64
    assert found.shape == ()
    expected = metric_of(variant, features, labels, num_classes)
    # Near 0 roots, and differences of 1 and a cosine, keep no more than half the digits, or none.
    assert found.item() == pytest.approx(expected, rel=1e-10, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_metric_of_an_ordinary_batch(variant, dtype):
    for offset in (0.0, 30.0):
        features, labels = make_batch(num_rows=200, dtype=dtype, offset=offset)
        found = loss_of(variant)(features, labels, K).item()
        assert found == pytest.approx(metric_of(variant, features, labels), rel=1e-12)


@pytest.mark.parametrize("num_classes", [K, 60])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant, num_classes):
    features, labels = make_batch(num_rows=20, width=4)
    assert gradcheck(lambda features: loss_of(variant)(features, labels, num_classes), features)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_labels", [0, 1])
@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_fewer_than_two_classes_are_nan(variant, num_labels, num_rows):
    labels = torch.full((num_rows,), 3 if num_labels else -100)
    features = torch.randn(num_rows, 3, requires_grad=True)
    loss = loss_of(variant)(features, labels, K)
    assert loss.isnan()
    loss.backward()
    assert features.grad.shape == features.shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_ignored_rows_and_empty_classes_do_not_matter(variant):
    features, labels = make_batch()
    with torch.no_grad():
        features[labels == -100] = torch.nan
    loss = loss_of(variant)(features, labels, K)
    (gradient,) = torch.autograd.grad(loss, features)
    kept = labels >= 0
    fewer = features.detach()[kept].requires_grad_()
    of_fewer = loss_of(variant)(fewer, torch.where(labels == 5, 4, labels)[kept], 5)
    (expected,) = torch.autograd.grad(of_fewer, fewer)
    torch.testing.assert_close(loss, of_fewer)
    torch.testing.assert_close(gradient[kept], expected)
    assert not gradient[~kept].any()


def test_a_single_sample_of_a_class_has_no_corrected_compression():
    features, labels = make_batch()
    labels[labels == 5] = 0
    labels[0] = 5
    assert losses.compression(features, labels, K).isfinite()
    assert losses.compression(features, labels, K, corrected=True).isnan()


@pytest.mark.parametrize("variant", ["equinorm", "etf_error"])
def test_a_perfect_simplex_has_gradient_zero(variant):
    features = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = loss_of(variant)(features, torch.tensor([0, 1]), 2)
    assert loss.item() == 0.0
    loss.backward()
    assert not features.grad.any()


def test_near_pairs_keep_their_digits():
    """Two classes 1e-7 apart, far from the others: |a|^2 + |b|^2 - 2<a, b> would be noise."""
    features = torch.tensor([[0.0], [1e-7], [1.0], [1.0 + 2e-7]], dtype=torch.float64)
    features = torch.cat([features, features + 1e-9]).requires_grad_()
    labels = torch.arange(4).repeat(2)
    loss = losses.cdnv(features, labels, 4)
    expected = metric_of("cdnv", features, labels, 4)
    assert loss.item() == pytest.approx(expected, rel=1e-8)
    (gradient,) = torch.autograd.grad(loss, features)
    step = 1e-11 * torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64).unsqueeze(1)
    moved = [losses.cdnv((features + sign * step).detach(), labels, 4) for sign in (1, -1)]
    assert float(gradient[0]) == pytest.approx(float(moved[0] - moved[1]) / 2e-11, rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("entries", [1, 9, 13])
def test_tiles_change_nothing(monkeypatch, variant, entries):
    features, labels = make_batch()
    whole = loss_of(variant)(features, labels, K)
    (expected,) = torch.autograd.grad(whole, features)
    monkeypatch.setattr(batch, "TILE_ENTRIES", entries)
    tiled = loss_of(variant)(features, labels, K)
    (gradient,) = torch.autograd.grad(tiled, features)
    torch.testing.assert_close(tiled, whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_more_than_a_tile_of_pairs_is_kept(monkeypatch, variant):
    """Neither K x K nor K x K x d numbers are saved for the backward."""
    features = torch.randn(300, 5, requires_grad=True)
    labels = torch.arange(300) % 150
    monkeypatch.setattr(batch, "TILE_ENTRIES", 1000)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        loss_of(variant)(features, labels, 150)
    assert max(saved) <= 300 * 5


@pytest.mark.parametrize("variant", VARIANTS)
def test_under_autocast_the_loss_is_the_same(variant):
    features, labels = make_batch(dtype=torch.bfloat16)
    expected = loss_of(variant)(features, labels, K)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss_of(variant)(features, labels, K), expected)


def test_works_under_torch_compile():
    def step(features, labels):
        hidden = torch.tanh(features)
        return sum(loss_of(variant)(hidden, labels, K) for variant in VARIANTS)

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for num_rows in (40, 55):
        features, labels = make_batch(num_rows=num_rows, dtype=torch.float32)
        found, expected = compiled(features, labels), step(features, labels)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(loss, features)[0] for loss in (found, expected)]
        torch.testing.assert_close(*gradients)


def test_can_be_minimised():
    """What descends is the compression itself, far below where it began."""
    torch.manual_seed(0)
    features, labels = make_batch(num_rows=60, dtype=torch.float32)
    optimizer = torch.optim.Adam([features], lr=0.05)
    first = metric_of("compression", features, labels)
    for _ in range(200):
        optimizer.zero_grad()
        losses.compression(features, labels, K).backward()
        optimizer.step()
    assert metric_of("compression", features, labels) < 1e-3 * first


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            partial(losses.compression, weighting="equal"),
            ValueError,
            "weighting is 'equal', expected 'uniform' or 'prior'",
        ),
        (
            lambda features, labels, k: losses.cdnv(features, torch.eye(40), k),
            ValueError,
            r"labels has shape \(40, 40\), expected \(40,\): class indices",
        ),
        (
            lambda features, labels, k: losses.etf_error(features.view(40, 7, 1), labels, k),
            ValueError,
            r"features has shape \(40, 7, 1\), expected \(N, d\)",
        ),
        (
            lambda features, labels, k: losses.equinorm(features, labels, 3),
            ValueError,
            r"labels\[\d+\] is \d, expected a class in \[0, 3\)",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(call, error, message):
    features, labels = make_batch()
    with pytest.raises(error, match=message):
        call(features, labels, K)
