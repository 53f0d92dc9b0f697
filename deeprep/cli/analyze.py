"""`deeprep analyze`: every layer of a model, or of every checkpoint of its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import torch
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from deeprep.base import strict_json
from deeprep.base.console import print_error
from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import OtherRankError, joined, together
from deeprep.base.validate import check_positive, require
from deeprep.cli.analysis import Analysis, check_directory, checkpoint_names
from deeprep.cli.foreign import importable_here
from deeprep.cli.measuring import Measuring, as_test_data
from deeprep.cli.next_tokens import NextTokens
from deeprep.cli.ranks import PATIENCE, is_first, share_threads, warnings_of_first
from deeprep.cli.shared import ERRORS, Json, Result
from deeprep.data import (
    ByteTokenizer,
    Data,
    DatasetName,
    DataSettings,
    TextData,
    load_configured_data,
    load_documents,
    load_text,
)
from deeprep.data.documents import DOCUMENT_SUFFIXES
from deeprep.data.text import TEXT_SUFFIXES
from deeprep.models import build_model
from deeprep.models.load import load_model
from deeprep.models.loaded import LoadedModel
from deeprep.models.weights import weight_files
from deeprep.probe import LayerProbe
from deeprep.report.full_metrics import OF_FULL
from deeprep.report.layer_metrics import Metrics, choose_metrics
from deeprep.run.device import choose_device, own_device

if TYPE_CHECKING:
    from deeprep.run.record import RunDirectory

__all__ = ["ABOUT", "DETAILS", "Analyze"]

ABOUT = """Run a model over labelled data and print compression C_l, discrimination D_l and more for
each of its layers, in one pass."""

DETAILS = """MODEL is one of:
  resnet18                     a classifier of torchvision
  timm:vit_tiny_patch16_224    a model of timm (pip install timm)
  hf:FOLDER                    a Hugging Face model and tokenizer in a local folder
                               (pip install transformers); a head is left out
  package.module:factory       a function or class of your own that returns a torch module, found
                               from the current directory; called with num_classes=K if it takes it
  RUN_DIR                      a directory of `python -m deeprep.run`: shows what the run measured

No model is downloaded: weights are those in the Hugging Face folder, those of --weights, or random.
Each file that --weights matches is measured in turn, which shows how the layers evolve in training.

DATA is digits, mnist, fashion-mnist, cifar10, cifar100, orthogonal, image-folder, or a text file:
.tsv, .csv or .jsonl of labels and sentences (columns or keys `label` and `text`). Images are
standardised and fitted to the model: grey becomes RGB, small ones are enlarged, timm and Hugging
Face models get their input size; your own model gets them as they are. Sentences go through the
tokenizer of the Hugging Face folder; your own model is called as
model(input_ids=..., attention_mask=...) with the tokenizer that its factory returns beside it, or
with bytes: id = byte + 1, padded with 0.

With --labels next-token a causal language model is measured on running text: a .txt file, or the
texts of one of the others. It is cut into blocks of --max-length tokens, and every position is a
sample whose class is the token after it.

Started by torchrun, every process loads the data, measures its share of the samples, on a GPU of
its own where there are any, and the first one prints and writes what all have found.

