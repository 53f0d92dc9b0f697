"""docs/speed.md and the README show the stored results, number for number."""

from pathlib import Path

import pytest

from benchmarks.tables import markdown
from deeprep.base import strict_json

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks/results").rglob("results.json"))


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_stored_tables_stand_in_the_page(path: Path) -> None:
    results = strict_json.read(path)
    page = (ROOT / "docs/speed.md").read_text()
    missing = [row for row in rows(markdown(results)) if row not in page]
    assert not missing
    assert f"`{results['command']}`" in page
    assert str(results["versions"]["commit"])[:12] in page


def test_readme_rows_are_rows_of_the_page() -> None:
    text, readme = (ROOT / "docs/speed.md").read_text(), (ROOT / "README.md").read_text()
    updates = text[text.index("## One update") : text.index("## A training batch")]
    page = {row.split(" | ")[0]: row for row in rows(updates)}
    chosen = [row for row in rows(readme[readme.index("## Speed") :]) if " x " in row][1:]
    assert len(chosen) == 4
    for row in chosen:
        first, *numbers = row.strip("| ").split(" | ")
        assert set(numbers) <= set(page[f"| {first}"].strip("| ").split(" | "))
