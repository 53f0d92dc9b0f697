"""What commands print: results on stdout, errors and warnings on stderr, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# rich is imported by what prints, and not by `import deeprep`, a third of whose time it would be.

UNLIMITED = 10_000  # columns: more than any table has, so that nothing is cut off


def stdout_console() -> Console:
    """Return a console on stdout, without a limit of its width where that is no terminal.

    Otherwise a table in a pipe or a file would be squeezed into 80 columns.
    """
    from rich.console import Console

    # Without emoji: a name such as nets:x: would become one.
    console = Console(emoji=False)
    return console if console.is_terminal else Console(emoji=False, width=UNLIMITED)


def print_error(error: object) -> None:
    """Print an error to stderr, as one line."""
    _to_stderr("[bold red]error:[/]", error)


def print_warning(message: object) -> None:
    """Print a warning about a result to stderr, as one line."""
    _to_stderr("[yellow]warning:[/]", message)


def _to_stderr(markup: str, message: object) -> None:
    from rich.console import Console
    from rich.markup import escape

    # Libraries' errors may have several lines.
    line = " ".join(filter(None, map(str.strip, str(message).splitlines())))
    console = Console(stderr=True, emoji=False)
    console.print(f"{markup} {escape(line)}", soft_wrap=True, highlight=False)
