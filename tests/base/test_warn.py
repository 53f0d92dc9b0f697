"""Warnings name the line that called deeprep, whatever lies between."""

import functools
import sys
import warnings

import pytest
import torch

from deeprep.base import warn as warn_module
from deeprep.base.warn import warn


def line_of_caller():
    return sys._getframe(1).f_lineno


def in_deeprep(source):
    """Run code as if it stood in a file of deeprep; return its names."""
    names = {"warn": warn, "functools": functools, "torch": torch}
    exec(compile(source, warn_module.__file__, "exec"), names)
    return names


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert len(caught) == 1
    return caught[0]


def test_through_functions_of_deeprep():
    names = in_deeprep(
        "def inner(): warn('x', RuntimeWarning)\ndef outer(): [inner() for _ in range(1)]"
    )
    outer = names["outer"]
    found = warned(lambda: outer()), line_of_caller()
    assert (found[0].filename, found[0].lineno) == (__file__, found[1])
    assert found[0].category is RuntimeWarning


def test_through_a_cached_property():
    names = in_deeprep(
        "class State:\n    @functools.cached_property\n    def present(self): warn('x')"
    )
    state = names["State"]()
    found = warned(lambda: state.present), line_of_caller()
    assert (found[0].filename, found[0].lineno) == (__file__, found[1])


def test_through_a_hook_that_torch_calls():
    hook = in_deeprep("def hook(*_): warn('x')")["hook"]
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    module[0].register_forward_hook(hook)
    found = warned(lambda: module(torch.ones(1, 2))), line_of_caller()
    assert (found[0].filename, found[0].lineno) == (__file__, found[1])


def run(thread):
    thread.start()
    thread.join()


def test_without_a_caller_outside():
    """As the first line of a thread may be in deeprep."""
    source = "import threading\nthread = threading.Thread(target=warn, args=('x',))\n"
    thread = in_deeprep(source)["thread"]
    with pytest.warns(UserWarning, match="^x$"):
        run(thread)
