"""`class_moments`: values, gradients against torch's own, degenerate batches, torch.compile."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import deeprep
from deeprep import _core

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 3e-7,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}
K = 5


def make_batch(seed=0, num_rows=24, width=3, dtype=torch.float64, offset=0.0):
    """Class 3 has one row and class 4 none; some rows are ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (num_rows,), generator=generator)
    labels[::5] = -100
    labels[1:2] = 3
    features = torch.randn(num_rows, width, dtype=torch.float64, generator=generator) + offset
    return features.to(dtype).requires_grad_(), labels


def plain_moments(features, labels, num_classes, ignore_index=-100):
    """The definition in torch's own operators, float64."""
    kept = labels != ignore_index
    features, labels = features.double()[kept], labels[kept].long()
    one_hot = torch.nn.functional.one_hot(labels, num_classes).double()
    counts = one_hot.sum(0)
    means = one_hot.T @ features / counts.clamp(min=1).unsqueeze(1)
    sumsq = one_hot.T @ (features - means[labels]).square().sum(1)
    return counts.long(), means, sumsq


def some_loss(means, sumsq):
    """A function that weighs every entry of both in its own way."""
    weights = torch.linspace(-1, 1, means.numel(), dtype=torch.float64).view_as(means)
    return (weights * means).sum() + (torch.linspace(1, 2, len(sumsq)) * sumsq).sum()


def gradient_of(moments, features, labels, *arguments):
    (gradient,) = torch.autograd.grad(
        some_loss(*moments(features, labels, *arguments)[1:]), features
    )
    return gradient


def assert_gradient(features, labels, num_classes=K, ignore_index=-100):
    got = gradient_of(deeprep.class_moments, features, labels, num_classes, ignore_index)
    assert got.dtype == features.dtype
    assert got.shape == features.shape
    expected = gradient_of(plain_moments, features, labels, num_classes, ignore_index)
    # plain_moments rounds to the dtype of the features last, as the operator does.
    scale = expected.double().abs().max() if expected.numel() else 0.0
    error = (got.double() - expected.double()).abs()
    assert (error <= TOLERANCES[features.dtype] * scale).all(), error.max() / scale


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_those_of_the_running_state(dtype):
    features, labels = make_batch(dtype=dtype)
    s = deeprep.class_scatter(features.detach(), labels, K)
    counts, means, sumsq = deeprep.class_moments(features, labels, K)
    assert torch.equal(counts, s.counts)
    assert torch.equal(means, s.means)
    assert torch.equal(sumsq, s.sumsq)
    assert not counts.requires_grad
    assert means.requires_grad
    assert sumsq.requires_grad


@pytest.mark.usefixtures("restore_threads")
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000),
    num_rows=st.integers(0, 300),
    width=st.sampled_from([1, 2, 7, 8, 17, 64, 65]),
    dtype=st.sampled_from(DTYPES),
    label_dtype=st.sampled_from([torch.int32, torch.int64]),
    level=st.sampled_from(_core.available_simd_levels()),
)
def test_gradient(seed, num_rows, width, dtype, label_dtype, level):
    _core.set_simd_level(level)
    features, labels = make_batch(seed, num_rows, width, dtype)
    assert_gradient(features, labels.to(label_dtype))


@pytest.mark.parametrize(
    "layout", ["transposed", "every other row", "every other column", "repeated"]
)
def test_gradient_of_features_of_any_strides(layout):
    for dtype in DTYPES:
        features, labels = make_batch(width=8, dtype=dtype)
        whole = features.detach()
        strided = {
            "transposed": whole.T.contiguous().T,
            "every other row": whole.repeat_interleave(2, dim=0)[::2],
            "every other column": whole.repeat_interleave(2, dim=1)[:, ::2],
            "repeated": whole[:1].expand(24, 8),
        }[layout]
        assert_gradient(strided.requires_grad_(), labels)
        assert_gradient(features, labels.repeat_interleave(2)[::2])


def test_gradient_far_from_the_origin_adds_up():
    """Means of a million standard deviations, which float32 holds to a tenth of one."""
    features, labels = make_batch(num_rows=600, dtype=torch.float32, offset=1e6)
    _, _, sumsq = deeprep.class_moments(features, labels, K)
    (gradient,) = torch.autograd.grad(sumsq.sum(), features)
    exact = features.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(deeprep.class_moments(exact, labels, K)[2].sum(), exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-7, atol=2e-7)
    for k in range(3):
        assert abs(float(gradient[labels == k].double().sum())) < 1e-4


@pytest.mark.parametrize("num_rows", [0, 1, 24])
@pytest.mark.parametrize("num_classes", [4, 5, 40])
def test_gradcheck_and_gradgradcheck(num_rows, num_classes):
    features, labels = make_batch(num_rows=num_rows)

    def moments(features):
        return deeprep.class_moments(features, labels, num_classes)[1:]

    assert gradcheck(moments, features)
    assert gradgradcheck(moments, features)


def test_second_derivatives_of_half_precision_and_of_ignored_rows():
    features, labels = make_batch(dtype=torch.bfloat16)
    with torch.no_grad():
        features[::5] = torch.nan
    _, _, sumsq = deeprep.class_moments(features, labels, K)
    (gradient,) = torch.autograd.grad(sumsq.sum(), features, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), features)
    assert second.dtype == torch.bfloat16
    assert second.isfinite().all()
    assert not second[::5].any()


