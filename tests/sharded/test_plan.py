"""A plan says what states take before they are there: its bytes are those of real tensors."""

from __future__ import annotations

import pytest

from deeprep import ClassScatter
from deeprep.sharded import plan


def bytes_of(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_a_plan_has_the_bytes_of_real_states(size, full):
    found = plan(23, 7, size, full)
    s = ClassScatter(23, 7, full=full)
    assert found[:4] == (23, 7, size, full)
    assert found.state_bytes == bytes_of(*s._tensors().values())
    largest = ClassScatter(-(-23 // size), 7, full=full)
    assert found.share_bytes == bytes_of(*largest._tensors().values())
    assert found.all_reduce_sent == 2 * found.state_bytes * (size - 1) // size
    assert found.multiplications == ((size - 1) * -(-23 // size) * 49 // 2 if full else 0)
    assert found.reduce_scatter_peak >= found.state_bytes + found.share_bytes
    if size == 1:
        assert found.all_reduce_sent == found.reduce_scatter_sent == found.message_bytes == 0


def test_memory_for_messages_is_bounded_until_rows_alone_exceed_it():
    assert plan(100_000, 4096, 4).message_bytes == 2**24
    row = 8 * 8192 + 16
    assert plan(128_000, 8192, 1024).message_bytes == 2 * 1023 * row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 2, 4), "num_processes is 4, expected at most 3, one class for each"),
        ((3, 2, 0), "num_processes is 0, expected"),
        ((0, 2, 1), "num_classes is 0, expected"),
        ((3, 0, 1), "num_features is 0, expected"),
    ],
)
def test_what_no_state_has_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(*arguments)
