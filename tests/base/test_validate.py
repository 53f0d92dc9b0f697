"""Input that does not fit is named: the argument, what it is and what was expected."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deeprep import ClassScatter, class_scatter, class_scatter_of_files
from deeprep.base import validate


@pytest.mark.parametrize("value", [2**31, 2**40, 2**64])
def test_more_classes_than_the_core_counts_are_refused_before_anything_is_allocated(
    tmp_path, monkeypatch, value
):
    monkeypatch.setattr(torch, "zeros", None)
    message = f"^num_classes is {value}, expected at most 2147483647$"
    with pytest.raises(ValueError, match=message):
        ClassScatter(value, 1)
    with pytest.raises(ValueError, match=message):
        class_scatter(torch.ones(2, 1), torch.tensor([0, 1]), value)
    with pytest.raises(ValueError, match=message):
        class_scatter_of_files("none.npy", "none.npy", value)


def test_a_state_of_the_operator_has_no_more_classes_either():
    state = [
        torch.empty(2**31, dtype=torch.int64, device="meta"),
        torch.empty(2**31, 1, dtype=torch.float64, device="meta"),
        torch.empty(2**31, dtype=torch.float64, device="meta"),
    ]
    features = torch.empty(1, 1, device="meta")
    with pytest.raises(ValueError, match=r"^K is 2147483648, expected at most 2147483647 classes$"):
        validate.check_state(features, *state, None)
    validate.check_state(features, *(tensor[:-1] for tensor in state), None)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "n is 0, expected a whole number >= 1"),
        (-1, ValueError, "n is -1, expected a whole number >= 1"),
        (2.0, TypeError, r"n is 2\.0, expected a whole number >= 1"),
        (True, TypeError, "n is True, expected a whole number >= 1"),
        ("2", TypeError, "n is '2', expected a whole number >= 1"),
    ],
)
def test_what_is_no_positive_number_is_refused(value, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        validate.check_positive("n", value)


def test_numpy_arrays_and_dlpack_objects_share_their_memory():
    array = np.arange(6.0).reshape(3, 2)
    tensor = validate.as_tensor("x", array)
    array[0, 0] = 7
    assert tensor[0, 0] == 7
    weights = torch.ones(2, requires_grad=True)
    assert not validate.as_tensor("x", weights).requires_grad

    class Exchanged:
        def __dlpack__(self, **options):
            return array.__dlpack__(**options)

        def __dlpack_device__(self):
            return array.__dlpack_device__()

    array[0, 0] = 8
    assert validate.as_tensor("x", Exchanged())[0, 0] == 8


def test_a_read_only_array_is_taken_without_a_warning():
    array = np.arange(3.0)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert validate.as_tensor("x", array).tolist() == [0, 1, 2]


def test_what_is_no_array_is_named():
    with pytest.raises(TypeError, match=r"^x is a list, expected a torch tensor, a NumPy array or"):
        validate.as_tensor("x", [1, 2])


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        ((2, 3, 4), (2,), ValueError, r"features has shape \(2, 3, 4\), expected \(N, d\)"),
        ((2, 3), (3,), ValueError, r"labels has shape \(3,\), expected \(2,\): one label for each"),
        ((2, 3), (2, 1, 1), ValueError, r"labels has shape \(2, 1, 1\), expected \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(features, labels, error, message):
    rows, classes = torch.zeros(features), torch.zeros(labels, dtype=torch.int64)
    with pytest.raises(error, match=f"^{message}"):
        validate.check_batch(*validate.to_tensors(rows, classes))


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.int64, torch.int64, r"features has dtype torch\.int64, expected one of torch\.flo"),
        (torch.float32, torch.uint8, r"labels has dtype torch\.uint8, expected torch\.int64 or"),
    ],
)
def test_types_that_do_not_fit_are_named(features, labels, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        validate.check_batch(torch.zeros(2, 3, dtype=features), torch.zeros(2, dtype=labels))


def test_tensors_on_two_devices_are_named():
    with pytest.raises(ValueError, match=r"^labels is on cpu, expected meta, where features is"):
        validate.check_batch(torch.zeros(2, 3, device="meta"), torch.zeros(2, dtype=torch.int64))


def test_one_hot_rows_become_classes():
    _, labels = validate.to_tensors(np.zeros((3, 2)), np.eye(4)[[2, 0, 3]])
    assert labels.tolist() == [2, 0, 3]
    with pytest.raises(ValueError, match=r"^labels\[1\] is \[1, 1\], expected a one-hot row"):
        validate.to_tensors(np.zeros((2, 2)), np.array([[1, 0], [1, 1]]))
    with pytest.raises(
        ValueError, match=r"^labels has shape \(2, 0\), expected at least one class"
    ):
        validate.to_tensors(np.zeros((2, 2)), np.zeros((2, 0)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_labels_that_are_no_class_are_named_with_their_row(dtype):
    labels = torch.tensor([0, -100, 2, 5, 9], dtype=dtype)
    validate.check_labels(labels[:3], 3, -100)
    validate.check_labels(labels[:0], 3, -100)
    with pytest.raises(ValueError, match=r"^labels\[3\] is 5, expected a class in \[0, 3\) or ign"):
        validate.check_labels(labels, 3, -100)
    with pytest.raises(ValueError, match=r"^labels\[1\] is -100, expected .* ignore_index = 2"):
        validate.check_labels(labels, 3, 2)
    with pytest.raises(ValueError, match=r"^labels\[1\] is -100"):
        validate.check_labels(labels, 3, 2**40)  # which no int32 is


def test_settings_that_are_out_of_range_are_named():
    settings = SimpleNamespace(depth=1, width=None, scale=math.inf)
    validate.require_at_least(settings, 1, "depth", "width")
    with pytest.raises(ValueError, match=r"^depth is 1, expected finite and >= 2$"):
        validate.require_at_least(settings, 2, "width", "depth")
    with pytest.raises(ValueError, match=r"^scale is inf, expected finite and > 0$"):
        validate.require_positive(settings, "depth", "scale")
    with pytest.raises(ValueError, match=r"^a setting is None, expected settings resolved"):
        validate.chosen(settings.width)
