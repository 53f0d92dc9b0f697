"""deeprep on a GPU: against the float64 reference, against the CPU's bits, and against the clock.

Without a GPU the kernels are executed on the host by tests/simt, and what Python does around them
by tests/simt/test_cuda_path.py; here both meet the real device.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deeprep
from deeprep import ClassScatter, class_scatter, ops, reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="no GPU: tests/simt runs the kernels, and what surrounds them, on the host",
    ),
]

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Rows, columns, classes: short and long rows, several column tiles, ragged widths, several tiles of
# labels, classes beyond the rows, one class, many classes.
SHAPES = [
    (1, 1, 1),
    (5000, 64, 10),
    (3000, 1030, 7),
    (700, 4100, 5),
    (20000, 19, 300),
    (40000, 64, 10),
    (4000, 8, 3),
    (60, 5, 1000),
    (100_000, 16, 100_000),
]


def make_data(num_rows, num_columns, num_classes, dtype=torch.float32, seed=0, offset=0.0):
    """Labelled rows on the CPU, one in nine ignored, one class without samples if there are two."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, max(1, num_classes - 1), (num_rows,), generator=generator)
    features = torch.randn(num_rows, num_columns, dtype=torch.float64, generator=generator)
    features += offset + labels.unsqueeze(1) % 7
    labels[1::9] = -100
    return features.to(dtype), labels


def state_on(device, num_columns, num_classes):
    return (
        torch.zeros(num_classes, dtype=torch.int64, device=device),
        torch.zeros(num_classes, num_columns, dtype=torch.float64, device=device),
        torch.zeros(num_classes, dtype=torch.float64, device=device),
    )


def moments(features, labels, num_classes):
    state = state_on(features.device, features.shape[1], num_classes)
    ops.class_moments_(features, labels, *state)
    return state


def assert_bits(got, expected):
    for name, a, b in zip(("counts", "means", "sumsq"), got, expected, strict=True):
        # NaNs differ in their payload; everything else must be the same number.
        assert torch.equal(a.cpu().nan_to_num(), b.cpu().nan_to_num()), name
        assert torch.equal(a.cpu().isnan(), b.cpu().isnan()), name


def assert_same_state(a, b, tolerance=1e-6):
    assert_bits((a.counts, a.means, a.sumsq), (b.counts, b.means, b.sumsq))
    if a.full:
        expected = b.pooled_scatter.cpu()
        scale = float(expected.diagonal().mean())
        torch.testing.assert_close(a.pooled_scatter.cpu(), expected, rtol=0, atol=tolerance * scale)


