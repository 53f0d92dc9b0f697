"""Which device a command runs on."""

from __future__ import annotations

import torch

from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import local_rank
from deeprep.base.validate import require
from deeprep.ops import build_info


def choose_device(name: str) -> torch.device:
    """Return the device of a name; auto is the GPU if there is one that deeprep can use.

    Raises
    ------
    ValueError
        For another name than auto, cpu, cuda or cuda:N, and for a GPU that cannot be used.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    lacks = "" if torch.cuda.is_available() else "PyTorch finds no GPU"
    if not build_info()["cuda"]:  # then nothing on a GPU can be measured
        lacks = lacks or "the compiled core was built without CUDA"
    if name == "auto":
        return torch.device("cpu" if lacks else "cuda")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and lacks:
        raise ValueError(f"device is {name}, expected cpu or auto where {lacks}")
    return device


def own_device(device: torch.device, ranks: Ranks | None) -> torch.device:
    """Return this process's own GPU, where many run on the GPUs of their machines.

    Raises
    ------
    ValueError
        Where there are too few.
    """
    if ranks is None or device.type == "cpu":
        return device
    gpus, number = torch.cuda.device_count(), local_rank()
    require("nproc-per-node", number + 1, number < gpus, f"at most {gpus}, the GPUs there are")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
