"""Errors and warnings of commands: a line each, on stderr, as they are."""

import pytest

from deeprep.base.console import print_error, print_warning


@pytest.mark.parametrize(("show", "kind"), [(print_error, "error"), (print_warning, "warning")])
def test_text_is_printed_as_it_is(capsys, show, kind):
    text = "layer [bold] of nets:x: is " + "long " * 50 + "[/]"
    show(ValueError(text))
    printed = capsys.readouterr()
    assert printed.err == f"{kind}: {text}\n"
    assert printed.out == ""
