"""The command line `deeprep`: layers of models, features on disk, and saved states.

Results go to stdout, as tables or as JSON; progress, warnings and errors to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import subcommand

from deeprep.base import strict_json
from deeprep.base.console import print_error, print_warning, stdout_console
from deeprep.base.ranks import RankLostError
from deeprep.base.torchrun import OtherRankError, let_another_speak
from deeprep.cli import analyze, features
from deeprep.cli.shared import ERRORS, Result

__all__ = ["main"]

_ABOUT = """Class-scatter statistics of the layers of a model, or of features on disk: how tightly a
layer packs the samples of a class (compression C) and how far apart it drives the classes
(discrimination D)."""

# What `--help` says below the flags; "" is that of `deeprep --help`.
_DETAILS = {
    "": """Examples:
  deeprep analyze resnet18 --data cifar10 --weights resnet18.pth
  deeprep stats features.npy labels.npy
  deeprep stats 'features/*.npy' labels.npy --full --out monday.safetensors
  deeprep merge monday.safetensors tuesday.safetensors --out both.safetensors
  deeprep show both.safetensors --json
  torchrun --nproc-per-node=4 -m deeprep stats 'features/*.npy' labels.npy --out all.safetensors

Each command has its own --help.""",
    "analyze": analyze.DETAILS,
    "stats": features.STATS_DETAILS,
    "merge": features.MERGE_DETAILS,
    "show": features.SHOW_DETAILS,
}

_Command = (
    Annotated[analyze.Analyze, subcommand("analyze", description=analyze.ABOUT)]
    | Annotated[features.Stats, subcommand("stats", description=features.STATS)]
    | Annotated[features.Merge, subcommand("merge", description=features.MERGE)]
    | Annotated[features.Show, subcommand("show", description=features.SHOW)]
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for an error, 130 after Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        command = tyro.cli(_Command, prog="deeprep", description=_ABOUT, args=given)
    except SystemExit as stop:
        if not stop.code and {"-h", "--help"} & set(given):
            print(f"\n{_DETAILS.get(given[0], _DETAILS[''])}")
        raise
    try:
        result = command.run()
    except ERRORS as error:
        print_error(error)
        return 1
    except OtherRankError:
        let_another_speak()
        return 1
    except RankLostError as error:
        if os.environ.get("RANK", "0") == "0":
            print_error(error)
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped")
        return 128 + signal.SIGINT
    if result is None:
        return 0
    try:
        _print(result, command.json)
        print(end="", flush=True)
    except OSError as error:
        # Of a reader that has seen enough, such as head, there is nothing to say.
        if not isinstance(error, BrokenPipeError):
            print_error(f"stdout cannot be written: {error}")
        sys.stdout = None  # or Python would try again on leaving
        return 1
    return 1 if result.failed else 0


def _print(result: Result, as_json: bool) -> None:
    if as_json:
        print(strict_json.dumps(result.data, indent=2))
        return
    console = stdout_console()
    for each in result.shown:
        console.print(each, soft_wrap=isinstance(each, str), highlight=False)
    for message in result.warnings:
        print_warning(message)
