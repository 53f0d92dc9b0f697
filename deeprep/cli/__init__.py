"""The command line `deeprep`: layers of models, features on disk, and states saved elsewhere.

Results go to stdout, as tables or as JSON; progress, warnings and errors to stderr.
"""

from __future__ import annotations

import signal
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import subcommand

from deeprep.base import strict_json
from deeprep.base.console import print_error, print_warning, stdout_console
from deeprep.cli import analyze, features
from deeprep.cli.shared import ERRORS

__all__ = ["main"]

_ABOUT = """Class-scatter statistics of the layers of a model, or of features on disk: how tightly a
layer packs the samples of a class (compression C) and how far apart it drives the classes
(discrimination D).

Examples:
  deeprep analyze resnet18 --data cifar10 --weights resnet18.pth
  deeprep stats features.npy labels.npy
  deeprep stats 'features/*.npy' labels.npy --full --out monday.safetensors
  deeprep merge monday.safetensors tuesday.safetensors --out both.safetensors
  deeprep show both.safetensors --json"""

_Command = (
    Annotated[analyze.Analyze, subcommand("analyze", description=analyze.ABOUT)]
    | Annotated[features.Stats, subcommand("stats", description=features.STATS)]
    | Annotated[features.Merge, subcommand("merge", description=features.MERGE)]
    | Annotated[features.Show, subcommand("show", description=features.SHOW)]
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for an error, 130 after Ctrl-C."""
    command = tyro.cli(_Command, prog="deeprep", description=_ABOUT, args=arguments)
    try:
        result = command.run()
    except ERRORS as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped")
        return 128 + signal.SIGINT
    if command.json:
        print(strict_json.dumps(result.data, indent=2))
    else:
        console = stdout_console()
        for each in result.shown:
            console.print(each, soft_wrap=isinstance(each, str), highlight=False)
        for message in result.warnings:
            print_warning(message)
    return 1 if result.failed else 0
