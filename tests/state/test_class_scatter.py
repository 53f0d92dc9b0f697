"""class_scatter of one feature matrix: what it infers, and arrays of any layout."""

import re

import pytest
import torch

from deeprep import ClassScatter, class_scatter
from deeprep.base import validate


def test_a_stray_label_is_named_before_it_takes_gigabytes(monkeypatch):
    features, labels = torch.randn(1000, 16), torch.arange(1000) % 10
    labels[[7, 8]] = torch.tensor([20_000_000, -100])
    message = (
        "labels[7] is 20000000, expected the largest class, as num_classes is None; 20000001 "
        "classes of 16 features would take 2.7 GiB, and fewer than one in ten has a sample: if it "
        "is a class, pass num_classes=20000001"
    )
    monkeypatch.setattr("deeprep.state.scatter.ClassScatter", None)  # not even begun
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        class_scatter(features, labels)
    with pytest.raises(ValueError, match=r"^labels\[3\] is 9223372036854775807, expected the la"):
        class_scatter(features, torch.where(torch.arange(1000) == 3, 2**63 - 1, labels))


def test_many_classes_are_inferred():
    """A hundred thousand of them: more than 1 GiB needs one in ten to have a sample, no more."""
    labels = torch.arange(100_000).repeat_interleave(2)
    s = class_scatter(torch.ones(200_000, 1), labels)
    assert (s.num_classes, s.num_samples) == (100_000, 200_000)
    assert validate.infer_num_classes(labels, 100_000, -100) == 100_000
    assert validate.infer_num_classes(labels[::20], 100_000, -100) == 99_991
    with pytest.raises(ValueError, match=r"labels\[9090\] is 99990, .* pass num_classes=99991"):
        validate.infer_num_classes(labels[::22], 100_000, -100)


def test_a_small_state_is_made_whatever_the_labels():
    assert class_scatter(torch.ones(2, 3), torch.tensor([0, 1_000_000])).num_classes == 1_000_001


def test_labels_below_zero_are_not_counted(monkeypatch):
    monkeypatch.setattr(validate, "_UNASKED_STATE_BYTES", 0)
    with pytest.raises(ValueError, match=r"labels\[1\] is -7, expected a class in \[0, 2\)"):
        class_scatter(torch.ones(3, 2), torch.tensor([0, -7, 1]))


def test_without_a_label_there_is_nothing_to_infer_from():
    with pytest.raises(ValueError, match="num_classes is None and there is no label to infer"):
        class_scatter(torch.ones(2, 3), torch.tensor([5, 5]), ignore_index=5)


def test_num_classes_that_are_given_are_taken(monkeypatch):
    monkeypatch.setattr(validate, "_UNASKED_STATE_BYTES", 0)
    labels = torch.tensor([0, 999])
    with pytest.raises(ValueError, match=r"labels\[1\] is 999, expected the largest class"):
        class_scatter(torch.ones(2, 3), labels)
    assert class_scatter(torch.ones(2, 3), labels, 1000).num_classes == 1000
    one_hot = torch.nn.functional.one_hot(labels)
    assert class_scatter(torch.ones(2, 3), one_hot).num_classes == 1000
    state = ClassScatter(1000, 3)
    state.update(torch.ones(2, 3), labels)
    assert state.num_samples == 2
