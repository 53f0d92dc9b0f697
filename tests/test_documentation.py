"""The documentation: links lead somewhere, every metric has a section, rooms are where it says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from deeprep import metrics

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "csrc").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Headings as GitHub links to them, and explicit anchors."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {*slugs, *re.findall(r'<a id="([^"]+)">', text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_resolve(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link} in {page.relative_to(ROOT)} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_every_metric_has_its_section() -> None:
    sections = re.findall(r"^### (\w+)\(", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    assert len(sections) == len(set(sections))
    functions = {name for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))}
    assert functions <= set(sections)


def test_the_floors_are_those_of_the_import_contract() -> None:
    settings, page = (ROOT / "pyproject.toml").read_text(), (ROOT / "docs/house.md").read_text()
    contract = re.search(r"^layers = \[\n(.*?)^\]", settings, re.MULTILINE | re.DOTALL)
    assert contract is not None
    floors = [line.split(" : ") for line in re.findall(r'"(.*)"', contract[1])]
    told: dict[int, list[str]] = {}
    for floor, room in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE):
        told.setdefault(int(floor), []).append(room)
    assert list(told) == sorted(told, reverse=True)
    assert [sorted(rooms) for rooms in told.values()] == [
        sorted(rooms) for rooms in floors if rooms != ["__main__"]
    ]


def test_paths_of_the_house_exist() -> None:
    text = (ROOT / "docs/house.md").read_text()
    paths = re.findall(r"`((?:deeprep|csrc|tests|docs|benchmarks|examples|\.ci)/[\w./]*)`", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert len(paths) > 10
    assert not missing