# ---------------------------------------------------------------- the operator


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("label_dtype", [torch.int32, torch.int64])
def test_same_bits_as_the_cpu(dtype, shape, label_dtype):
    features, labels = make_data(*shape, dtype)
    labels = labels.to(label_dtype)
    expected = moments(features, labels, shape[2])
    assert_bits(moments(features.cuda(), labels.cuda(), shape[2]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_accuracy_against_the_reference(dtype, offset):
    features, labels = make_data(5000, 130, 20, dtype, offset=offset)
    counts, means, sumsq = (t.cpu() for t in moments(features.cuda(), labels.cuda(), 20))
    expected = reference.class_scatter(features.double().numpy(), labels.numpy(), 20)
    assert np.array_equal(counts.numpy(), expected.counts)
    np.testing.assert_allclose(means.numpy(), expected.means, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sumsq.numpy(), expected.sumsq, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout", ["transposed", "every other row", "column slice", "repeated", "shifted"]
)
def test_strides_do_not_change_a_bit(dtype, layout):
    features, labels = make_data(500, 24, 4, dtype)
    features, labels = features.cuda(), labels.cuda()
    if layout == "transposed":
        strided = features.T.contiguous().T
    elif layout == "every other row":
        strided = features.repeat_interleave(2, dim=0)[::2]
    elif layout == "column slice":
        strided = torch.cat([features * 2, features, features], dim=1)[:, 24:48]
    elif layout == "repeated":
        strided, features = features[:1].expand(500, 24), features[:1].repeat(500, 1)
    else:
        strided = torch.cat([features.new_zeros(1), features.flatten()])[1:].view(500, 24)
    assert_bits(moments(strided, labels, 4), moments(features, labels, 4))
    spread = labels.repeat_interleave(3)[::3]
    assert_bits(moments(features, spread, 4), moments(features, labels, 4))


def test_nonfinite_features_reach_their_class_and_no_other():
    features, labels = make_data(400, 6, 5)
    features[labels == 2, 3] = float("nan")
    assert_bits(moments(features.cuda(), labels.cuda(), 5), moments(features, labels, 5))
    assert class_scatter(features.cuda(), labels.cuda(), 5).nonfinite_classes == [2]


def test_batches_of_no_rows_and_of_ignored_rows():
    features, labels = make_data(100, 6, 5)
    s = ClassScatter(5, 6, full=True, device="cuda")
    s.update(features[:0].cuda(), labels[:0].cuda())
    s.update(features.cuda(), torch.full_like(labels, -100).cuda())
    assert s.num_samples == 0


def test_more_than_2_to_the_31_entries():
    needed = 5 * 2**31
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    num_rows = 2**21 + 3
    features = torch.zeros(num_rows, 1024, dtype=torch.float16, device="cuda")
    labels = torch.zeros(num_rows, dtype=torch.int32, device="cuda")
    features[-1], labels[-1] = 3.0, 1
    counts, means, sumsq = moments(features, labels, 2)
    assert counts.tolist() == [num_rows - 1, 1]
    assert means.unique(dim=1).flatten().tolist() == [0.0, 3.0]
    assert sumsq.tolist() == [0.0, 0.0]


def test_labels_out_of_range_raise_at_once_or_are_noted():
    features, labels = (tensor.cuda() for tensor in make_data(1000, 6, 5))
    state = state_on("cuda", 6, 5)
    labels[777:779] = 5
    with pytest.raises(ValueError, match=r"labels\[777\] is 5, expected a class in \[0, 5\)"):
        ops.class_moments_(features, labels, *state)
    bad_label = ops.new_bad_label(features.device)
    ops.class_moments_(features, labels, *state, bad_label=bad_label)
    ops.class_moments_(features, labels.clamp(max=4), *state, bad_label=bad_label)
    assert bad_label[:2].tolist() == [777, 5]
    assert not any(tensor.any() for tensor in state)
    bad_label.fill_(-1)
    ops.class_moments_(features, labels.clamp(max=4), *state, bad_label=bad_label)
    assert int(state[0].sum()) > 0


@pytest.mark.parametrize("with_bad_label", [False, True])
def test_opcheck_and_torch_compile(with_bad_label):
    features, labels = (tensor.cuda() for tensor in make_data(50, 8, 3))
    bad_label = ops.new_bad_label(features.device) if with_bad_label else None
    torch.library.opcheck(
        torch.ops.deeprep.class_moments_.default,
        (features, labels, *state_on("cuda", 8, 3), -100, bad_label),
    )

    def step(features, labels, counts, means, sumsq):
        hidden = torch.relu(features * 2)
        torch.ops.deeprep.class_moments_(hidden, labels, counts, means, sumsq, -100, bad_label)
        return sumsq * 2

    state = state_on("cuda", 8, 3)
    doubled = torch.compile(step, fullgraph=True)(features, labels, *state)
    expected = moments(torch.relu(features * 2), labels, 3)
    assert_bits(state, expected)
    assert torch.equal(doubled, 2 * expected[2])


# ---------------------------------------------------------------- ClassScatter


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [24, 300])
def test_full_state_equals_the_cpus(dtype, width):
    on_cpu, on_gpu = (
        ClassScatter(9, width, full=True),
        ClassScatter(9, width, full=True, device="cuda"),
    )
    for seed in range(3):
        features, labels = make_data(9000, width, 9, dtype, seed=seed, offset=10.0)
        on_cpu.update(features, labels)
        on_gpu.update(features.cuda(), labels.cuda())
    # Both merge batches, by the same formulas, but on different hardware.
    torch.testing.assert_close(on_gpu.means.cpu(), on_cpu.means, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(on_gpu.sumsq.cpu(), on_cpu.sumsq, rtol=1e-12, atol=0)
    scale = float(on_cpu.pooled_scatter.diagonal().mean())
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(
        on_gpu.pooled_scatter.cpu(), on_cpu.pooled_scatter, rtol=0, atol=tolerance * scale
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_products_of_small_and_large_features(dtype, scale):
    features, labels = make_data(9000, 64, 5)
    features = (scale * features.double()).to(dtype).cuda()
    s = class_scatter(features, labels.cuda(), 5, full=True)
    exact = class_scatter(features.cpu().double(), labels, 5, full=True).pooled_scatter
    error = (s.pooled_scatter.cpu() - exact).abs().max()
    assert float(error) <= 2e-6 * float(exact.diagonal().max())


def test_products_do_not_use_tf32():
    features, labels = (tensor.cuda() for tensor in make_data(20000, 64, 4))
    expected = class_scatter(features, labels, 4, full=True).pooled_scatter
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            got = class_scatter(features, labels, 4, full=True).pooled_scatter
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("full", [False, True])
def test_updates_do_not_wait_for_the_device(full):
    features, labels = (tensor.cuda() for tensor in make_data(3000, 64, 10))
    s = ClassScatter(10, 64, full=full, device="cuda")
    s.update(features, labels)  # cuBLAS sets itself up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        s.update(features, labels)
        with pytest.raises(RuntimeError, match="synchroniz"):
            _ = s.means
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert s.num_samples == 2 * int((labels >= 0).sum())


@pytest.mark.parametrize("full", [False, True])
def test_a_bad_label_surfaces_at_the_next_read(full):
    features, labels = (tensor.cuda() for tensor in make_data(3000, 64, 10))
    s = ClassScatter(10, 64, full=full, device="cuda")
    s.update(features, labels)
    before = [tensor.clone() for tensor in s._tensors().values()]
    wrong = labels.clone()
    wrong[1234] = 10
    s.update(features, wrong)
    s.update(features, labels)
    with pytest.raises(ValueError, match=r"labels\[1234\] of an earlier update is 10, expected"):
        deeprep.compression(s)
    for tensor, kept in zip(s._tensors().values(), before, strict=True):
        assert torch.equal(tensor, kept)
    s.reset()
    s.update(features, labels)
    assert_same_state(s, class_scatter(features, labels, 10, full=full))


@pytest.mark.parametrize("full", [False, True])
def test_on_another_stream(full):
    features, labels = make_data(50_000, 64, 10)
    stream = torch.cuda.Stream()
    s = ClassScatter(10, 64, full=full, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        x, y = features.cuda(non_blocking=True), labels.cuda(non_blocking=True)
        for _ in range(20):
            x = x.neg()  # work in flight, which the update must come after
        s.update(x, y)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_state(s, class_scatter(features.cuda(), labels.cuda(), 10, full=full))


@pytest.mark.parametrize("full", [False, True])
def test_cuda_graph(full):
    features, labels = (tensor.cuda() for tensor in make_data(3000, 64, 10))
    s, expected = (ClassScatter(10, 64, full=full, device="cuda") for _ in range(2))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        s.update(features, labels)  # cuBLAS and the caches set themselves up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        s.update(features, labels)
        with pytest.raises(RuntimeError, match="bad_label is None while a CUDA graph is captured"):
            ops.class_moments_(features, labels, *state_on("cuda", 64, 10))
    s.reset()
    for seed in range(3):
        x, y = make_data(3000, 64, 10, seed=seed)
        features.copy_(x)
        labels.copy_(y)
        graph.replay()
        expected.update(x.cuda(), y.cuda())
        assert s.num_samples == expected.num_samples
        assert torch.equal(s.global_mean, (s.counts.double() / s.num_samples) @ s.means)
    assert_same_state(s, expected)
    labels[7] = 99
    graph.replay()
    with pytest.raises(ValueError, match=r"labels\[7\] of an earlier update is 99"):
        _ = s.counts


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("memory", ["pageable", "pinned", "strided", "numpy"])
def test_streaming_from_the_host(full, memory):
    features, labels = make_data(300_000, 100, 10)  # four slabs
    s = ClassScatter(10, 100, full=full, device="cuda")
    expected = class_scatter(features.cuda(), labels.cuda(), 10, full=full)
    x, y = features.clone(), labels.clone()
    if memory == "pinned":
        x, y = x.pin_memory(), y.pin_memory()
    elif memory == "strided":
        x = x.T.contiguous().T
    s.update(*((x.numpy(), y.numpy()) if memory == "numpy" else (x, y)))
    x.fill_(torch.nan)  # it has been read
    y.fill_(-1)
    assert torch.equal(s.counts, expected.counts)
    torch.testing.assert_close(s.means, expected.means, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(s.sumsq, expected.sumsq, rtol=1e-6, atol=0)
    if full:
        scale = float(expected.pooled_scatter.diagonal().mean())
        torch.testing.assert_close(
            s.pooled_scatter, expected.pooled_scatter, rtol=0, atol=3e-6 * scale
        )


def test_many_small_updates_from_the_host_reuse_their_buffers():
    features, labels = make_data(20_000, 64, 10)
    s, expected = ClassScatter(10, 64, device="cuda"), ClassScatter(10, 64)
    buffer = torch.empty(100, 64)
    for begin in range(0, 20_000, 100):
        buffer.copy_(features[begin : begin + 100])
        s.update(buffer, labels[begin : begin + 100])
        expected.update(features[begin : begin + 100], labels[begin : begin + 100])
    assert_same_state(s, expected)
    with pytest.raises(ValueError, match=r"labels\[3\] is 10"):
        s.update(buffer, torch.arange(100).clamp(max=10).roll(-7))


@pytest.mark.parametrize("full", [False, True])
def test_states_move_and_merge_between_devices(full):
    first, second = make_data(3000, 40, 6), make_data(3000, 40, 6, seed=1)
    a = class_scatter(*first, 6, full=full)
    b = class_scatter(*(tensor.cuda() for tensor in second), 6, full=full)
    assert b.to("cuda") is b
    assert_same_state(b.to("cpu"), b)
    assert_same_state(a.to("cuda"), a)
    merged_on_gpu, merged_on_cpu = a.to("cuda"), b.to("cpu")
    merged_on_gpu.merge(a)
    merged_on_gpu.merge(b)
    merged_on_cpu.merge(a)
    merged_on_cpu.merge(a)
    torch.testing.assert_close(merged_on_gpu.sumsq.cpu(), merged_on_cpu.sumsq, rtol=1e-12, atol=0)
    loaded = ClassScatter(6, 40, full=full)
    loaded.load_state_dict(b.state_dict())
    assert_same_state(loaded, b)


def test_states_and_features_on_different_devices_are_refused():
    features, labels = make_data(10, 4, 3)
    with pytest.raises(ValueError, match="counts is on cpu, expected cuda:0, where features is"):
        ClassScatter(3, 4).update(features.cuda(), labels.cuda())
    with pytest.raises(ValueError, match="labels is on cpu, expected cuda:0"):
        ClassScatter(3, 4, device="cuda").update(features.cuda(), labels)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_device():
    features, labels = make_data(3000, 40, 6)
    s = ClassScatter(6, 40, full=True, device="cuda:1")
    s.update(features.to("cuda:1"), labels.to("cuda:1"))
    streamed = class_scatter(features, labels, 6, full=True, device="cuda:1")
    assert s.device == streamed.device == torch.device("cuda:1")
    assert_same_state(s, streamed)
    assert_bits((s.counts, s.means, s.sumsq), moments(features, labels, 6))
