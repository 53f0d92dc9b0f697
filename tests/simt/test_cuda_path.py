"""The Python side of CUDA with the kernels on the host: updates, reads, moves and streams.

The CUDA entry points of the core are replaced by those of `_simt`, which run the kernels in the
host executor, and every tensor that a test does not put `on_host` counts as one on the device. On a
GPU tests/state/test_scatter_cuda.py does the same.
"""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch
from interrupts import OURS, check_every_bytecode

import deeprep
from deeprep import ClassScatter, _core, class_scatter, ops
from deeprep.base.ranks import Ranks
from deeprep.ops import moments
from deeprep.state import agreement, pooled, streaming

NUM_CLASSES, WIDTH = 4, 6
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def make_data(num_rows=300, dtype=torch.float32, width=WIDTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES, (num_rows,), generator=generator)
    features = torch.randn(num_rows, width, dtype=torch.float64, generator=generator)
    features += 3.0 * labels.unsqueeze(1)
    labels[::9] = -100
    return features.to(dtype), labels


def on_cpu(batches, *, full=False):
    """The same batches in a state that knows nothing of a device."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (ops, ops.core):
            patch.setattr(module, "on_host", lambda tensor: True)
        s = ClassScatter(NUM_CLASSES, batches[0][0].shape[1], full=full)
        for features, labels in batches:
            s.update(features, labels)
        return s.state_dict()


def assert_state(s, expected, tolerance=0.0):
    for name, value in s.state_dict().items():
        if not torch.is_tensor(value):
            assert value == expected[name]
        elif name == "products":
            torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)
        else:
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label_dtype", [torch.int32, torch.int64])
def test_updates_give_the_state_of_the_cpu_and_never_wait(never_wait, full, dtype, label_dtype):
    batches = [make_data(300, dtype, seed=seed) for seed in range(3)]
    batches.insert(1, (batches[0][0][:0], batches[0][1][:0]))
    s = ClassScatter(NUM_CLASSES, WIDTH, full=full)
    with never_wait():
        for features, labels in batches:
            strided = labels.to(label_dtype).repeat_interleave(2)[::2]
            s.update(features, strided)
    assert_state(s, on_cpu(batches, full=full), tolerance=2e-3 if full else 0.0)
    if full:
        reference = class_scatter(*map(torch.cat, zip(*batches, strict=True)), NUM_CLASSES)
        assert float(s.within.trace()) == pytest.approx(reference.trace_within, rel=2e-6)


@pytest.mark.usefixtures("on_host")
def test_reading_waits_and_the_detector_notices(never_wait):
    s = ClassScatter(NUM_CLASSES, WIDTH)
    with pytest.raises(never_wait.error), never_wait():
        _ = s.means
    with pytest.raises(never_wait.error), never_wait():
        torch.ones(3)[torch.ones(3).bool()]


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bad", [-7, NUM_CLASSES, 2**40])
def test_a_label_out_of_range_is_raised_at_the_next_read(never_wait, full, bad):
    batches = [make_data(seed=seed) for seed in range(3)]
    s = ClassScatter(NUM_CLASSES, WIDTH, full=full)
    wrong = batches[1][1].clone()
    wrong[17:19] = bad
    with never_wait():
        s.update(*batches[0])
        before = {name: tensor.clone() for name, tensor in s._tensors().items()}
        s.update(batches[1][0], wrong)
        s.update(*batches[2])
        s.update(batches[2][0], wrong.flip(0))
    for name, tensor in s._tensors().items():
        assert torch.equal(tensor, before[name]), name
    message = (
        rf"labels\[17\] of an earlier update is {bad}, expected a class in \[0, 4\) or "
        r"ignore_index = -100; that update and those after it were not taken in"
    )
    reads = [
        *("counts", "means", "sumsq", "num_samples", "present", "global_mean", "trace_within"),
        *("nonfinite_classes", "within", "between", "pooled_scatter"),
    ]
    for name in reads if full else reads[:-3]:
        with pytest.raises(ValueError, match=message):
            getattr(s, name)
    other = ClassScatter(NUM_CLASSES, WIDTH, full=full)
    for read in (
        s.trace_between,
        s.state_dict,
        lambda: s.merge(other),
        lambda: other.merge(s),
        lambda: deeprep.compression(s),
    ):
        with pytest.raises(ValueError, match=message):
            read()
    assert "num_samples=266" in repr(s)
    s.reset()
    s.update(*batches[1])
    assert_state(s, on_cpu(batches[1:2], full=full), tolerance=1e-3)


@pytest.mark.usefixtures("on_host")
def test_loading_a_state_clears_the_bad_label():
    features, labels = make_data()
    s = ClassScatter(NUM_CLASSES, WIDTH)
    s.update(features, torch.full_like(labels, 99))
    s.load_state_dict(on_cpu([(features, labels)]))
    assert_state(s, on_cpu([(features, labels)]))


@pytest.mark.usefixtures("on_host")
def test_the_operator_raises_at_once_unless_it_is_given_a_tensor_for_the_label(never_wait):
    features, labels = make_data()
    labels[5] = 11
    state = (
        torch.zeros(NUM_CLASSES, dtype=torch.int64),
        torch.zeros(NUM_CLASSES, WIDTH, dtype=torch.float64),
        torch.zeros(NUM_CLASSES, dtype=torch.float64),
    )
    with pytest.raises(ValueError, match=r"labels\[5\] is 11, expected a class in \[0, 4\)"):
        moments._class_moments_cuda(features, labels, *state)
    bad_label = ops.new_bad_label(features.device)
    with never_wait():
        moments._class_moments_cuda(features, labels, *state, -100, bad_label)
    assert bad_label[:2].tolist() == [5, 11]
    assert not state[0].any()
    with pytest.raises(TypeError, match=r"bad_label has dtype torch.int32, expected torch.int64"):
        moments._class_moments_cuda(features, labels, *state, -100, bad_label.int())


def test_without_the_kernels_a_cuda_device_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(_core, "cuda", False)
    for call in (
        lambda: ClassScatter(2, 3, device="cuda"),
        lambda: ClassScatter(2, 3).to("cuda:1"),
        lambda: class_scatter(np.ones((2, 3)), np.array([0, 1]), device="cuda"),
    ):
        with pytest.raises(NotImplementedError, match=r"cuda.* needs .* nvcc on the PATH"):
            call()
    with pytest.raises(ValueError, match="device is meta, expected a CPU or a CUDA device"):
        ClassScatter(2, 3, device="meta")


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_products_over_many_blocks_and_far_from_the_origin(monkeypatch, offset):
    features, labels = make_data(1000, width=5)
    features += offset
    s = ClassScatter(NUM_CLASSES, 5, full=True)
    for rows, entries in ((64, 64 * 5), (64, 64 * 5 * 3), (4096, 2**24)):
        monkeypatch.setattr(pooled, "_BLOCK_ROWS", rows)
        monkeypatch.setattr(pooled, "_BLOCK_ENTRIES", entries)
        s.reset()
        s.update(features, labels)
        expected = on_cpu([(features, labels)], full=True)["products"]
        scale = float(expected.diagonal().mean())
        torch.testing.assert_close(s.pooled_scatter, expected, rtol=0, atol=2e-6 * scale)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_products_of_small_and_large_features(monkeypatch, never_wait, dtype, offset):
    monkeypatch.setattr(pooled, "_BLOCK_ROWS", 64)
    for scale in (1e-30, 1e-18, 1.0, 1e18, 1e30):
        features, labels = make_data(dtype=torch.float64)
        features = (scale * (features + offset)).to(dtype)
        s = ClassScatter(NUM_CLASSES, WIDTH, full=True)
        with never_wait():
            s.update(features, labels)
        kept = labels >= 0
        exact = class_scatter(features[kept].double(), labels[kept], full=True).pooled_scatter
        error = (s.pooled_scatter - exact).abs().max()
        assert float(error) <= 1e-6 * float(exact.diagonal().max())


@pytest.mark.usefixtures("on_host")
def test_more_classes_than_rows_in_a_full_state(never_wait):
    features, labels = make_data(30)
    s = ClassScatter(1000, WIDTH, full=True)
    with never_wait():
        for part in range(0, 30, 10):
            s.update(features[part : part + 10], 7 * labels[part : part + 10].clamp(min=0))
    expected = class_scatter(features.double(), 7 * labels.clamp(min=0), 1000, full=True)
    torch.testing.assert_close(s.within, expected.within, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("on_host")
def test_tf32_and_autocast_chosen_for_the_model_do_not_reach_the_products(monkeypatch):
    def matmul_precision():
        settings = torch.backends.cuda.matmul
        if hasattr(settings, "fp32_precision"):
            return settings.fp32_precision
        return "tf32" if settings.allow_tf32 else "ieee"

    features, labels = make_data()
    plain, chosen = (ClassScatter(NUM_CLASSES, WIDTH, full=True) for _ in range(2))
    plain.update(features, labels)
    seen = set()

    def watched(multiply):
        def watch(*factors, **keywords):
            seen.add(matmul_precision())
            return multiply(*factors, **keywords)

        return watch

    monkeypatch.setattr(torch, "mm", watched(torch.mm))
    monkeypatch.setattr(torch, "bmm", watched(torch.bmm))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            chosen.update(features, labels)
        assert matmul_precision() == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {"ieee"}
    assert torch.equal(plain.pooled_scatter, chosen.pooled_scatter)


@pytest.mark.usefixtures("on_host")
def test_merging_and_moving():
    batches = [make_data(seed=seed) for seed in range(2)]
    s, other = (ClassScatter(NUM_CLASSES, WIDTH, full=True) for _ in range(2))
    s.update(*batches[0])
    other.update(*batches[1])
    s.merge(other)
    assert_state(s, on_cpu(batches, full=True), tolerance=2e-3)
    assert s.to("cpu") is s
    with pytest.MonkeyPatch.context() as patch:
        elsewhere = property(lambda self: torch.device("cuda" if self is s else "cpu"))
        patch.setattr(ClassScatter, "device", elsewhere)
        moved = s.to("cpu")
    assert_state(moved, s.state_dict())
    moved.update(*batches[0])
    assert moved.num_samples == s.num_samples + other.num_samples


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("full", [False, True])
def test_an_ignored_label_that_does_not_fit_the_labels_type(full):
    features, labels = make_data()
    s = ClassScatter(NUM_CLASSES, WIDTH, full=full, ignore_index=2**40)
    s.update(features, labels.clamp(min=0).int())
    assert s.num_samples == 300
    expected = on_cpu([(features, labels.clamp(min=0))], full=full)
    assert_state(s, {**expected, "ignore_index": 2**40}, tolerance=1e-3)


@pytest.mark.usefixtures("on_host")
def test_all_reduce_raises_in_every_process_where_one_met_a_bad_label(monkeypatch):
    features, labels = make_data()
    s = ClassScatter(NUM_CLASSES, WIDTH)
    s.update(features, labels)
    before = s.state_dict()

    def with_a_process_that_met_one(ranks, message, answer, joined):
        joined()
        mine, _ = agreement._read(message)
        flaw = "has met a label out of range"
        theirs = {name: found._replace(flaw=flaw) for name, found in mine.items()}
        return answer([message, agreement._written(theirs)])

    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(Ranks, "any_device", "cpu")
    monkeypatch.setattr(Ranks, "consult", with_a_process_that_met_one)
    with pytest.raises(ValueError, match="the state has met a label out of range on rank 1"):
        s.all_reduce()
    assert_state(s, before)
    s.update(features, torch.full_like(labels, 4))
    with pytest.raises(ValueError, match=r"labels\[0\] of an earlier update is 4"):
        s.all_reduce()


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("full", [False, True])
def test_an_update_that_is_interrupted_is_taken_in_whole_or_not_at_all(monkeypatch, full):
    batch = make_data(40)
    for block_rows in (4096, 16) if full else (4096,):
        monkeypatch.setattr(pooled, "_BLOCK_ROWS", block_rows)
        monkeypatch.setattr(pooled, "_BLOCK_ENTRIES", block_rows * WIDTH)
        found = check_every_bytecode(
            lambda: (ClassScatter(NUM_CLASSES, WIDTH, full=full),), lambda s: s.update(*batch), OURS
        )
        assert found == {"old", "new"}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("slab_rows", [16, 100])
def test_a_stream_that_is_interrupted_is_taken_in_whole_or_not_at_all(
    monkeypatch, on_host, full, slab_rows
):
    slab_bytes = slab_rows * (WIDTH * 4 + 8) + streaming._ALIGNMENT
    monkeypatch.setattr(streaming, "_SLAB_BYTES", slab_bytes)
    monkeypatch.setattr(streaming, "_is_pinned", lambda tensor: False)
    batch = on_host(*make_data(40))

    def make():
        s = ClassScatter(NUM_CLASSES, WIDTH, full=full)
        s.update(*make_data(10, seed=1))
        return (s,)

    found = check_every_bytecode(make, lambda s: s.update(*batch), OURS, stride=7)
    assert found == {"old", "new"}


# ---------------------------------------------------------------- features in host memory


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("slab_rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streaming_is_one_update_per_slab(monkeypatch, on_host, full, pinned, slab_rows, dtype):
    features, labels = make_data(200, dtype)
    expected = ClassScatter(NUM_CLASSES, WIDTH, full=full)
    for begin in range(0, 200, slab_rows):
        expected.update(features[begin : begin + slab_rows], labels[begin : begin + slab_rows])
    row_bytes = WIDTH * dtype.itemsize + 8
    slab_bytes = slab_rows * row_bytes + streaming._ALIGNMENT
    monkeypatch.setattr(streaming, "_SLAB_BYTES", slab_bytes)
    monkeypatch.setattr(streaming, "_is_pinned", lambda tensor: pinned)
    s = ClassScatter(NUM_CLASSES, WIDTH, full=full)
    s.update(*on_host(features, labels))
    assert_state(s, expected.state_dict())


def test_streaming_takes_rows_longer_than_a_slab_and_any_stride(monkeypatch, on_host):
    monkeypatch.setattr(streaming, "_SLAB_BYTES", 10)
    features, labels = make_data(20)
    expected = ClassScatter(NUM_CLASSES, WIDTH)
    for row in range(20):
        expected.update(features[row : row + 1], labels[row : row + 1])
    strided = features.T.contiguous().T
    s = ClassScatter(NUM_CLASSES, WIDTH)
    s.update(*on_host(strided, labels.int()))
    assert_state(s, expected.state_dict())


def test_numpy_features_are_streamed(monkeypatch, on_host):
    features, labels = make_data(20)
    s = ClassScatter(NUM_CLASSES, WIDTH)
    as_tensor = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: on_host(as_tensor(array))[0])
    s.update(features.numpy(), labels.numpy())
    assert len(streaming._feeds) == 1
    assert_state(s, on_cpu([(features, labels)]))


def test_host_labels_are_checked_before_anything_is_copied(on_host):
    features, labels = make_data(50)
    labels[33] = 4
    s = ClassScatter(NUM_CLASSES, WIDTH)
    on_host(features, labels)
    with pytest.raises(ValueError, match=r"labels\[33\] is 4, expected a class in \[0, 4\)"):
        s.update(features, labels)
    with pytest.raises(ValueError, match=r"means has shape \(4, 6\), expected \(4, 5\)"):
        s.update(features[:, :5], labels.clamp(max=3))
    assert s.num_samples == 0
    assert streaming._feeds == {}


@pytest.mark.usefixtures("on_host")
def test_rows_more_than_2_to_the_31_elements_apart():
    # Three float16 rows 4 GiB apart in memory that is reserved, never filled.
    stride = 2**31 + 8
    with mmap.mmap(-1, 2 * (2 * stride + 8), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        features = torch.frombuffer(memory, dtype=torch.float16).as_strided((3, 8), (stride, 1))
        near, labels = torch.randn(3, 8).half(), torch.tensor([0, 1, 0])
        features.copy_(near)
        for rows in (features, features[:, :5]):  # by vectors, and column by column
            s = class_scatter(rows, labels, NUM_CLASSES)
            assert_state(s, on_cpu([(near[:, : rows.shape[1]], labels)]))
        del features, rows
