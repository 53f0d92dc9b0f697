"""Files, probes and processes once each, small: every number is checked, none is a time.

`python -m benchmarks.run --sections files probes processes` measures them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import run


@pytest.mark.parametrize(
    ("section", "titles"),
    [
        ("files", ["Features on disk"]),
        ("probes", ["analyze over the bare forward"]),
        ("processes", ["split over gloo processes", "all_reduce of a state"]),
    ],
)
def test_section(
    quick: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    section: str,
    titles: list[str],
) -> None:
    if not quick:
        pytest.skip("takes part in --quick only")
    assert run.main(["--quick", "--sections", section, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert run.main(["--markdown", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(title in printed for title in titles)
    if section == "processes":  # exactness is no matter of size
        assert "miss" not in printed
