"""Train a network and watch its layers compress: `python -m deeprep.run --arch mlp`."""

from deeprep.run.command_line import main
from deeprep.run.session import RunStopped, run

__all__ = ["RunStopped", "main", "run"]
