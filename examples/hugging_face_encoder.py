"""A Hugging Face encoder: padded sentences, read by their mean token and by their first one.

Built from a tiny configuration and trained for a moment; yours is `AutoModel.from_pretrained(...)`.
"""

import argparse
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, set_seed

import deeprep

TOPICS = {
    "sea": ["wave", "tide", "sail", "salt", "gull", "anchor", "storm"],
    "kitchen": ["pan", "oven", "flour", "salt", "knife", "stove", "dough"],
    "office": ["desk", "paper", "chair", "pen", "phone", "stove", "lamp"],
}
FILLERS = ["the", "a", "and", "near", "under", "with", "some", "old"]
WORDS = [*FILLERS, *(word for words in TOPICS.values() for word in words)]
PAD, CLS = 0, 1


def write_batch(size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Sentences of 4 to 16 words each on its topic, as token ids and a mask, and the topics."""
    labels, rows = torch.randint(len(TOPICS), (size,)), []
    for label in labels.tolist():
        words = random.choices(FILLERS + list(TOPICS.values())[label], k=random.randint(4, 16))
        rows.append(torch.tensor([CLS, *(2 + WORDS.index(word) for word in words)]))
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return {"input_ids": tokens, "attention_mask": (tokens != PAD).long()}, labels


def main() -> None:
    """Write sentences, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    set_seed(0)
    batches = [write_batch(64) for _ in range(10)]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_labels": 3}
    model = BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=6, vocab_size=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for inputs, labels in 3 * batches:
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    reports = {}  # the first token is the same in all sentences: of its layer 0 there is no C_l
    for name, reduce in [("mean of the tokens", "mean"), ("first token", "cls")]:
        reports[name] = deeprep.analyze(model, batches, 3, reduce=reduce, class_names=list(TOPICS))
        print(name, reports[name], sep="\n")
    options.out.mkdir(parents=True, exist_ok=True)
    deeprep.plots.compare(reports, options.out / "hugging_face_encoder.png")
    print(f"figure: {options.out / 'hugging_face_encoder.png'}")


if __name__ == "__main__":
    main()
