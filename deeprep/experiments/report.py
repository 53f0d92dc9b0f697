"""The report in docs/reproduction.md, from the JSON of real runs: `... experiments report`.

It collects what `python -m deeprep.experiments` left behind and writes, in the directory of the
documentation,

reproduction.md              all of it: pictures, tables, settings, machines, errata
reproduction/<name>.json     the results that it is made of, copied, so that it can be checked
reproduction/not-run.json    why there is none of the others
images/reproduction/*.png    the pictures, smaller

With --check it writes nothing: it says whether reproduction.md is what those copies give, and
whether the verdicts in them are those of today's code.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import FlagCreatePairsOff

from deeprep.base import strict_json
from deeprep.base.console import print_error
from deeprep.base.paths import atomic_path, write_text
from deeprep.base.validate import require
from deeprep.experiments import EXPERIMENTS, load_experiment
from deeprep.experiments.errata import ERRATA
from deeprep.experiments.experiment import Check, Options
from deeprep.experiments.results import Result, load_result

__all__ = ["collect", "find_differences", "forget_failure", "main", "note_failure", "render"]

_COMMAND = "python -m deeprep.experiments"
_WIDEST = 1200  # pixels of a picture
_COLORS = 128
_NOT_RUN = "not-run.json"


@dataclass(frozen=True)
class _CommandLine:
    out: Path = Path("runs/experiments")
    """Where the results are; those that are not there are kept as they are in --docs."""
    docs: Path = Path("docs")
    """Directory of the documentation."""
    check: Annotated[bool, FlagCreatePairsOff] = False
    """Write nothing; exit with status 1 if the report is not what its results give."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 1 for an error or a difference."""
    about = "Write docs/reproduction.md from the results of real runs, or check it."
    command = tyro.cli(_CommandLine, prog=f"{_COMMAND} report", description=about, args=arguments)
    console = Console(highlight=False)
    try:
        found = command.docs.is_dir()
        require("docs", command.docs, found, "the directory of the documentation")
        if command.check:
            differences = find_differences(command.docs)
            for difference in differences:
                print_error(difference)
            return int(bool(differences))
        names = collect(command.out, command.docs)
        console.print(f"collected from {escape(str(command.out))}: {', '.join(names) or 'nothing'}")
        path = command.docs / "reproduction.md"
        write_text(path, render(command.docs))
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    console.print(f"written: {escape(str(path))}")
    return 0


def note_failure(out: Path, name: str, error: BaseException) -> None:
    """Leave the reason why an experiment could not be run, for the report."""
    (out / name).mkdir(parents=True, exist_ok=True)
    strict_json.write(out / name / _NOT_RUN, {"reason": _without_paths(str(error))})


def forget_failure(out: Path, name: str) -> None:
    """Forget that reason: the experiment has run."""
    (out / name / _NOT_RUN).unlink(missing_ok=True)


def collect(out: Path, docs: Path) -> list[str]:
    """Copy results and pictures from `out` into the documentation.

    Returns
    -------
    The names of the experiments of which there was a result.
    """
    results, images = docs / "reproduction", docs / "images" / "reproduction"
    for directory in (results, images):
        directory.mkdir(parents=True, exist_ok=True)
    reasons = _reasons(docs)
    collected = []
    for name in EXPERIMENTS:
        result, failure = out / name / "result.json", out / name / _NOT_RUN
        if result.is_file():
            load_result(result)
            with atomic_path(results / f"{name}.json") as temporary:
                shutil.copyfile(result, temporary)
            for old in _pictures(docs, name):
                old.unlink()
            for picture in sorted((out / name).glob("*.png")):
                suffix = "" if picture.stem == "figure" else f"--{picture.stem}"
                _shrink(picture, images / f"{name}{suffix}.png")
            collected.append(name)
        elif failure.is_file():
            reasons[name] = strict_json.read(failure)["reason"]
    kept = {name: reason for name, reason in reasons.items() if _result(docs, name) is None}
    strict_json.write(results / _NOT_RUN, kept, sort_keys=True)
    return collected


def find_differences(docs: Path) -> list[str]:
    """Say in which ways the report is not what its results give; nothing if it is.

    Raises
    ------
    ValueError
        A result that cannot be read.
    """
    differences = []
    path = docs / "reproduction.md"
    wanted = render(docs)
    found = path.read_text(encoding="utf-8") if path.is_file() else ""
    if found != wanted:
        lines = difflib.unified_diff(
            found.splitlines(), wanted.splitlines(), str(path), "its results", n=0, lineterm=""
        )
        first = "\n".join(list(lines)[:12])
        differences.append(f"{path} is not what its results give; run {_COMMAND} report\n{first}")
    for name in EXPERIMENTS:
        result = _result(docs, name)
        if result is None:
            continue
        today = load_experiment(name).check(result.numbers)
        if [_row(check) for check in today] != [_row(check) for check in result.checks]:
            differences.append(
                f"{name}: the verdicts of its result are not those of this code; run {_COMMAND} "
                f"{name} --resume, then report"
            )
        if not _pictures(docs, name):
            differences.append(f"{name}: there is no picture of it")
    return differences


def render(docs: Path) -> str:
    """Return the text of reproduction.md from the results that were collected in `docs`."""
    results = {name: _result(docs, name) for name in EXPERIMENTS}
    reasons = _reasons(docs)
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
    for picture in _pictures(docs, name):
        yield from (f"![{name}]({picture.relative_to(docs).as_posix()})", "")
    header = ("quantity", "paper", "ours", "tolerance", "verdict")
    if name == "errata":
        header = ("quantity", "paper or released code", "ours", "tolerance", "verdict")
        for number, erratum in enumerate(ERRATA, start=1):
            yield f"{number}. **{_escaped(erratum.title)}.** {_escaped(erratum.text)}"
        yield ""
    yield from _table(header, (_row(check) for check in result.checks))
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
        notes.append(f"- The size is reduced, the claim is the same; {command} has the full one.")
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


def _row(check: Check) -> tuple[str, ...]:
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


def _without_paths(text: str) -> str:
    """Cut absolute paths, which mean nothing elsewhere, to their last part.

    >>> _without_paths("no file /data/user/reviews.csv: give --data")
    'no file reviews.csv: give --data'
    """
    return re.sub(r"(?<![\w.:/])(?:/[\w.+~-]+)+/?", lambda match: Path(match[0]).name, text)


def _result(docs: Path, name: str) -> Result | None:
    path = docs / "reproduction" / f"{name}.json"
    return load_result(path) if path.is_file() else None


def _reasons(docs: Path) -> dict[str, str]:
    """Name of each experiment that could not be run -> why."""
    path = docs / "reproduction" / _NOT_RUN
    reasons: dict[str, str] = strict_json.read(path) if path.is_file() else {}
    return {name: reason for name, reason in reasons.items() if name in EXPERIMENTS}


def _pictures(docs: Path, name: str) -> list[Path]:
    """Pictures of an experiment in the documentation, its main figure first."""
    images = docs / "images" / "reproduction"
    main_figure = [path for path in [images / f"{name}.png"] if path.is_file()]
    return [*main_figure, *sorted(images.glob(f"{name}--*.png"))]


def _shrink(source: Path, target: Path) -> None:
    """Write a picture in fewer pixels and colours: a tenth of the bytes."""
    from PIL import Image

    with Image.open(source) as image:
        small = image.convert("RGB")
    small.thumbnail((_WIDEST, 4 * _WIDEST))
    with atomic_path(target) as temporary:
        small.quantize(_COLORS).save(temporary, optimize=True)
