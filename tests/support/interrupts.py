"""Calls that an exception ends after any of their bytecodes, and what states hold then.

An exception from a signal handler arrives between two bytecodes of the main thread. So a call is
made again and again, to be ended after its first bytecode, its second, and so on.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch

import deeprep

OURS = str(Path(deeprep.__file__).parent)  # where deeprep's own bytecodes come from


class InterruptedError(BaseException):
    """Stands in for KeyboardInterrupt, which would end a run of pytest that met it elsewhere."""


def content(*states):
    """All that a state holds, as bits."""
    return [
        (
            [
                # Of the pooled scatter only the upper triangle counts.
                (tensor.triu() if name == "products" else tensor).numpy().tobytes()
                for name, tensor in s._tensors().items()
            ],
            s.unit_roundoff,
            s.ignore_index,
        )
        for s in states
    ]


def interrupt_after(events, call, files=""):
    """Make a call, and end it after so many bytecodes of code in `files`; return how many it had.

    A negative number of events is never reached.
    """
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if not frame.f_code.co_filename.startswith(files):
            return None
        frame.f_trace_opcodes = True
        if event in ("opcode", "return"):
            if count == events:
                raise InterruptedError
            count += 1
        return trace

    gc.disable()  # what others have the collector call swallows exceptions, but not in silence
    sys.settrace(trace)
    try:
        call()
    except InterruptedError:
        pass
    finally:
        sys.settrace(None)
        gc.enable()
    return count


def check_every_bytecode(make, call, files="", stride=1):
    """The states that `make` returns are old or new after `call(*states)`, wherever it ends."""
    states = make()
    old = content(*states)
    num_events = interrupt_after(-1, lambda: call(*states), files)
    new = content(*states)
    assert new != old
    found: set[str] = set()
    for events in (*range(0, num_events, stride), num_events - 1):
        states = make()
        for s in states:
            _ = s.num_samples  # derived, and so kept
        interrupt_after(events, lambda states=states: call(*states), files)
        assert torch._C._is_torch_function_enabled(), f"after {events} of {num_events} bytecodes"
        try:
            for s in states:
                s._require_intact()
        except RuntimeError as error:
            assert "did not come to an end; reset() or load_state_dict() starts anew" in str(error)  # noqa: PT017
            found.add("half")
            continue
        assert content(*states) in (old, new), f"after {events} of {num_events} bytecodes"
        assert all(s.num_samples == int(s._moments.counts.sum()) for s in states)
        found.add("old" if content(*states) == old else "new")
    return found
