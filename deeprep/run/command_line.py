"""The command line `python -m deeprep.run`: its flags are the fields of `Settings`."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console
from rich.markup import escape
from tyro.conf import FlagCreatePairsOff, arg

from deeprep.base.console import print_error, stdout_console
from deeprep.base.flags import given_fields, parse_flags
from deeprep.base.ranks import RankLostError, Ranks
from deeprep.base.torchrun import OtherRankError, default_threads, joined, together
from deeprep.run.device import choose_device
from deeprep.run.record import RunDirectory
from deeprep.run.session import RunStopped, run
from deeprep.run.settings import Settings
from deeprep.run.show import Shown, explain, show_defaults, show_settings
from deeprep.run.train import NonFiniteLossError

__all__ = ["main"]

_ABOUT = """Train a network and measure, layer by layer, how it compresses and discriminates.
Results go to a new directory under runs/. Ctrl-C stops the run at the end of the epoch; --resume
continues it.

Flags that show no default here depend on the architecture and the data set: --show-settings prints
what they are."""


@dataclass(frozen=True)
class _CommandLine(Settings):
    resume: Path | None = None
    """Continue the stopped run in this directory, with the settings in its config.json. Takes no
    other flag."""

    show_settings: Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")] = False
    """Print the table of defaults and every setting that this command line comes to, and why; train
    nothing."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for an error, 128 + n if signal n came."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = parse_flags(_CommandLine, "python -m deeprep.run", _ABOUT, arguments)
    given = given_fields(arguments)
    with joined() as ranks:
        return _main(command, given, ranks)


def _main(command: _CommandLine, given: set[str], ranks: Ranks | None) -> int:
    console, first = stdout_console(), ranks is None or ranks.rank == 0
    try:
        start = together(ranks, lambda: _start(command))
        if command.show_settings:
            together(ranks, lambda: _show(start, given, ranks, Console()) if first else None)
        else:
            run(start, console)
    except OtherRankError:
        return 1  # the one that failed says why
    except (ValueError, OSError, NonFiniteLossError, RankLostError) as error:
        if first or not isinstance(error, NonFiniteLossError):  # which all have
            print_error(error)
        return 1
    except RunStopped as stopped:
        if first:
            console.print(f"\n{escape(str(stopped))}", soft_wrap=True, highlight=False)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _start(command: _CommandLine) -> Settings | RunDirectory:
    """Return what is to be run: new settings, or the directory of an earlier run."""
    settings = Settings(**{each.name: getattr(command, each.name) for each in fields(Settings)})
    if command.resume is None:
        return settings
    if settings != Settings():
        raise ValueError(
            "resume is given with other flags, expected alone: the settings are in its config.json"
        )
    return RunDirectory.open(command.resume)


def _show(
    start: Settings | RunDirectory, given: set[str], ranks: Ranks | None, console: Console
) -> None:
    """Print what would be run."""
    if isinstance(start, RunDirectory):
        settings = start.settings()
        names = {name for group in vars(settings).values() for name in vars(group)}
        show_settings([explain(settings, dict.fromkeys(names, "config.json"))], console)
        return
    explained = explain(start, dict.fromkeys(given, "given"))
    device = choose_device(start.run.device)
    if start.run.device == "auto":
        explained["run"]["device"] = Shown(device.type, "this machine")
    if start.run.threads is None:
        threads = torch.get_num_threads() if ranks is None else default_threads()
        explained["run"]["threads"] = Shown(str(threads), "this machine")
    show_defaults(console)
    show_settings([explained], console)
