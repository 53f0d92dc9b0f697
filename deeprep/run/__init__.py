"""Train a network and watch its layers compress: `python -m deeprep.run --arch mlp`."""

from deeprep.run.session import RunStopped, main, run

__all__ = ["RunStopped", "main", "run"]
