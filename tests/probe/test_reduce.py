"""Reductions: the right rows with the right labels, nothing large copied."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deeprep.probe import reduce
from deeprep.probe.reduce import (
    BatchLabels,
    check_reduce,
    feature_tensor,
    reduced_rows,
    reduction_of,
)

LABELS = torch.tensor([0, 1])


def rows_of(features, reduction, labels=LABELS, mask=None):
    """Rows and labels of all portions together."""
    batch = BatchLabels(labels, mask, num_classes=9, ignore_index=-100)
    rows, targets = zip(*reduced_rows(features, reduction, batch), strict=True)
    return torch.cat(rows), torch.cat(targets)


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of bytes that an operation newly allocated."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            storage = result.untyped_storage()
            if storage.data_ptr() not in before:
                self.bytes = max(self.bytes, storage.nbytes())
        return result


def test_images():
    image = torch.randn(2, 3, 4, 5)
    assert torch.equal(rows_of(image, "flatten")[0], image.view(2, 60))
    torch.testing.assert_close(rows_of(image, "mean")[0], image.mean(dim=(2, 3)))
    rows, labels = rows_of(image, "tokens")
    assert torch.equal(rows.view(2, 4, 5, 3).movedim(-1, 1), image)
    assert labels.tolist() == [0] * 20 + [1] * 20
    for reduction in ("cls", "last"):
        with pytest.raises(ValueError, match=rf"reduce is '{reduction}', which takes.*\(2, 3, 4"):
            rows_of(image, reduction)
    video = torch.randn(2, 3, 2, 4, 5)
    torch.testing.assert_close(rows_of(video, "mean")[0], video.mean(dim=(2, 3, 4)))
    assert rows_of(video, "tokens")[0].shape == (80, 3)


def test_sequences_with_a_mask_on_either_side():
    tokens = torch.randn(3, 4, 5)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]])
    labels = torch.tensor([2, 0, 1])
    mean, _ = rows_of(tokens, "mean", labels, mask)
    expected = torch.stack([tokens[0, :2].mean(0), tokens[1, 1:].mean(0), tokens[2].mean(0)])
    torch.testing.assert_close(mean, expected)
    last, _ = rows_of(tokens, "last", labels, mask.bool())
    assert torch.equal(last, torch.stack([tokens[0, 1], tokens[1, 3], tokens[2, 3]]))
    assert torch.equal(rows_of(tokens, "cls", labels, mask)[0], tokens[:, 0])
    assert torch.equal(rows_of(tokens, "last", labels)[0], tokens[:, -1])
    rows, targets = rows_of(tokens, "tokens", labels, mask)
    assert torch.equal(rows, tokens.view(12, 5))
    assert targets.view(3, 4).tolist() == [
        [2, 2, -100, -100],
        [-100, 0, 0, 0],
        [1, 1, 1, 1],
    ]


def test_what_stands_where_no_token_is_does_not_matter():
    tokens = torch.ones(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    tokens[0, 2] = float("nan")
    assert torch.equal(rows_of(tokens, "mean", mask=mask)[0], torch.ones(2, 4))
    tokens[1, 2] = float("nan")  # a token: it is not hidden
    assert rows_of(tokens, "mean", mask=mask)[0][1].isnan().all()


def test_a_sample_without_a_token_is_ignored():
    mask = torch.tensor([[0, 0, 0], [1, 0, 0]])
    for reduction in ("flatten", "mean", "cls", "last", "tokens"):
        rows, labels = rows_of(torch.ones(2, 3, 4), reduction, mask=mask)
        assert labels[: len(labels) // 2].unique().tolist() == [-100]
        assert rows.isfinite().all()
    assert rows_of(torch.ones(2, 4), "mean", mask=mask)[1].tolist() == [-100, 1]
    # ignore_index need not fit into the labels' type
    batch = BatchLabels(LABELS.int(), mask, num_classes=2, ignore_index=-(2**40))
    assert batch.of_samples(torch.device("cpu")).tolist() == [-(2**40), 1]


def test_labels_of_positions():
    tokens = torch.randn(2, 3, 4)
    labels = torch.tensor([[0, 1, -100], [2, 2, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert rows_of(tokens, "tokens", labels, mask)[1].tolist() == [0, 1, -100, 2, 2, -100]
    pixels = torch.arange(12).view(2, 2, 3) % 9
    assert (
        rows_of(torch.randn(2, 5, 2, 3), "tokens", pixels)[1].tolist() == pixels.flatten().tolist()
    )
    with pytest.raises(ValueError, match=r"labels has shape \(2, 3\), expected \(2,\)"):
        rows_of(tokens, "mean", labels)
    with pytest.raises(ValueError, match=r"expected \(2,\) or \(2, 4\)"):
        rows_of(torch.randn(2, 4, 5), "tokens", labels)


def test_matrices_pass_and_vectors_become_columns():
    features = torch.randn(2, 4)
    for reduction in ("flatten", "mean", "cls", "last", "tokens"):
        ((rows, _),) = reduced_rows(features, reduction, BatchLabels(LABELS, None, 2, -100))
        assert rows is features
        assert rows_of(features[:, 0], reduction)[0].shape == (2, 1)


def test_functions():
    image = torch.randn(2, 3, 4, 5)
    assert torch.equal(rows_of(image, lambda x: x[:, :, 0, 0])[0], image[:, :, 0, 0])
    with pytest.raises(ValueError, match=r"reduce returned shape \(2, 3, 4\), expected \(N, d\)"):
        rows_of(image, lambda x: x[..., 0])
    with pytest.raises(TypeError, match=r"reduce returned a tuple, expected a tensor"):
        rows_of(image, lambda x: (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32_without_a_copy(dtype, monkeypatch):
    monkeypatch.setitem(reduce._SUMMED_BYTES, "cpu", 2**14)
    # 1 and 512 values of 2^-10 add up to 1.5; a half-precision sum would stay at 1 (bfloat16).
    tokens = torch.full((40, 513, 8), 2.0**-10, dtype=dtype)
    tokens[:, 0] = 1.0
    labels = torch.zeros(40, dtype=torch.int64)
    for mask in (None, torch.ones(40, 513) != 0):
        batch = BatchLabels(labels, mask, 1, -100)
        with LargestTensor() as largest:
            ((rows, _),) = reduced_rows(tokens, "mean", batch)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows, torch.full((40, 8), 1.5 / 513))
        assert largest.bytes <= max(2**14, 513 * 8 * 4)  # one sample where more do not fit


def test_reading_in_place():
    tokens = torch.randn(2, 3, 4)
    batch = BatchLabels(LABELS, None, 2, -100)
    for features, reduction in (
        (tokens, "flatten"),
        (tokens, "tokens"),
        (tokens, "cls"),
        (tokens, "last"),
        (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), "tokens"),
    ):
        ((rows, _),) = reduced_rows(features, reduction, batch)
        assert rows.untyped_storage().data_ptr() == features.untyped_storage().data_ptr()
    image = torch.randn(2, 3, 4, 5)
    with LargestTensor() as largest:
        ((rows, _),) = reduced_rows(image, "mean", batch)
    assert largest.bytes == rows.nbytes


def test_rows_that_are_not_rows_of_memory_come_in_bounded_portions(monkeypatch):
    monkeypatch.setattr(reduce, "_COPIED_BYTES", 500)
    image = torch.randn(7, 3, 4, 5)  # 240 bytes a sample
    labels = torch.arange(7)
    batch = BatchLabels(labels, None, 7, -100)
    for features, reduction, expected in (
        (image.to(memory_format=torch.channels_last), "flatten", image.flatten(1)),
        (image, "tokens", image.permute(0, 2, 3, 1).reshape(-1, 3)),
    ):
        parts = list(reduced_rows(features, reduction, batch))
        assert len(parts) == 4
        assert max(rows.nbytes for rows, _ in parts) <= 500
        assert torch.equal(torch.cat([rows for rows, _ in parts]), expected)
        targets = torch.cat([part for _, part in parts])
        assert torch.equal(targets, labels.repeat_interleave(len(expected) // 7))


def test_no_samples_are_no_rows():
    labels = torch.zeros(0, dtype=torch.int64)
    for shape in ((0, 3, 4), (0, 3, 4, 5)):
        for reduction in ("flatten", "mean", "tokens"):
            for dtype in (torch.float32, torch.bfloat16):
                rows, targets = rows_of(torch.zeros(shape, dtype=dtype), reduction, labels)
                assert len(rows) == len(targets) == 0
    mask = torch.zeros(0, 3, dtype=torch.bool)
    assert rows_of(torch.zeros(0, 3, 4), "mean", labels, mask)[0].shape == (0, 4)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_features_are_found_in_any_output():
    features, other, ids = torch.randn(2, 3), torch.randn(5, 2), torch.zeros(2, dtype=torch.int64)
    pair = namedtuple("pair", "ids state")

    @dataclasses.dataclass
    class Output:
        cache: object
        state: torch.Tensor

    for output in (
        features,
        (ids, features),
        [None, (other, features)],  # `other` has no batch in front
        {"ids": ids, "state": features},
        OrderedDict(logits=torch.randn(2, 7), last_hidden_state=features),
        pair(ids, features),
        Output(object(), features),
    ):
        assert feature_tensor(output, 2) is features
    quantised = torch.quantize_per_tensor(features, 0.1, 0, torch.qint8)
    assert torch.equal(feature_tensor(quantised, 2), quantised.dequantize())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_outputs_without_features_are_refused():
    for output, message in (
        ("text", "the output is a str, expected a tensor"),
        ((), "the output is a tuple, expected a tensor"),
        (torch.zeros(2, dtype=torch.int64), "dtype torch.int64, expected real floating-point"),
        (torch.zeros(2, 2, dtype=torch.complex64), "dtype torch.complex64, expected real"),
        (torch.eye(2).to_sparse(), "is a torch.sparse_coo tensor, expected a dense one"),
        (torch.nested.nested_tensor([torch.eye(2)]), "is a nested tensor, expected a dense one"),
    ):
        with pytest.raises(TypeError, match=message):
            feature_tensor(output, 2)
    for reduction in ("flatten", "tokens"):
        with pytest.raises(ValueError, match=r"the output has shape \(\)"):
            rows_of(torch.tensor(1.0), reduction)
        with pytest.raises(ValueError, match=r"labels has shape \(2,\), expected \(3,\)"):
            rows_of(torch.zeros(3, 2, 2), reduction)


def test_labels_and_masks_that_do_not_fit_are_refused():
    for labels, error, message in (
        (torch.tensor(1), ValueError, r"labels has shape \(\)"),
        (torch.zeros(2), TypeError, "labels has dtype torch.float32, expected torch.int64"),
        ("text", TypeError, "labels is a str"),
        (torch.tensor([0, 5]), ValueError, r"labels\[1\] is 5, expected a class in \[0, 2\)"),
    ):
        with pytest.raises(error, match=message):
            BatchLabels(labels, None, 2, -100)
    for mask, error, message in (
        (torch.ones(3, 4).bool(), ValueError, r"mask has shape \(3, 4\), expected \(2, T\)"),
        (torch.ones(2).bool(), ValueError, r"mask has shape \(2,\), expected \(2, T\)"),
        (torch.zeros(2, 4), TypeError, "mask has dtype torch.float32, expected bool or integers"),
    ):
        with pytest.raises(error, match=message):
            BatchLabels(LABELS, mask, 2, -100)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\), expected \(2, 3\)"):
        rows_of(torch.zeros(2, 3, 5), "mean", mask=torch.ones(2, 4).bool())


def test_labels_are_copied_to_a_device_once():
    batch = BatchLabels(LABELS, torch.ones(2, 3).bool(), 2, -100)
    device = torch.device("cpu")
    assert batch.of_samples(device) is batch.of_samples(device)
    assert batch.of_positions(device, (3,)) is batch.of_positions(device, (3,))


def test_reductions_by_layer():
    reduce = {"blocks.0": "cls", "blocks.*": "mean"}
    assert [reduction_of(n, reduce) for n in ("blocks.0", "blocks.1", "stem")] == [
        "cls",
        "mean",
        "flatten",
    ]
    check_reduce(reduce, ["blocks.0", "blocks.1"])
    with pytest.raises(ValueError, match=r"reduce holds 'blocks.0', which matches none of.*stem"):
        check_reduce(reduce, ["stem"])
    with pytest.raises(ValueError, match=r"reduce is 'max', expected 'flatten', .* or a function"):
        check_reduce("max", ["stem"])
    with pytest.raises(ValueError, match=r"reduce\['stem'\] is 3, expected"):
        check_reduce({"stem": 3}, ["stem"])
