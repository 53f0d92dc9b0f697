"""A state from one process to another, and to all: the same bits, in messages of any size."""

from __future__ import annotations

import pytest
import torch
from rank_checks import run_checks

from deeprep import class_scatter
from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import Alarm
from deeprep.state import transfer


def state_of(rank, full):
    generator = torch.Generator().manual_seed(rank)
    features = torch.randn(50, 6, generator=generator, dtype=torch.float64).float()
    return class_scatter(features, torch.arange(50) % 4, 5, full=full)


def assert_same_bits(found, expected):
    for name, tensor in expected._tensors().items():
        assert torch.equal(found._tensors()[name], tensor), name
    assert found.unit_roundoff == expected.unit_roundoff
    assert found.trace_within == expected.trace_within


def check_transfer(rank, size):
    ranks = Ranks.of(None, "a test")
    for full in (False, True):
        for numbers in (transfer._MESSAGE_NUMBERS, 7):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(transfer, "_MESSAGE_NUMBERS", numbers)
                state = state_of(rank, full)
                if rank == 1:
                    transfer.send_state(state, ranks, 0)
                elif rank == 0:
                    received = class_scatter(torch.ones(1, 6), torch.tensor([0]), 5, full=full)
                    assert received.present.tolist() == [0]  # kept until it changes
                    transfer.receive_state(received, ranks, 1)
                    assert_same_bits(received, state_of(1, full))
                    assert received.present.tolist() == [0, 1, 2, 3]
                transfer.broadcast_state(state, ranks, 1)
                assert_same_bits(state, state_of(1, full))


def check_alarm(rank, size):
    ranks = Ranks.of(None, "a test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Alarm, "_POLL_SECONDS", 0.0)
        quiet, alarm = Alarm(ranks), Alarm(ranks)
        assert not alarm.rings()
        ranks.gather(None)
        if rank == 1:
            alarm.ring()
        ranks.gather(None)
        assert alarm.rings()
        assert not quiet.rings(), "of another call"


def test_states_travel_whole(run_ranks):
    exit_codes, failures = run_ranks(run_checks, 3, [check_transfer, check_alarm])
    assert exit_codes == [0, 0, 0], failures.get(timeout=5)
