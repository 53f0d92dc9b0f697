"""Input that does not fit is named: the argument, what it is and what was expected."""

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
