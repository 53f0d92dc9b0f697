"""Hugging Face models from local folders; the network is never touched."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from deeprep.base.warn import warn
from deeprep.models.loaded import (
    MAX_LENGTH,
    LoadedModel,
    check_images,
    describe_error,
    import_extra,
)
from deeprep.models.vision import FittedImages
from deeprep.models.weights import listed

__all__ = ["load_hugging_face"]

_TOKENIZER_FILES = ("*token*", "vocab*", "*.model", "*.spm")


def load_hugging_face(
    name: str, folder: Path, num_classes: int, input_shape: tuple[int, ...] | None
) -> LoadedModel:
    """Build the model of a local folder; the arguments and errors are those of `load_model`.

    Its weights are those in the folder, or random where it holds a configuration only. A head is
    left out, and of an encoder-decoder the decoder.
    """
    import_extra("transformers", f"model {name}")
    # Anything but a folder would be looked for on the network.
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model {name}: {folder} is not a folder with a config.json")

    def read_folder(path: Path) -> Mapping[str, Tensor]:
        state: dict[str, Tensor] = _pretrained(path).state_dict()
        return state

    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    module = _pretrained(folder) if has_weights else _unprepared(folder)
    model = LoadedModel(
        name,
        module,
        num_classes,
        weights=str(folder) if has_weights else "random",
        read_folder=read_folder,
    )
    config, takes = module.config, module.main_input_name
    if input_shape is None and takes == "input_ids":
        model.tokenizer = _tokenizer(name, folder)
        limits = (
            getattr(model.tokenizer, "model_max_length", None),
            getattr(config, "max_position_embeddings", None),
        )
        model.max_length = min(MAX_LENGTH, *(each for each in limits if each and each > 0))
    elif input_shape is not None and takes == "pixel_values":
        channels, size = getattr(config, "num_channels", 3), getattr(config, "image_size", None)
        check_images(name, input_shape, channels)
        fixed_size = (size, size) if isinstance(size, int) else size and tuple(size)
        model.module = FittedImages(module, channels=channels, fixed_size=fixed_size)
    else:
        given = "sentences" if input_shape is None else f"samples of {input_shape}"
        raise ValueError(f"data holds {given}, expected {takes} for model {name}")
    return model


def _unprepared(folder: Path) -> Any:
    """Return the model of a folder that holds only its configuration, with random weights."""
    transformers = importlib.import_module("transformers")
    with _one_line_errors(folder):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        return _encoder(transformers.AutoModel.from_config(config))


def _pretrained(folder: Path) -> Any:
    """Return the model of a folder with its weights, without the head they may come with."""
    transformers = importlib.import_module("transformers")
    with _one_line_errors(folder):
        model, info = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    missing = sorted(info["missing_keys"])
    # Models trained with another head come without a pooler, which follows all the layers.
    if any(not name.startswith("pooler.") for name in missing):
        raise ValueError(f"weights {folder} lack {listed(missing)}")
    if missing:
        warn(f"weights {folder} lack {listed(missing)}: random here")
    return _encoder(model)


def _encoder(model: Any) -> Any:
    """Return the encoder of an encoder-decoder model, and any other model whole."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _tokenizer(name: str, folder: Path) -> Any:
    transformers = importlib.import_module("transformers")
    advice = "put one there with tokenizer.save_pretrained"
    # transformers would invent one with an empty vocabulary.
    if not any(file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)):
        raise FileNotFoundError(f"model {name} has no tokenizer in {folder}; {advice}")
    try:
        with _one_line_errors(folder):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except ValueError as error:
        raise ValueError(f"model {name} has no tokenizer that loads: {error}; {advice}") from error
    if tokenizer.pad_token is None:  # GPT-2, for example; the padding is masked anyway
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"model {name} has a tokenizer without special tokens, expected a pad, eos or unk token"
        )
    return tokenizer


@contextmanager
def _one_line_errors(folder: Path) -> Iterator[None]:
    """Keep transformers from printing, and its errors to one line."""
    logging = importlib.import_module("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # of many kinds, with pages of advice
        raise ValueError(f"{folder}: {describe_error(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
