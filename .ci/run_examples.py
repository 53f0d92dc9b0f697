"""Run every script of examples/ and check that each leaves a picture and can be asked for help."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.image import imread

EXAMPLES = Path(__file__).parents[1] / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(script: Path, *arguments: str, launcher: list[str] | None = None) -> None:
    """Run a script in an empty directory, as its reader might."""
    command = [sys.executable, *(launcher or []), str(script), *arguments]
    with tempfile.TemporaryDirectory() as empty:
        subprocess.run(command, cwd=empty, check=True, timeout=300)


def main() -> None:
    """Run all examples."""
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) >= 5, scripts
    for script in scripts:
        print(f"--- {script.name}", flush=True)
        run(script, "--help")
        with tempfile.TemporaryDirectory() as out:
            launcher = TORCHRUN if script.name.startswith("torchrun") else None
            run(script, "--out", out, launcher=launcher)
            pictures = list(Path(out).glob("*.png"))
            assert pictures, f"{script.name} left no picture in its --out"
            for picture in pictures:
                assert imread(picture).std() > 0, f"{script.name}: {picture.name} is blank"
    print(f"{len(scripts)} examples ran")


if __name__ == "__main__":
    main()
