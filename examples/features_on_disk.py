"""Features on disk: two machines read the shards they have; their states make one report.

python examples/features_on_disk.py
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import deeprep

MACHINES, LAYERS = ("machine-a", "machine-b"), ("layer1", "layer2", "layer3", "layer4")
SHARDS, ROWS, WIDTH, CLASSES = 3, 1000, 64, 10


def write_shards(folder: Path, seed: int) -> None:
    """Write what a machine has: features of each layer and labels, in several files."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(0).standard_normal((CLASSES, WIDTH))
    for shard in range(SHARDS):
        labels = rng.integers(0, CLASSES, ROWS)
        for depth, layer in enumerate(LAYERS):
            noise = 0.5**depth * rng.standard_normal((ROWS, WIDTH))
            (folder / layer).mkdir(parents=True, exist_ok=True)
            np.save(folder / layer / f"{shard}.npy", (means[labels] + noise).astype(np.float32))
        (folder / "labels").mkdir(exist_ok=True)
        np.save(folder / "labels" / f"{shard}.npy", labels)


def main() -> None:
    """Write shards, read each once, merge, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    reports, whole = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for seed, machine in enumerate(MACHINES, start=1):
            folder = Path(temporary, machine)
            write_shards(folder, seed)
            # On that machine; `deeprep stats` does the same from the command line.
            for layer in LAYERS:
                state = deeprep.class_scatter_of_files(folder / layer, folder / "labels", CLASSES)
                state.save(folder / f"{layer}.safetensors")
            # Anywhere, later: a state is K x d numbers, whatever it has read.
            states = {n: deeprep.ClassScatter.load(folder / f"{n}.safetensors") for n in LAYERS}
            reports[machine] = deeprep.LayerReport.from_scatters(states)
            for layer, state in states.items():
                whole.setdefault(layer, deeprep.ClassScatter(CLASSES, WIDTH)).merge(state)
    reports["both"] = deeprep.LayerReport.from_scatters(whole)
    print(reports["both"])
    options.out.mkdir(parents=True, exist_ok=True)
    deeprep.plots.compare(reports, options.out / "features_on_disk.png")
    print(f"figure: {options.out / 'features_on_disk.png'}")


if __name__ == "__main__":
    main()
