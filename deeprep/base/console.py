"""What commands print to stderr: errors and warnings, a line each."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape


def print_error(error: object) -> None:
    """Print a line to stderr: what went wrong."""
    _to_stderr(f"[bold red]error:[/] {escape(str(error))}")


def print_warning(message: object) -> None:
    """Print a line to stderr: what is to be known of a result."""
    _to_stderr(f"[yellow]warning:[/] {escape(str(message))}")


def _to_stderr(markup: str) -> None:
    # No emoji: a name such as nets:x: is none.
    Console(stderr=True, emoji=False).print(markup, soft_wrap=True, highlight=False)
