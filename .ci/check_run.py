"""Check that a run directory holds everything it should and that every file parses."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import torch
from matplotlib.image import imread


def refuse(constant: str) -> None:
    """Reject NaN and Infinity, which Python would read and JSON does not have."""
    raise ValueError(f"{constant} is not strict JSON")


def main(run: Path) -> None:
    """Check one run directory."""
    config = json.loads((run / "config.json").read_text(), parse_constant=refuse)
    assert {"settings", "environment"} <= config.keys(), config.keys()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    measurements = [json.loads(line, parse_constant=refuse) for line in lines]
    epochs = [each["epoch"] for each in measurements]
    assert epochs[0] == 0, epochs
    assert epochs == sorted(set(epochs)), epochs
    with (run / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["name"] == "input", rows[0]
    assert all(float(row["compression"]) > 0 for row in rows), rows
    for figure in ("compression", "discrimination", "evolution"):
        assert imread(run / f"{figure}.png").size > 0
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == epochs[-1], checkpoint["epoch"]
    print(f"{run}: {len(rows)} layers, {len(measurements)} measurements, every file parses")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
