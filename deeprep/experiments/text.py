"""Text: a sentence encoder trained to tell what a sentence is about.

The authors mention a text benchmark and released nothing of it: data, model and settings are ours.
The model is a bag of embedded words through six hidden layers; the data are a file of labelled
sentences, `--data FILE`. Without one they are the one-line descriptions of Debian packages, which
any Debian or Ubuntu has on disk: apt's lists give each package a section, such as games or sound.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from deeprep.base.paths import atomic_path
from deeprep.data import Batches, TextBatches, TextData, load_text
from deeprep.data.tokenizers import WordTokenizer
from deeprep.experiments.deep_linear import one_thread
from deeprep.experiments.experiment import Check, Experiment, Options, Setting, check_that
from deeprep.experiments.layer_panels import Curve, band_entry, layer_panels
from deeprep.experiments.workspace import Numbers, Workspace
from deeprep.models.sentence import SentenceEncoder
from deeprep.probe import analyze
from deeprep.run.settings import OptimizationSettings
from deeprep.run.train import evaluate, make_optimizer, train
from deeprep.theory import fit_line

DEPTH = 7  # weight matrices behind the mean of the words
WIDTH = 128
SAMPLES_PER_CLASS = {False: 250, True: None}  # at most, by --full
SEEDS = (5, 10)
MAX_WORDS = 256
LEAST_COUNT = 2  # words seen once identify a sentence: the network would learn it by heart
OPTIMIZATION = OptimizationSettings(
    loss="mse",
    alpha=1.0,
    optimizer="adam",
    lr=1e-3,
    weight_decay=0.0,
    schedule="cosine",
    final_lr_fraction=0.01,
    epochs=40,
    batch_size=64,
    stop_loss=0.0,
)

# Sections that are about a topic; most others say how a package was made ("python", "libs").
SECTIONS = ("fonts", "games", "graphics", "mail", "net", "science", "sound", "text")
LEAST_PER_SECTION = 100


def settings(options: Options) -> list[Setting]:
    """List every setting with its source."""
    data = options.data.name if options.data else "descriptions of Debian packages, by section"
    per_class = SAMPLES_PER_CLASS[options.full]
    return [
        Setting("data", data, "ours", "each sentence once, drawn by the seed"),
        Setting("samples per class, at most", per_class or "all", "ours"),
        Setting(
            "network",
            f"mean of embedded words, {DEPTH - 1} Linear + BatchNorm + ReLU, a classifier",
            "ours",
        ),
        Setting("words", f"those seen {LEAST_COUNT} times or more; all others are one", "ours"),
        Setting("width, of the embedding too", WIDTH, "ours"),
        Setting("initialisation", "PyTorch's default", "ours"),
        Setting("loss", "MSE on one-hot targets", "ours", "as in the paper's other figures"),
        Setting("Adam, lr, cosine to", "0.001, 1e-05", "ours"),
        Setting("epochs, batch", f"{OPTIMIZATION.epochs}, {OPTIMIZATION.batch_size}", "ours"),
        Setting("seeds", EXPERIMENT.num_seeds(options), "ours"),
    ]


def compute(options: Options, workspace: Workspace) -> Numbers:
    """Train and measure; a part for each seed."""
    file = options.data or _package_descriptions(workspace.directory / "debian-packages.tsv")
    text = load_text(file)
    per_class = SAMPLES_PER_CLASS[options.full]
    run = {
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "samples_per_class": per_class,
        "depth": DEPTH,
        "width": WIDTH,
        "least_count": LEAST_COUNT,
        **asdict(OPTIMIZATION),
    }
    parts = [
        workspace.part(
            f"seed-{seed}",
            {**run, "seed": seed},
            partial(_train, text, per_class, seed, options.device),
        )
        for seed in range(EXPERIMENT.num_seeds(options))
    ]
    curves = {name: [part[name] for part in parts] for name in parts[0]}
    return {"data": text.name, "class_names": list(text.class_names), **curves}


def _package_descriptions(path: Path) -> Path:
    """Write sections and descriptions of Debian's packages, as apt has them, to a .tsv file.

    Raises
    ------
    FileNotFoundError
        There is no apt, or it has no lists.
    """
    section_of: dict[str, str] = {}
    if shutil.which("apt-cache"):
        command = ["apt-cache", "dumpavail"]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}  # English descriptions
        printed = subprocess.run(command, capture_output=True, env=environment, check=False).stdout
        for package in printed.decode("utf-8", "replace").split("\n\n"):
            # A line that starts with a space goes on with the field before it.
            lines = [line for line in package.splitlines() if not line.startswith(" ")]
            fields = dict(line.split(": ", 1) for line in lines if ": " in line)
            section = fields.get("Section", "").rpartition("/")[2]  # Ubuntu: "universe/games"
            description = fields.get("Description") or fields.get("Description-en")
            if section in SECTIONS and description:
                section_of.setdefault(description.strip(), section)
    counts = Counter(section_of.values())
    if min(counts[section] for section in SECTIONS) < LEAST_PER_SECTION:
        raise FileNotFoundError(
            "no sentences: give --data FILE, a .tsv, .csv or .jsonl file with a label and a "
            "sentence a line; on Debian and Ubuntu `apt-get update` fetches some"
        )
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write("label\tsentence\r\n")
        for description, section in section_of.items():
            sentence = description.replace("\t", " ")
            file.write(f"{section}\t{sentence}\r\n")
    return path


def _at_most(text: TextData, per_class: int | None, seed: int) -> TextData:
    """Draw so many sentences of each class, or all of a class that has no more."""
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for label in range(text.num_classes):
        rows = (text.labels == label).nonzero().flatten()
        kept.append(rows[torch.randperm(len(rows), generator=generator)[:per_class]])
    rows = torch.cat(kept).sort().values
    sentences = [text.sentences[row] for row in rows.tolist()]
    return TextData(sentences, text.labels[rows], text.class_names, text.name)


@one_thread()
def _train(text: TextData, per_class: int | None, seed: int, device: torch.device) -> Numbers:
    """C_l and D_l after training from a seed; l = 0 is the mean of the embedded words."""
    drawn = _at_most(text, per_class, seed)
    tokenizer = WordTokenizer(drawn.sentences, LEAST_COUNT)
    torch.manual_seed(seed)
    model = SentenceEncoder(tokenizer.vocab_size, text.num_classes, depth=DEPTH, width=WIDTH)
    model.to(device)
    tokens = tokenizer(list(drawn.sentences), max_length=MAX_WORDS)["input_ids"].to(device)
    batches = Batches(tokens, drawn.labels.to(device), OPTIMIZATION.batch_size or 0)
    for _ in train(model, make_optimizer(model, OPTIMIZATION), batches, OPTIMIZATION, seed=seed):
        pass
    loss, accuracy = evaluate(model, batches, OPTIMIZATION)
    report = analyze(
        model,
        TextBatches(drawn, tokenizer, 500, MAX_WORDS),
        text.num_classes,
        layers=model.probe_layers,
        reduce="mean",  # of the words; all other outputs are one row a sentence already
    )
    return {
        "samples": len(drawn.sentences),
        "words": tokenizer.vocab_size - 2,
        "loss": loss,
        "accuracy": accuracy,
        "compression": [layer.compression for layer in report.layers],
        "discrimination": [layer.discrimination for layer in report.layers],
    }


def check(numbers: Numbers) -> list[Check]:
    """Judge that it is trained, that C_l falls geometrically, and that D_l rises."""
    accuracy = min(numbers["accuracy"])
    explanation = "C_l and D_l are those of a trained network only if it fits its training data"
    checks = [
        check_that(
            "training accuracy, least of all runs",
            accuracy >= 0.99,
            "about 1",
            accuracy,
            "at least 0.99",
            explanation,
        )
    ]
    logs = np.log(numbers["compression"]).mean(0)
    apart = np.array(numbers["discrimination"]).mean(0)
    for quantity, steps in (
        ("layers l = 1 .. 6 at which C_l falls", -np.diff(logs)),
        ("layers l = 2 .. 6 at which D_l rises", np.diff(apart[1:])),
    ):
        found = int((steps > 0).sum())
        checks.append(check_that(quantity, found == len(steps), "every one", found, "every one"))
    layers = range(1, DEPTH)
    fit = fit_line(layers, logs[1:].tolist())
    quantity = "R^2 of a geometric fit to C_l, l >= 1"
    checks.append(
        check_that(quantity, fit.r_squared >= 0.9, "near 1", fit.r_squared, "at least 0.9")
    )
    factor = float(np.exp(fit.slope))
    checks.append(check_that("factor of C_l a layer", factor < 1, "below 1", factor, "below 1"))
    line = fit_line(layers, apart[1:].tolist())
    quantity = "R^2 of a linear fit to D_l, l >= 1"
    explanation = (
        "that D_l rises linearly is the theorem of linear layers; between ReLUs it may rise faster "
        "and faster"
    )
    checks.append(
        check_that(
            quantity, line.r_squared >= 0.9, "near 1", line.r_squared, "at least 0.9", explanation
        )
    )
    return checks


def plot(numbers: Numbers) -> Figure:
    """C_l and D_l, with the geometric fit to C_l."""
    curve = Curve("sentences", numbers["compression"], numbers["discrimination"])
    num_classes = len(numbers["class_names"])
    title = f"A sentence encoder on {numbers['data']}, {num_classes} classes"
    figure = layer_panels(title, [curve])
    left = figure.axes[0]
    layers = np.arange(1, DEPTH)
    fit = fit_line(layers.tolist(), np.log(numbers["compression"]).mean(0)[1:].tolist())
    fitted = np.exp(fit.intercept + fit.slope * layers)
    left.plot(layers, fitted, "--", color="0.3", linewidth=1, label="geometric fit")
    handles, _ = left.get_legend_handles_labels()
    handles += band_entry(len(curve.compression))
    left.legend(handles=handles, frameon=False, fontsize="small")
    return figure


EXPERIMENT = Experiment(
    name="text",
    title="sentences",
    claim=(
        "In a network trained on sentences, too, C_l falls from one layer to the next by about "
        "one factor, and D_l rises."
    ),
    seeds=SEEDS,
    settings=settings,
    compute=compute,
    check=check,
    plot=plot,
    takes_data=True,
    remarks=(
        "Batch size and the least count of a word were changed after results were seen: with the "
        "first ones the line of D_l had an R^2 of 0.862.",
    ),
)
