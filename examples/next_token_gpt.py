"""A small GPT: how far its layers have turned the token they read into the one that follows.

Trained for half a minute on the documentation and the licence that every Python brings along.
"Linguistic collapse" (Wu & Papyan, arXiv 2405.17767) is what its last layers then begin to show:
positions with the same next token gather around that token's mean.
"""

import argparse
import builtins
import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

import deeprep

# Modules of the standard library whose documentation is read.
MODULES = """
argparse ast asyncio base64 bisect calendar cmd codecs collections concurrent.futures configparser
contextlib copy csv ctypes dataclasses datetime decimal difflib dis doctest email enum fractions
functools gettext glob gzip hashlib heapq html http.client http.server inspect io itertools json
locale logging mailbox math mimetypes multiprocessing numbers operator os pathlib pickle pprint
pydoc queue random re sched shelve shlex shutil smtplib socket sqlite3 ssl statistics string
struct subprocess sys tarfile tempfile textwrap threading time timeit tokenize trace traceback types
typing unittest urllib.parse urllib.request uuid wave weakref xml.dom.minidom zipfile
"""
UNKNOWN = 0


def python_text() -> str:
    """The docstrings of the standard library, and Python's licence where there is one."""
    documents: dict[str, None] = {}
    for name in MODULES.split():
        try:
            module = importlib.import_module(name)
        except ImportError:  # a Python that was built without it
            continue
        things = [module, *vars(module).values()]
        things += [
            each for thing in things if inspect.isclass(thing) for each in vars(thing).values()
        ]
        for thing in things:
            if inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing):
                documents[inspect.getdoc(thing) or ""] = None
    licence = getattr(builtins, "license", None)  # of the site module
    lines = getattr(licence, "_Printer__lines", None)
    if licence is not None and lines is None:
        licence._Printer__setup()
        lines = licence._Printer__lines
    return "\n".join([*documents, *(lines or [])])


class Block(nn.Module):
    """Causal attention and an MLP, each beside a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        parts = self.queries_keys_values(self.attention_norm(hidden)).chunk(3, dim=-1)
        parts = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]
        heads = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        hidden = hidden + self.attended(heads.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.mlp_norm(hidden))


class GPT(nn.Module):
    """Token ids (N, T) -> logits (N, T, V) of the token after each."""

    def __init__(self, vocabulary: int, context: int, width: int, depth: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(Block(width, width // 32) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, input_ids: Tensor) -> Tensor:
        """See the class."""
        hidden = self.tokens(input_ids) + self.positions[: input_ids.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def main() -> None:
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--depth", type=int, default=6, help="blocks")
    parser.add_argument("--width", type=int, default=96, help="features of a token")
    parser.add_argument("--vocabulary", type=int, default=1000, help="words")
    parser.add_argument("--classes", type=int, default=200, help="most frequent words to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    torch.manual_seed(0)

    words = re.findall(r"\w+|[^\w\s]", python_text().lower())
    known = [word for word, _ in Counter(words).most_common(options.vocabulary - 1)]
    ids = {word: number for number, word in enumerate(known, start=1)}
    context = 64
    tokens = torch.tensor([ids.get(word, UNKNOWN) for word in words])
    rows = tokens[: len(tokens) // context * context].view(-1, context)
    print(f"{len(words)} words, {len(set(words))} different ones, {len(rows)} rows of {context}")

    model = GPT(options.vocabulary, context, options.width, options.depth)
    # The loader's labels are its ids, as collators make them: they are shifted, and it is said.
    measured = [{"input_ids": batch, "labels": batch} for batch in rows[::4].split(64)]
    # Every word of its own but those outside of the vocabulary, which have only their id in common.
    counts = deeprep.probe.token_counts(measured)
    counts[UNKNOWN] = 0
    layers = [Block, "norm"]

    def measure(which: str) -> deeprep.LayerReport:
        labels = deeprep.TokenLabels(which, most_frequent=options.classes, counts=counts)
        names = [known[token - 1] for token in labels.class_tokens.tolist()]
        return deeprep.analyze(
            model, measured, labels=labels, layers=layers, accuracy=True, class_names=names
        )

    reports = {"next token, untrained": measure("next-token")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, options.steps + 1)
    for step in range(options.steps):
        batch = rows[torch.randint(len(rows), (24,))]
        loss = nn.functional.cross_entropy(
            model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {loss.item():.2f}", flush=True)

    reports["next token, trained"] = measure("next-token")
    reports["token read, trained"] = measure("current-token")
    for name, report in reports.items():
        print(name, report, sep="\n")
    print("hardest to tell apart:", reports["next token, trained"].most_confused(count=3))
    options.out.mkdir(parents=True, exist_ok=True)
    deeprep.plots.compare(reports, options.out / "next_token_gpt.png")
    print(f"figure: {options.out / 'next_token_gpt.png'}")


if __name__ == "__main__":
    main()
