"""Several processes: each measures its share of the data, and all end with the report of the whole.

torchrun --nproc-per-node 2 examples/torchrun_two_processes.py
"""

import argparse
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import distributed, nn

import deeprep


def main() -> None:
    """Measure one's share, merge, draw on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it by: torchrun --nproc-per-node 2 " + __file__)
    distributed.init_process_group("gloo")  # "nccl" on GPUs
    rank, size = distributed.get_rank(), distributed.get_world_size()

    digits = load_digits()
    images = torch.tensor(digits.data[rank::size] / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target[rank::size])
    batches = list(zip(images.split(128), labels.split(128), strict=True))

    torch.manual_seed(0)  # the same weights in every process; yours are loaded or trained
    model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)])
    report = deeprep.analyze(model, batches, num_classes=10, all_reduce=True)
    print(f"rank {rank} of {size}: {len(labels)} samples here, {report.num_samples} in the report")
    if rank == 0:
        print(report)
        options.out.mkdir(parents=True, exist_ok=True)
        report.plot(options.out / "torchrun_two_processes.png")
        print(f"figure: {options.out / 'torchrun_two_processes.png'}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
