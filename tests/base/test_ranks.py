"""Messages between the processes of a group."""

from __future__ import annotations

import contextlib
import os
import time

import torch
from rank_checks import join
from torch import distributed

from deeprep.base.ranks import Ranks


def _give_up(rank, size, store, results):
    join(rank, size, store, seconds=5)
    meeting = distributed.new_group([0, 1])  # connections of its own
    ranks = Ranks.of(None, "a test")
    tensor = torch.full((1 << 20,), float(rank))
    with contextlib.suppress(KeyboardInterrupt), ranks.messages(7) as post:
        if rank == 0:
            distributed.barrier(meeting)
            post([(1, tensor)], [])
            time.sleep(0.5)
        else:
            post([], [(0, tensor)])
            raise KeyboardInterrupt
    if rank == 1:
        distributed.barrier(meeting)
    distributed.barrier(meeting)
    if rank == 1:
        results.put(bool((tensor == 1.0).all()))
        results.close()
        results.join_thread()
    os._exit(0)  # the group is of no use any more


def test_what_is_given_up_is_not_received_later(run_ranks):
    exit_codes, results = run_ranks(_give_up, 2)
    assert exit_codes == [0, 0]
    assert results.get(timeout=5) is True
