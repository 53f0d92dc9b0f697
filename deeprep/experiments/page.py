"""The text of docs/reproduction.md, from the results that the documentation keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deeprep.experiments import EXPERIMENTS, load_experiment
from deeprep.experiments.collection import kept_pictures, kept_reasons, kept_result
from deeprep.experiments.errata import ERRATA
from deeprep.experiments.experiment import Check, Options
from deeprep.experiments.results import Result

__all__ = ["render", "verdict_row"]

_COMMAND = "python -m deeprep.experiments"


def render(docs: Path) -> str:
    """Return the text of reproduction.md from the results that were collected in `docs`."""
    results = {name: kept_result(docs, name) for name in EXPERIMENTS}
    reasons = kept_reasons(docs)
    lines = [
        "# The paper, figure by figure",
        "",
        f"<!-- Written by `{_COMMAND} report` from the results in reproduction/. Do not edit. -->",
        "",
        "Wang, Li, Yaras, Zhu, Balzano, Hu, Qu, *Understanding Deep Representation Learning via "
        "Layerwise Feature Compression and Discrimination*, JMLR 26(220), 2025 "
        "([arXiv 2311.02960](https://arxiv.org/abs/2311.02960)).",
        "",
        "Every number here comes from a run whose settings, machine and command are given with it. "
        "A verdict compares the paper's value with ours by a tolerance that the experiment's "
        "module states; one that failed stays here as failed.",
        "",
        f"`{_COMMAND} all` runs all of it, `{_COMMAND} report` writes this page.",
        "",
        *_table(
            ("experiment", "what it shows", "size", "verdicts", "computing"),
            (_overview(name, result, reasons) for name, result in results.items()),
        ),
    ]
    for name, result in results.items():
        if result is not None:
            lines += ["", *_section(docs, name, result)]
    return "\n".join(lines) + "\n"


def _overview(name: str, result: Result | None, reasons: dict[str, str]) -> tuple[str, ...]:
    title = _escaped(load_experiment(name).title)
    if result is None:
        reason = reasons.get(name, f"nobody has run `{_COMMAND} {name}` for this page yet")
        return (name, title, f"not run: {_escaped(reason)}", "", "")
    passed = len(result.checks) - len(result.failed)
    failed = f", **{len(result.failed)} failed**" if result.failed else ""
    verdicts = f"{passed} of {len(result.checks)} passed{failed}"
    return (f"[{name}](#{name})", title, _size(result), verdicts, _duration(result.seconds))


def _size(result: Result) -> str:
    """Say which size was run: "full" is the paper's, where the paper has one."""
    experiment = load_experiment(result.name)
    sizes = [experiment.settings(Options(full=full)) for full in (False, True)]
    return "full" if result.full or sizes[0] == sizes[1] else "reduced"


def _section(docs: Path, name: str, result: Result) -> Iterator[str]:
    """Lines of an experiment: claim, pictures, verdicts, what differs, settings, machine."""
    yield from (f'<a id="{name}"></a>', "", f"## {name}: {_escaped(result.title)}", "")
    yield from (_escaped(result.claim), "")
    for picture in kept_pictures(docs, name):
        yield from (f"![{name}]({picture.relative_to(docs).as_posix()})", "")
    header = ("quantity", "paper", "ours", "tolerance", "verdict")
    if name == "errata":
        header = ("quantity", "paper or released code", "ours", "tolerance", "verdict")
        for number, erratum in enumerate(ERRATA, start=1):
            yield f"{number}. **{_escaped(erratum.title)}.** {_escaped(erratum.text)}"
        yield ""
    yield from _table(header, (verdict_row(check) for check in result.checks))
    yield from _differences(result)
    yield from ("", "<details><summary>Settings</summary>", "")
    yield from _table(
        ("setting", "value", "source", "note"),
        (
            (
                _escaped(setting.name),
                _escaped(_plain(setting.value)),
                {"authors": "the authors'"}.get(setting.source, setting.source),
                _escaped(setting.note),
            )
            for setting in result.settings
        ),
    )
    yield from ("", "</details>", "", *_run(result))


def _differences(result: Result) -> Iterator[str]:
    """Lines on what differs from the paper: failed verdicts with their reasons, and the size."""
    notes = []
    for reason in dict.fromkeys(check.explanation for check in result.failed):
        same = [check.quantity for check in result.failed if check.explanation == reason]
        names = _escaped("; ".join(same))
        notes.append(f"- **failed**: {names}. {_escaped(_sentence(reason or 'not explained'))}")
    if unexpected := [check.quantity for check in result.surprises if check.passed]:
        notes.append(f"- **known to fail, and passed**: {_escaped('; '.join(unexpected))}.")
    if _size(result) == "reduced":
        command = f"`{_COMMAND} {result.name} --full`"
        notes.append(f"- The size is reduced, for the same claim; {command} runs the full one.")
    ours = [setting.name for setting in result.settings if setting.source == "ours"]
    if ours:
        notes.append(f"- Settings of our own choice: {_escaped('; '.join(ours))}.")
    notes += [f"- {_escaped(remark)}" for remark in load_experiment(result.name).remarks]
    if notes:
        yield from ("", "What differs, and why:", "", *notes)


def _run(result: Result) -> Iterator[str]:
    """Lines on how the result was computed."""
    environment = result.environment
    core: dict[str, Any] = environment["core"]
    device = environment["device"]
    machine = environment.get("processor", "CPU not recorded")
    if device != "cpu":
        machine = f"{device}, {machine}"
    versions = ", ".join(
        f"{name} {version}"
        for name, version in (
            ("deeprep", core["deeprep"]),
            ("torch", core["torch"]),
            ("numpy", environment["numpy"]),
            ("Python", environment["python"]),
        )
    )
    commit, _, dirty = (environment["commit"] or "unknown").partition("-")
    changed = " with changes" if dirty else ""
    yield from ("```", result.command, "```", "")
    yield (
        f"{result.seeds} {'seed' if result.seeds == 1 else 'seeds'}, "
        f"{_duration(result.seconds)} of computing on {_escaped(machine)}, "
        f"{core['num_threads']} threads, {environment['platform']}; {versions}; "
        f"commit {commit[:12]}{changed}."
    )


def verdict_row(check: Check) -> tuple[str, ...]:
    """A verdict as the cells of a table."""
    verdict = check.verdict if check.verdict == "passed" else f"**{check.verdict}**"
    cells = (check.quantity, _plain(check.paper), _plain(check.ours), check.tolerance)
    return (*map(_escaped, cells), verdict)


def _table(header: Sequence[str], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)


def _escaped(text: str) -> str:
    r"""Text that Markdown shows as it is; `code` stays code.

    >>> print(_escaped("|W_l|_F of C_1"))
    \|W_l\|\_F of C_1
    """
    # An underscore inside a word means nothing to Markdown.
    special = r"([\\|*<>\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))"
    return re.sub(special, r"\\\1", " ".join(text.split()))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> _duration(7.4), _duration(125.0), _duration(7500.0)
    ('7 s', '2 min 5 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else "below 1 s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
