"""What the documentation keeps of the experiments: results, pictures, and why there is none.

In the directory of the documentation,

reproduction/<name>.json     the results, copied, so that the report can be checked
reproduction/not-run.json    why there is none of the others
images/reproduction/*.png    the pictures, smaller
"""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from deeprep.base import strict_json
from deeprep.base.paths import atomic_path
from deeprep.experiments import EXPERIMENTS, load_experiment
from deeprep.experiments.results import Result, load_result
from deeprep.plots.canvas import save

__all__ = [
    "collect",
    "forget_failure",
    "kept_pictures",
    "kept_reasons",
    "kept_result",
    "note_failure",
    "redraw",
]

_WIDEST = 1200  # pixels of a picture
_COLORS = 128
_NOT_RUN = "not-run.json"


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
    results, images = _directories(docs)
    for directory in (results, images):
        directory.mkdir(parents=True, exist_ok=True)
    reasons = kept_reasons(docs)
    collected = []
    for name in EXPERIMENTS:
        result, failure = out / name / "result.json", out / name / _NOT_RUN
        if result.is_file():
            load_result(result)
            with atomic_path(results / f"{name}.json") as temporary:
                shutil.copyfile(result, temporary)
            for old in kept_pictures(docs, name):
                old.unlink()
            for picture in sorted((out / name).glob("*.png")):
                suffix = "" if picture.stem == "figure" else f"--{picture.stem}"
                _shrink(picture, images / f"{name}{suffix}.png")
            collected.append(name)
        elif failure.is_file():
            reasons[name] = strict_json.read(failure)["reason"]
    kept = {name: reason for name, reason in reasons.items() if kept_result(docs, name) is None}
    strict_json.write(results / _NOT_RUN, kept, sort_keys=True)
    return collected


def redraw(docs: Path) -> list[str]:
    """Draw the figures and judge the verdicts anew, from the numbers that the documentation keeps.

    Nothing is computed: for code that has changed how it draws, judges or words what it computes.

    Returns
    -------
    The names of the experiments of which there is a result.
    """
    results, images = _directories(docs)
    redrawn = []
    for name in EXPERIMENTS:
        result = kept_result(docs, name)
        if result is None:
            continue
        experiment = load_experiment(name)
        renewed = replace(
            result,
            title=experiment.title,
            claim=experiment.claim,
            checks=experiment.check(result.numbers),
        )
        strict_json.write(results / f"{name}.json", asdict(renewed))
        with TemporaryDirectory() as scratch:
            picture = Path(scratch) / "figure.png"
            save(experiment.plot(result.numbers), picture)
            images.mkdir(parents=True, exist_ok=True)
            _shrink(picture, images / f"{name}.png")
        redrawn.append(name)
    return redrawn


def _directories(docs: Path) -> tuple[Path, Path]:
    """Return where results and pictures are kept."""
    return docs / "reproduction", docs / "images" / "reproduction"


def kept_result(docs: Path, name: str) -> Result | None:
    """Return the result of an experiment that the documentation keeps, if there is one."""
    path = _directories(docs)[0] / f"{name}.json"
    return load_result(path) if path.is_file() else None


def kept_reasons(docs: Path) -> dict[str, str]:
    """Return why experiments could not be run, by name."""
    path = _directories(docs)[0] / _NOT_RUN
    reasons: dict[str, str] = strict_json.read(path) if path.is_file() else {}
    return {name: reason for name, reason in reasons.items() if name in EXPERIMENTS}


def kept_pictures(docs: Path, name: str) -> list[Path]:
    """Return the pictures of an experiment in the documentation, its main figure first."""
    _, images = _directories(docs)
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


def _without_paths(text: str) -> str:
    """Cut absolute paths, which mean nothing elsewhere, to their last part.

    >>> _without_paths("no file /data/user/reviews.csv: give --data")
    'no file reviews.csv: give --data'
    """
    return re.sub(r"(?<![\w.:/])(?:/[\w.+~-]+)+/?", lambda match: Path(match[0]).name, text)