@pytest.mark.parametrize("ignore_index", [-100, 0, 4, 2**40])
def test_ignored_rows_get_no_gradient(ignore_index):
    features, labels = make_batch()
    if ignore_index != -100:
        labels = labels.clamp(min=0)
    if ignore_index < 5:
        labels[::5] = ignore_index
    with torch.no_grad():
        features[labels == ignore_index] = torch.nan
    gradient = gradient_of(deeprep.class_moments, features, labels, K, ignore_index)
    assert torch.equal(gradient[labels == ignore_index], 0 * gradient[labels == ignore_index])
    assert gradient.isfinite().all()


def test_nothing_but_ignored_rows():
    features, labels = make_batch()
    counts, means, sumsq = deeprep.class_moments(features, torch.full_like(labels, -100), K)
    assert not counts.any()
    (gradient,) = torch.autograd.grad(some_loss(means, sumsq), features)
    assert not gradient.any()


def test_one_class():
    features, labels = make_batch()
    assert_gradient(features, torch.zeros_like(labels), num_classes=1)


def test_nonfinite_features_stay_with_their_class():
    features, labels = make_batch()
    with torch.no_grad():
        features[labels == 2] = torch.nan
    gradient = gradient_of(deeprep.class_moments, features, labels, K)
    assert gradient[labels != 2].isfinite().all()
    assert gradient[labels == 2].isnan().all()


def test_the_smallest_and_largest_gradients_of_half_precision_are_rounded_to_nearest():
    """Gradients of every size from below the smallest to above the largest float16, and ties."""
    rng = np.random.default_rng(0)
    sizes = np.concatenate(
        [2.0 ** rng.uniform(-30, 18, 4000), (rng.integers(0, 2**12, 2000) + 0.5) * 2.0**-24]
    )
    for dtype in (torch.float16, torch.bfloat16):
        wanted = torch.from_numpy(sizes * rng.choice([-1, 1], sizes.shape)).float().double()
        features = torch.zeros(1, len(sizes), dtype=dtype, requires_grad=True)
        for level in _core.available_simd_levels():
            _core.set_simd_level(level)
            _, means, _ = deeprep.class_moments(features, torch.tensor([0]), 1)
            (gradient,) = torch.autograd.grad((means * wanted).sum(), features)
            assert torch.equal(gradient[0], wanted.float().to(dtype)), (dtype, level)


@pytest.mark.usefixtures("restore_threads")
def test_gradient_has_the_same_bits_on_any_number_of_threads():
    features, labels = make_batch(num_rows=1000, width=33, dtype=torch.float32)
    gradients = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        gradients.append(gradient_of(deeprep.class_moments, features, labels, K))
    assert all(torch.equal(gradients[0], other) for other in gradients)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.full((24,), 5)}, ValueError, r"labels\[0\] is 5, expected a class in"),
        (
            {"labels": torch.eye(24)[:, :K]},
            ValueError,
            r"labels has shape \(24, 5\), expected \(24,\): class indices; of one-hot or soft rows",
        ),
        ({"labels": torch.zeros(24)}, TypeError, "labels has dtype torch.float32"),
        (
            {"features": torch.ones(24)},
            ValueError,
            r"features has shape \(24,\), expected \(N, d\)",
        ),
        ({"features": torch.ones(24, 3).int()}, TypeError, "features has dtype torch.int32"),
        ({"num_classes": 0}, ValueError, "num_classes is 0, expected a whole number >= 1"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, error, message):
    features, labels = make_batch()
    arguments = {"features": features, "labels": labels, "num_classes": K}
    with pytest.raises(error, match=message):
        deeprep.class_moments(**{**arguments, **change})


def test_features_that_are_changed_before_the_backward_are_noticed():
    features, labels = make_batch()
    scaled = 2 * features
    _, _, sumsq = deeprep.class_moments(scaled, labels, K)
    scaled.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sumsq.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    features, labels = make_batch(dtype=dtype)
    forward = torch.ops.deeprep.class_moments.default
    backward = torch.ops.deeprep.class_moments_backward.default
    opcheck(forward, (features.detach(), labels, K))
    # With a gradient, test_aot_dispatch_dynamic adds up all outputs into the first, of int64.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(forward, (features, labels, K), test_utils=tests)
    counts, means, sumsq = (tensor.detach() for tensor in forward(features, labels, K))
    gradients = (torch.ones_like(means), torch.ones_like(sumsq))
    wanted = [tensor.requires_grad_() for tensor in (means, *gradients)]
    opcheck(backward, (features, labels, counts, *wanted, -100))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_works_under_torch_compile(backend, dynamic):
    def step(features, labels):
        _, means, sumsq = deeprep.class_moments(torch.relu(features * 2), labels, K)
        return some_loss(means, sumsq)

    torch._dynamo.reset()
    compiled = torch.compile(step, backend=backend, fullgraph=True, dynamic=dynamic)
    for num_rows in (24, 31):
        features, labels = make_batch(num_rows=num_rows, dtype=torch.float32)
        losses = compiled(features, labels), step(features, labels)
        gradients = [torch.autograd.grad(loss, features)[0] for loss in losses]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*gradients)