Examples:
  deeprep analyze resnet18 --data cifar10 --weights resnet18.pth --out resnet18-cifar10
  deeprep analyze timm:vit_tiny_patch16_224 --data digits --samples-per-class 20
  deeprep analyze hf:path/to/bert --data reviews.tsv --test-data others.tsv --full
  deeprep analyze hf:path/to/gpt2 --data book.txt --labels next-token --most-frequent 1000
  deeprep analyze mynets:small_cnn --data fashion-mnist --weights 'checkpoints/epoch-*.pt'
  deeprep analyze runs/mlp-digits-seed0
  deeprep analyze runs/mlp-digits-seed0 --layers layer1 --layers layer7 --full --accuracy
  torchrun --nproc-per-node=4 -m deeprep analyze resnet18 --data image-folder --data-dir photos"""

_BATCH_SIZE = 128
_AS_IN_A_RUN = "(default: {}; for a run directory, as in the run)"
_Flag = Annotated[bool, FlagCreatePairsOff]
_OF_ACCURACY = ("probe_accuracy", "ncc_accuracy", "directional_cdnv")
_DATA_FLAGS = ("download", "classes", "samples_per_class", "normalize", "image_size")


@dataclass(frozen=True)
class Analyze:
    """The command line of `deeprep analyze`."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """What to measure; see below."""
    data: Annotated[str | None, arg(metavar="DATA", help_behavior_hint="")] = None
    """Labelled data; see below. A run directory has its own."""
    test_data: Annotated[str | None, arg(metavar="DATA", help_behavior_hint="")] = None
    """Other data with the same classes, all of them, for test accuracies and all metrics beside
    those of --data, whose means and probes they are scored by: a data set, a text file, or a folder
    with one folder of images per class."""
    weights: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="FILE...")] = ()
    """State dicts (.pt, .pth, .safetensors; also under "model" or "state_dict", or saved by DDP or
    torch.compile), or globs of them, in natural order; of a Hugging Face model also its folders.
    Several make a series of checkpoints."""
    remeasure: _Flag = False
    """Measure checkpoint.pt of a run directory again, as any other flag about measuring does."""

    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Where the files of a data set are; searched before the standard places."""
    download: bool = True
    """Download a data set that is not on disk."""
    classes: Annotated[
        tuple[int, ...] | None, arg(metavar="K|LABEL...", help_behavior_hint="(default: all)")
    ] = None
    """One number n: the first n classes. Several: these, renumbered from 0."""
    samples_per_class: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: all)")
    ] = None
    """Samples of each class, drawn by --seed."""
    normalize: bool = True
    """Standardise each channel of images, by the data set's mean and deviation."""
    image_size: int = 64
    """Height and width in pixels to which the images of an image-folder are resized."""
    max_length: Annotated[
        int | None,
        arg(metavar="TOKENS", help_behavior_hint="(default: what the model takes, 512 at most)"),
    ] = None
    """Cut sentences off after so many tokens, or running text into blocks of so many."""
    labels: Annotated[
        Literal["next-token"] | None,
        arg(metavar="next-token", help_behavior_hint="(default: those of the data)"),
    ] = None
    """Take as label of every position of a causal language model the token after it."""
    most_frequent: Annotated[
        int | None, arg(metavar="K", help_behavior_hint="(default: the whole vocabulary)")
    ] = None
    """With --labels next-token: only so many tokens are a class, the most frequent ones."""

    layers: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(
            metavar="NAME|GLOB",
            help_behavior_hint="(default: the blocks of a deep model, else its layers; repeatable)",
        ),
    ] = ()
    """Modules to measure, such as network.layer4.1; in a glob * matches dots too."""
    reduce: Annotated[
        Literal["flatten", "mean", "cls", "last", "tokens"] | None,
        arg(metavar="flatten|mean|cls|last|tokens", help_behavior_hint=_AS_IN_A_RUN.format("mean")),
    ] = None
    """One row a sample from an output with positions: all of its values, their mean over space or
    over the tokens that are no padding, the first or the last token; or a row a token. Outputs
    (N, d) are taken as they are."""
    full: _Flag = False
    """Also NC1, VCI, ranks and others, which need d x d sums; for layers of up to 2048 features."""
    accuracy: _Flag = False
    """Also the training accuracy of the nearest class mean and, with --full, of the least-squares
    probe, and the directional CDNV, by one more pass."""
    weighting: Annotated[
        Literal["uniform", "prior"] | None,
        arg(metavar="uniform|prior", help_behavior_hint=_AS_IN_A_RUN.format("uniform")),
    ] = None
    """Weights of the classes in Sigma_B: 1/K, or n_k/N."""
    corrected: _Flag = False
    """Correct Tr Sigma_B for few samples a class."""
    jackknife: _Flag = False
    """Also standard errors, by a jackknife over the classes."""
    min_count: Annotated[int, arg(metavar="N")] = 1
    """Leave out classes with fewer samples."""
    metrics: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(metavar="NAME...", help_behavior_hint="(default: all that take seconds; repeatable)"),
    ] = ()
    """Metrics to have besides C_l and D_l: cdnv, equinorm, equiangularity, etf_error, gnc2 and,
    with --full, nc1, separation_fuzziness, h_score, vci, lidar, participation_ratio, alpha_req,
    numerical_rank, effective_rank, stable_rank, rankme."""

    batch_size: int = _BATCH_SIZE
    """Samples that the model is given at once."""
    device: Annotated[str, arg(metavar="auto|cpu|cuda|cuda:N")] = "auto"
    """Where the model runs; auto: the GPU if there is one and deeprep was built with CUDA."""
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16"] | None,
        arg(metavar="float32|float64|bfloat16", help_behavior_hint=_AS_IN_A_RUN.format("float32")),
    ] = None
    """Type of weights and data; bfloat16 is autocast, with float32 weights."""
    seed: int = 0
    """Fixes random weights and the samples that are drawn."""
    json: Json = False
    """Print JSON instead of tables."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Write tables, figures and JSON here."""
    save_states: _Flag = False
    """Also write the sums of every layer to --out, for `deeprep show` and `deeprep merge`."""

    def run(self) -> Result | None:
        """Measure, or show what a run has measured; None but on rank 0."""
        with joined(PATIENCE) as ranks:
            run = together(ranks, lambda: self._checked(first=is_first(ranks)))
            if run is not None and not self._asks_for_a_measurement():
                return together(ranks, lambda: self._show(run) if is_first(ranks) else None)
            share_threads(ranks)
            with importable_here(), warnings_of_first(ranks):
                return self._measure_all(run, ranks)

    def _checked(self, *, first: bool) -> RunDirectory | None:
        """Check the flags, and return the run directory if it is one."""
        if first:  # which alone writes
            check_directory(self.out)
        check_positive("batch_size", self.batch_size)
        check_positive("min_count", self.min_count)
        require("seed", self.seed, -(2**63) <= self.seed < 2**64, "-2^63 <= seed < 2^64")
        if self.max_length is not None:
            check_positive("max_length", self.max_length)
        self._check_labels()
        choose_metrics(self._metrics(), full=self.full)
        if self.save_states and self.out is None:
            raise ValueError("save_states needs out, a directory to write to")
        return _open_run(self.model)

    def _check_labels(self) -> None:
        if self.labels is None:
            if self.most_frequent is not None:
                raise ValueError("most_frequent needs labels next-token, whose classes are tokens")
            return
        if self.most_frequent is not None:
            check_positive("most_frequent", self.most_frequent)
        require("reduce", self.reduce, self.reduce in (None, "tokens"), "tokens for next-token")
        given = [n for n in _DATA_FLAGS if getattr(self, n) != getattr(type(self), n)]
        if given:
            raise ValueError(f"{given[0]} is for labelled data, expected none with next-token")
        wanted = f"a {', '.join(DOCUMENT_SUFFIXES)} file for next-token"
        suffix = Path(self.data or "").suffix.lower()
        require("data", self.data, suffix in DOCUMENT_SUFFIXES, wanted)

    def _metrics(self) -> Metrics:
        return [name for names in self.metrics for name in names] or "auto"

    def _metrics_asked_for(self) -> list[str]:
        """Return the metrics that flags name, or stand for."""
        return [
            *(name for names in self.metrics for name in names),
            *(OF_FULL if self.full else ()),
            *(_OF_ACCURACY if self.accuracy else ()),
        ]

    def _asks_for_a_measurement(self) -> bool:
        """Whether any flag was given but those that say how to show what there is."""
        shows = ("model", "json", "out")
        return any(getattr(self, f.name) != f.default for f in fields(self) if f.name not in shows)

    def _show(self, run: RunDirectory) -> Result:
        """Return what a run measured while it trained."""
        if not run.measurements:
            raise ValueError(f"model {run.path} holds no measurements yet")
        data = run.settings().data.dataset
        analysis = Analysis(
            {"model": str(run.path), "data": data},
            f"{run.path} on {data}, as measured while it trained; --remeasure measures it anew",
            is_series=True,
            directory=self.out,
        )
        for measured in run.measurements:
            analysis.add(f"epoch-{measured.epoch}", measured.report)
        return analysis.finish()

    def _measure_all(self, run: RunDirectory | None, ranks: Ranks | None) -> Result | None:
        torch.manual_seed(self.seed)
        device = together(ranks, lambda: own_device(choose_device(self.device), ranks))
        # The values of one flag may come from a shell, in its order; the flags are in the user's.
        files = together(
            ranks, lambda: [f for sources in self.weights for f in weight_files(sources)]
        )
        files = list(dict.fromkeys(files))
        samples, model = together(ranks, lambda: self._load(run), in_turn=True)
        test_samples = together(ranks, lambda: self._test_samples(samples), in_turn=True)
        how = self._how(run)
        # First of all, for weights are rounded to the type of those that they replace.
        model.module.to(device, torch.float64 if how["dtype"] == "float64" else torch.float32)
        is_series = len(files) > 1
        if run is not None and not files:
            files = [run.path / "checkpoint.pt"]
        weights = [str(file) for file in files] or [model.weights]
        about = {
            "model": self.model,
            "weights": weights,
            "data": samples.name,
            **({} if test_samples is None else {"test_data": self.test_data}),
            "device": str(device),
            "seed": self.seed,
            **how,
        }
        if self.labels is not None:
            about["labels"] = self.labels
        if ranks is not None:
            about["processes"] = ranks.size
        told = f"{len(files)} checkpoints" if is_series else f"weights: {weights[0]}"
        if weights == ["random"]:
            told += f" (seed {self.seed})"
        tested = "" if test_samples is None else f", tested on {_describe(test_samples)}"
        title = f"{self.model} on {_describe(samples)}{tested}, {device}, {told}"
        if ranks is not None:
            title += f", {ranks.size} processes"
        analysis = Analysis(about, title, is_series, self.out, self._metrics_asked_for())
        measuring = Measuring(
            device=device,
            dtype=how["dtype"],
            layers=self.layers,
            reduce=how["reduce"],
            full=self.full,
            accuracy=self.accuracy,
            batch_size=self.batch_size,
            max_length=self.max_length,
            ranks=ranks,
        )

        def measure(file: Path | None, name: str, what: str = "") -> None:
            if file is not None:
                together(ranks, lambda: model.load_weights(file))
            probe = measuring.probe(model, samples, what, test_samples)
            together(
                ranks,
                lambda: self._add(analysis, name, probe, samples, how) if is_first(ranks) else None,
            )

        if not files:
            measure(None, model.weights)
        for number, (file, name) in enumerate(zip(files, checkpoint_names(files), strict=True)):
            what = f"{name}, {number + 1} of {len(files)}" if is_series else ""
            try:
                measure(file, name, what)
            except OtherRankError:
                if not is_series:
                    raise
                analysis.failed = True
            except ERRORS as error:
                if not is_series:
                    raise
                print_error(error if str(file) in str(error) else f"weights {file}: {error}")
                analysis.failed = True
        return together(ranks, lambda: analysis.finish() if is_first(ranks) else None)

    def _how(self, run: RunDirectory | None) -> dict[str, Any]:
        """Return the options that a run directory has its own defaults for."""
        reduce = "mean" if self.labels is None else "tokens"
        weighting, dtype = "uniform", "float32"
        if run is not None:
            settings = run.settings()
            reduce, weighting = settings.measurement.reduce, settings.measurement.weighting
            # Training with bf16 keeps its weights, and measures, in float32.
            dtype = "float64" if settings.optimization.dtype == "float64" else dtype
        return {
            "reduce": self.reduce or reduce,
            "weighting": self.weighting or weighting,
            "dtype": self.dtype or dtype,
        }

    def _load(self, run: RunDirectory | None) -> tuple[Data | TextData | NextTokens, LoadedModel]:
        if self.labels is not None:
            return self._load_tokens(run)
        if run is None:
            samples = self._samples()
            shape = samples.input_shape if isinstance(samples, Data) else None
            return samples, load_model(self.model, samples.num_classes, shape)
        settings = run.settings()
        if self.data is None:
            given = [n for n in _DATA_FLAGS if getattr(self, n) != getattr(type(self), n)]
            if given:
                raise ValueError(f"{given[0]} needs data: those of a run are taken as they were")
        own = load_configured_data(
            replace(settings.data, data_dir=self.data_dir or settings.data.data_dir),
            settings.run.seed,
        )
        module = build_model(settings.model, own.input_shape, own.num_classes)
        samples = own if self.data is None else self._samples()
        if isinstance(samples, TextData):
            raise ValueError(f"data is {self.data}, expected images or vectors for a run")
        return samples, LoadedModel(self.model, module, own.num_classes)

    def _load_tokens(self, run: RunDirectory | None) -> tuple[NextTokens, LoadedModel]:
        """Return the tokens of running text, and the model that has made them."""
        if run is not None:
            raise ValueError(f"model {run.path} is a run, expected a language model for next-token")
        documents = load_documents(Path(self.data or "").expanduser())
        # A factory of one's own that asks for a number of outputs gets that of bytes.
        model = load_model(self.model, ByteTokenizer.vocab_size)
        tokens = NextTokens.of(
            documents,
            model,
            most_frequent=self.most_frequent,
            batch_size=self.batch_size,
            max_length=self.max_length,
        )
        return tokens, model

    def _samples(self) -> Data | TextData:
        if self.data is None:
            wanted = f"{', '.join(get_args(DatasetName))}, or a text file"
            raise ValueError(f"data is left out, expected {wanted}")
        return self._load_samples("data", self.data, self.data_dir)

    def _test_samples(self, samples: Data | TextData | NextTokens) -> Data | TextData | None:
        """Return the test data, with the classes and the normalisation of the samples."""
        if self.test_data is None:
            return None
        if isinstance(samples, NextTokens):
            raise ValueError("test_data goes with labelled samples, expected none with next tokens")
        name, folder = self.test_data, self.data_dir
        if Path(name).expanduser().is_dir():
            name, folder = "image-folder", Path(name).expanduser()
        elif name in get_args(DatasetName) and name == self.data:
            raise ValueError(f"test_data is {name!r}, the data that are measured, expected others")
        whole = replace(self, classes=None, samples_per_class=None, normalize=False)
        found = whole._load_samples("test_data", name, folder)
        return as_test_data(found, samples, chosen=self.classes is not None)

    def _load_samples(self, flag: str, name: str, folder: Path | None) -> Data | TextData:
        if Path(name).suffix.lower() in TEXT_SUFFIXES:
            return load_text(
                Path(name).expanduser(),
                classes=self.classes,
                samples_per_class=self.samples_per_class,
                seed=self.seed,
            )
        if name not in get_args(DatasetName):
            wanted = f"{', '.join(get_args(DatasetName))}, or a {', '.join(TEXT_SUFFIXES)} file"
            raise ValueError(f"{flag} is {name!r}, expected {wanted}")
        settings = DataSettings(
            dataset=cast(DatasetName, name),
            data_dir=folder,
            download=self.download,
            classes=self.classes,
            samples_per_class=self.samples_per_class,
            normalize=self.normalize,
            image_size=self.image_size,
        )
        return load_configured_data(settings, self.seed)

    def _add(
        self,
        analysis: Analysis,
        name: str,
        probe: LayerProbe,
        samples: Data | TextData | NextTokens,
        how: dict[str, Any],
    ) -> None:
        """Report what a probe has measured."""
        names: Sequence[str] | None
        if isinstance(samples, NextTokens):
            names = samples.class_names(probe.num_classes)
        else:
            names = samples.class_names
        report = probe.report(
            weighting=how["weighting"],
            corrected=self.corrected,
            jackknife=self.jackknife,
            metrics=self._metrics(),
            class_names=names,
            min_count=self.min_count,
        )
        analysis.add(name, report, probe.scatters if self.save_states else {})


def _describe(samples: Data | TextData | NextTokens) -> str:
    if isinstance(samples, NextTokens):
        documents, blocks = samples.blocks.num_documents, len(samples.blocks.blocks)
        return f"{samples.name} (next tokens in {blocks} blocks of {documents} documents)"
    if isinstance(samples, TextData):
        what = f"{len(samples.sentences)} sentences"
    else:
        what = f"{len(samples.labels)} samples of shape {samples.input_shape}"
    return f"{samples.name} ({what} in {samples.num_classes} classes)"


def _open_run(name: str) -> RunDirectory | None:
    """Return the run directory of a name; None if it is no directory with a config.json."""
    path = Path(name).expanduser()
    if not (path / "config.json").is_file():
        return None
    config = strict_json.read(path / "config.json")
    if not isinstance(config, dict) or "settings" not in config:
        raise ValueError(f"model {name} is no run directory; if a Hugging Face folder, hf:{name}")
    from deeprep.run.record import RunDirectory  # matplotlib is slow to import

    return RunDirectory.open(path)
