"""Run every ```python and ```sh block of a Markdown file as it stands; `make test` has run before.

Python blocks run one process each in an empty directory, so a reader can paste any one of them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main(path: Path) -> None:
    """Run all blocks of one file, in order."""
    blocks = BLOCK.findall(path.read_text())
    if not blocks:
        raise SystemExit(f"{path}: no code block found, expected at least one")
    # What a reader would have on the PATH after `source .venv/bin/activate`.
    root, python = path.resolve().parent, Path(sys.executable)
    for language, code in blocks:
        print(f"--- {language}\n{code}", flush=True)
        with tempfile.TemporaryDirectory() as empty:
            if language == "python":
                subprocess.run([python, "-c", code], cwd=empty, check=True)
            else:
                lines = [line for line in code.splitlines() if line.strip() != "make test"]
                script = f'set -e; export PATH="{python.parent}:$PATH"\n' + "\n".join(lines)
                subprocess.run(["bash", "-c", script], cwd=root, check=True)
    print(f"{path}: {len(blocks)} blocks ran")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
