"""Changes of several tensors that no exception can leave half done.

Ctrl-C, and any other signal with a handler, can raise between two bytecodes of the main thread:
between two statements, and within one, when a function that it calls has returned. What is done
within a single bytecode is done whole or not at all.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import numpy as np
import torch

Step = partial[Any]


def indivisibly(*steps: Step) -> None:
    """Take the steps, calls that are ready to be made, one after another, in a single bytecode.

    Parameters
    ----------
    *steps
        Calls of functions written in C, on memory that is there. They should not be able to fail:
        where one does, those after it are not taken.

    Examples
    --------
    >>> numbers = [1]
    >>> indivisibly(partial(numbers.append, 2), partial(numbers.append, 3))
    >>> numbers
    [1, 2, 3]
    """
    # torch.set_default_device puts a Python function before every call of torch. It is passed over
    # by calls like any other: leaving a `with` early enough would leave it out for good.
    guard = torch._C.DisableTorchFunction()
    enter, leave = partial(guard.__enter__), partial(guard.__exit__, None, None, None)
    _call(enter, leave)  # now it knows what to go back to
    # Nor may a warning of NumPy's run Python code between the steps.
    with np.errstate(all="ignore"):
        try:
            _call(enter, *steps, leave)
        finally:
            leave()  # if a step failed; a second time it changes nothing


def _call(*steps: Step) -> None:
    deque(map(partial.__call__, steps), maxlen=0)
