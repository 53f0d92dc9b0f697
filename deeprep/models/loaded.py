"""A model that was built by name, of whatever kind, and takes weights from files."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deeprep.data.tokenizers import Tokenizer
from deeprep.models.vision import FittedImages
from deeprep.models.weights import fit_state, load_state, num_outputs_of, read_state

__all__ = ["MAX_LENGTH", "LoadedModel", "check_images", "describe_error", "import_extra", "is_ours"]

_HERE = str(Path(__file__).parents[1])
MAX_LENGTH = 512  # tokens, where neither a tokenizer nor a model says how many it takes


@dataclass
class LoadedModel:
    """A model that was built by name, and can be given one set of weights after another.

    Attributes
    ----------
    name
        What it was built by.
    module
        The model. Images are fitted to a vision model first, see `deeprep.models.FittedImages`.
    num_outputs
        What it was built with, where it has so many outputs: K, or as many as its weights have.
    weights
        Where its weights are from: "random", or a path.
    build
        Builds it anew with another number of outputs; None where that makes no sense.
    read_folder
        Reads the state dict in a folder; None where its weights are in files only.
    tokenizer
        Turns sentences into ids, where the data are text.
    max_length
        Most tokens of a sentence that it takes.
    """

    name: str
    module: nn.Module
    num_outputs: int
    weights: str = "random"
    build: Callable[[int], nn.Module] | None = None
    read_folder: Callable[[Path], Mapping[str, Tensor]] | None = None
    tokenizer: Tokenizer | None = None
    max_length: int = MAX_LENGTH

    def load_weights(self, path: Path) -> None:
        """Load the weights in a file, or for a Hugging Face model in a folder.

        Wrappers' prefixes are taken off the names. Weights of the same network with another number
        of outputs fit too: the network is then built anew with as many.

        Raises
        ------
        FileNotFoundError, ValueError
            As `read_state` and `load_state` do; the model is then as it was.
        """
        network = _network(self.module)
        if path.is_dir() and self.read_folder is None:
            raise ValueError(f"weights {path} is a folder, expected a file for model {self.name}")
        read = self.read_folder if path.is_dir() and self.read_folder else read_state
        state = fit_state(read(path), network)
        num_outputs = num_outputs_of(state, network, self.num_outputs)
        module = self.module
        if self.build is not None and num_outputs != self.num_outputs:
            module = self.build(num_outputs)
            for parameter in network.parameters():
                module.to(parameter.device, parameter.dtype)
                break
        load_state(_network(module), state, str(path))
        self.module, self.num_outputs, self.weights = module, num_outputs, str(path)


def _network(module: nn.Module) -> nn.Module:
    """Return the network whose weights the files hold, without what fits images to it."""
    return module.network if isinstance(module, FittedImages) else module


def describe_error(error: BaseException) -> str:
    """Say in one line what was raised, and where: for the errors of code that is not ours.

    The place is the last line of a file that is neither deeprep's nor of an installed package.

    >>> try:
    ...     {}["key"]
    ... except KeyError as error:
    ...     describe_error(error)
    "KeyError: 'key'"
    """
    text = str(error).strip().partition("\n")[0]
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    places = [
        f"{frame.filename}, line {frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_HERE, "<")) and "site-packages" not in frame.filename
    ]
    return f"{message} ({places[-1]})" if places else message


def is_ours(error: BaseException) -> bool:
    """Whether it was raised by a line of deeprep, and so may be a bug that must not be hidden."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_HERE)


def check_images(name: str, input_shape: tuple[int, ...] | None, channels: int) -> None:
    """Check that samples of this shape, None for sentences, are images that a model takes."""
    if input_shape is None:
        raise ValueError(f"data holds sentences, expected images for model {name}")
    if len(input_shape) != 3 or input_shape[0] not in (1, channels):
        wanted = f"images (channels, height, width) with 1 or {channels} channels"
        raise ValueError(f"data has samples of {input_shape}, expected {wanted} for model {name}")


def import_extra(package: str, whose: str) -> Any:
    """Import an optional library for the feature that needs it.

    >>> import_extra("tim", "model timm:resnet10t")
    Traceback (most recent call last):
        ...
    ImportError: model timm:resnet10t needs tim, which is not installed: pip install tim
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is installed, but something that it imports is not
            raise
        raise ImportError(
            f"{whose} needs {package}, which is not installed: pip install {package}"
        ) from error
