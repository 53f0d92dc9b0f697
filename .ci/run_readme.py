"""Run every ```python and ```sh block of Markdown files as it stands; `make test` has run before.

`python .ci/run_readme.py README.md docs/*.md`. Pages that a command writes, which say so in their
first lines, hold output and are skipped.

Python blocks run one process each in an empty directory, so a reader can paste any one of them; sh
blocks run in the root of the repository and remove what they leave there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WRITTEN = re.compile(r"^<!-- Written by .* Do not edit\. -->$", re.MULTILINE)


def run_block(language: str, code: str) -> None:
    """Run one block as its reader would after `source .venv/bin/activate`."""
    python = Path(sys.executable)
    if language == "python":
        with tempfile.TemporaryDirectory() as empty:
            subprocess.run([python, "-c", code], cwd=empty, check=True)
        return
    lines = [line for line in code.splitlines() if line.strip() != "make test"]
    script = f'set -e; export PATH="{python.parent}:$PATH"\n' + "\n".join(lines)
    subprocess.run(["bash", "-c", script], cwd=ROOT, check=True)


def main(paths: Sequence[Path]) -> None:
    """Run all blocks of all files, in order."""
    found = {}
    for path in paths:
        text = path.read_text()
        if not WRITTEN.search(text):
            found[path] = BLOCK.findall(text)
    if not any(found.values()):
        names = ", ".join(map(str, paths)) or "no file"
        raise SystemExit(f"{names}: no code block found, expected at least one")
    for path, blocks in found.items():
        for number, (language, code) in enumerate(blocks, start=1):
            print(f"--- {path}, block {number}, {language}\n{code}", flush=True)
            run_block(language, code)
    for path, blocks in found.items():
        print(f"{path}: {len(blocks)} blocks ran")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
