"""Errors and warnings on stderr, one line each."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape


def print_error(error: object) -> None:
    """Print an error to stderr, as one line."""
    _to_stderr("[bold red]error:[/]", error)


def print_warning(message: object) -> None:
    """Print a warning about a result to stderr, as one line."""
    _to_stderr("[yellow]warning:[/]", message)


def _to_stderr(markup: str, message: object) -> None:
    # Libraries' errors may have several lines.
    line = " ".join(filter(None, map(str.strip, str(message).splitlines())))
    # Without emoji: a name such as nets:x: would become one.
    console = Console(stderr=True, emoji=False)
    console.print(f"{markup} {escape(line)}", soft_wrap=True, highlight=False)
