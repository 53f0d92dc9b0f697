"""Where an experiment computes, and what an interrupted one finds again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deeprep.base import strict_json

__all__ = ["Numbers", "Workspace"]

Numbers = dict[str, Any]
"""Plain data: what a computation gives, as JSON can hold it."""


class Workspace:
    """Where an experiment computes: its directory, and the parts that are finished already.

    Attributes
    ----------
    directory
        OUT/<name>, which exists.
    resume
        Whether to use what an earlier run left there.
    seconds
        Name of each part used -> seconds that its computation took, in this run or an earlier one.
    """

    def __init__(self, directory: Path, *, resume: bool, say: Callable[[str], None]) -> None:
        self.directory = directory
        self.resume = resume
        self.seconds: dict[str, float] = {}
        self._say = say
        (directory / "parts").mkdir(parents=True, exist_ok=True)

    def part(
        self, name: str, settings: Mapping[str, Any], compute: Callable[[], Numbers]
    ) -> Numbers:
        """Return the numbers of a part: what an earlier run found for the same settings, or anew.

        Parameters
        ----------
        name
            Of the part, fit for a file name; unique in the experiment.
        settings
            All that the numbers depend on, as plain data.
        compute
            Gives the numbers, as plain data.
        """
        path = self.directory / "parts" / f"{name}.json"
        wanted = strict_json.encode(dict(settings))
        if self.resume and path.is_file():
            kept = strict_json.read(path)
            if kept["settings"] == wanted:
                self._say(f"{name}: found")
                self.seconds[name] = kept["seconds"]
                return strict_json.decode(kept["numbers"])  # type: ignore[no-any-return]
        begin = time.perf_counter()
        numbers = compute()
        self.seconds[name] = time.perf_counter() - begin
        self._say(f"{name}: {self.seconds[name]:.1f} s")
        content = {"settings": wanted, "numbers": numbers, "seconds": self.seconds[name]}
        strict_json.write(path, content)
        # As an interrupted run would find them, so that resuming cannot change a digit.
        return strict_json.decode(strict_json.encode(numbers))  # type: ignore[no-any-return]
