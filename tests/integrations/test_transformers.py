"""DeeprepCallback: in the history and the trackers of a real Trainer, whose training it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deeprep

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from deeprep.integrations.transformers import DeeprepCallback  # noqa: E402

NUM_CLASSES = 3


class Data(torch.utils.data.Dataset):
    def __init__(self, num_samples=24, length=5):
        self.labels = torch.arange(num_samples) % NUM_CLASSES
        self.ids = torch.randint(1, 30, (num_samples, length))
        self.ids[:, 0] = 1 + self.labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        mask = (torch.arange(self.ids.shape[1]) < 3 + index % 3).long()
        return {
            "input_ids": self.ids[index],
            "attention_mask": mask,
            "labels": self.labels[index],
        }


def make_trainer(tmp_path, kind=None, **options):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=NUM_CLASSES,
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        **{
            "use_cpu": True,
            "max_steps": 6,
            "per_device_train_batch_size": 6,
            "logging_steps": 2,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "seed": 1,
            **options,
        },
    )
    return (kind or transformers.Trainer)(
        model=transformers.BertForSequenceClassification(config),
        args=arguments,
        train_dataset=Data(),
        eval_dataset=Data(12),
    )


def num_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def logged(trainer, name):
    return {e["step"]: e[name] for e in trainer.state.log_history if name in e}


def test_curves_are_in_the_history_and_training_is_as_without(tmp_path):
    plain = make_trainer(tmp_path)
    plain.train()
    trainer = make_trainer(tmp_path)
    callback = DeeprepCallback(trainer, NUM_CLASSES, every=3)
    trainer.add_callback(callback)
    trainer.train()
    names = ["input", "bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert [layer.name for layer in callback.report.layers][:3] == names
    for name in names:
        assert list(logged(trainer, f"deeprep/compression/{name}")) == [1, 4]
    assert logged(trainer, f"deeprep/discrimination/{name}")[4] == (
        callback.report.layers[2].discrimination
    )
    # What the Trainer logs itself at the same step is there too, and the same.
    assert list(logged(trainer, "loss")) == [2, 4, 6]
    assert logged(trainer, "loss") == logged(plain, "loss")
    pairs = zip(plain.model.parameters(), trainer.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert num_hooks(trainer.model) == num_hooks(plain.model)


def test_values_are_those_of_the_batches(tmp_path):
    seen = []

    class Recording(transformers.Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append({k: v.clone() for k, v in inputs.items()})
            labels = inputs.pop("labels")  # as many loss functions of one's own do
            logits = model(**inputs).logits
            loss = nn.functional.cross_entropy(logits, labels)
            return (loss, {"logits": logits}) if kwargs.get("return_outputs") else loss

    trainer = make_trainer(
        tmp_path, Recording, gradient_accumulation_steps=2, max_steps=2, learning_rate=0.0
    )
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    callback = DeeprepCallback(trainer, NUM_CLASSES, every=2, window=2, metrics=["cdnv"])
    trainer.add_callback(callback)
    trainer.train()
    assert callback.report.num_samples == 24  # two steps of two batches of six
    assert list(logged(trainer, "deeprep/cdnv/input")) == [2]
    probe = deeprep.LayerProbe(trainer.model, NUM_CLASSES, reduce="mean")
    probe.run([(batch, batch.pop("labels")) for batch in seen])
    assert callback.report.layers[2].cdnv == pytest.approx(probe.report().layers[2].cdnv, rel=1e-4)


def test_label_smoothing_and_resumed_training(tmp_path):
    trainer = make_trainer(
        tmp_path, label_smoothing_factor=0.1, save_strategy="steps", save_steps=4, max_steps=4
    )
    trainer.add_callback(DeeprepCallback(trainer, NUM_CLASSES, every=3))
    trainer.train()
    again = make_trainer(tmp_path, label_smoothing_factor=0.1, max_steps=8)
    again.add_callback(DeeprepCallback(again, NUM_CLASSES, every=3))
    again.train(resume_from_checkpoint=True)
    assert list(logged(again, "deeprep/compression/input")) == [1, 4, 7]


def test_evaluations(tmp_path):
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=3)
    evaluated = DeeprepCallback(trainer, NUM_CLASSES, on="evaluation", metrics="auto")
    trainer.add_callback(evaluated)
    trainer.add_callback(DeeprepCallback(trainer, NUM_CLASSES, every=6))
    trainer.train()
    assert evaluated.report.num_samples == 12
    curve = logged(trainer, "eval_deeprep/compression/bert.encoder.layer.1")
    assert list(curve) == [3, 6]
    assert list(logged(trainer, "deeprep/compression/input")) == [1]
    assert list(logged(trainer, "eval_loss")) == [3, 6]
    expected = deeprep.analyze(
        trainer.model,
        torch.utils.data.DataLoader(trainer.eval_dataset, batch_size=12),
        NUM_CLASSES,
        reduce="mean",
    )
    assert curve[6] == pytest.approx(expected.layers[2].compression, rel=1e-5)
    history = len(trainer.state.log_history)
    trainer.evaluate()  # after training it is not measured
    assert len(trainer.state.log_history) == history + 1


@pytest.mark.parametrize(
    ("sets", "stems"),
    [(Data(12), {"eval_"}), ({"seen": Data(12), "new": Data(6)}, {"eval_seen_", "eval_new_"})],
)
def test_names_of_evaluations_are_those_of_their_sets(tmp_path, sets, stems):
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=6)
    trainer.eval_dataset = sets
    # With a prefix of its own it comes before the loss, and ends alike.
    trainer.compute_metrics = lambda predictions: {"eval_token_loss": 1.0, "eval_my_runtime": 2.0}
    trainer.add_callback(DeeprepCallback(trainer, NUM_CLASSES, on="evaluation"))
    trainer.train()
    names = {name for entry in trainer.state.log_history for name in entry if "deeprep" in name}
    assert {name.partition("deeprep/")[0] for name in names} == stems


def test_curves_reach_the_event_file_of_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = make_trainer(tmp_path, report_to=["tensorboard"])
    trainer.add_callback(DeeprepCallback(trainer, NUM_CLASSES, every=2))
    trainer.train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload()
    name = "deeprep/compression/bert.encoder.layer.1"
    found = {each.step: each.value for each in events.Scalars(f"train/{name}")}
    assert found == pytest.approx(logged(trainer, name), rel=1e-6)
    assert list(found) == [1, 3, 5]


def test_predictions_during_training_are_no_part_of_an_evaluation(tmp_path):
    class Predicting(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.predict(Data(9))

    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=3, max_steps=3)
    evaluated = DeeprepCallback(trainer, NUM_CLASSES, on="evaluation")
    trainer.add_callback(evaluated)
    trainer.add_callback(Predicting())
    trainer.train()
    assert evaluated.report.num_samples == 12


def test_an_evaluation_that_computes_no_loss_is_an_error(tmp_path):
    class Generating(transformers.Trainer):  # as Seq2SeqTrainer with predict_with_generate
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            with torch.no_grad():
                outputs = model(**inputs)
            return outputs.loss, None, None

    trainer = make_trainer(tmp_path, Generating, eval_strategy="steps", eval_steps=3)
    trainer.add_callback(DeeprepCallback(trainer, NUM_CLASSES, on="evaluation"))
    with pytest.raises(ValueError, match="no batch of the evaluation was measured"):
        trainer.train()


class Text(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        ids = torch.arange(index, index + 7) % 5
        labels = torch.where(torch.arange(7) < 2, -100, ids)  # a prompt without a loss
        return {"input_ids": ids, "attention_mask": torch.ones(7).long(), "labels": labels}


def test_next_tokens_of_a_causal_model(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=5, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "max_steps": 1}
    arguments = transformers.TrainingArguments(
        save_strategy="no", disable_tqdm=True, per_device_train_batch_size=6, **options
    )
    trainer = transformers.Trainer(
        model=transformers.GPT2LMHeadModel(config), args=arguments, train_dataset=Text()
    )
    callback = DeeprepCallback(trainer, labels="next-token")
    trainer.add_callback(callback)
    trainer.train()
    assert callback.report.num_samples == 6 * 4  # the tokens 2 to 5 of each text, and the next
    assert callback.report.num_classes == 5
    assert list(logged(trainer, "deeprep/compression/transformer.h.1")) == [1]
    trainer.remove_callback(callback)
    trainer.add_callback(DeeprepCallback(trainer, 5, reduce="tokens"))
    with pytest.raises(ValueError, match="next-token"):  # labels that are the input_ids
        trainer.train()


def test_errors(tmp_path):
    trainer = make_trainer(tmp_path)
    for options, message in (
        ({"on": "test"}, "on is 'test', expected 'train' or 'evaluation'"),
        ({"every": 0}, "every is 0"),
        ({"layers": "nothing"}, "nothing"),
        ({"prefix": "a:"}, "prefix is 'a:'"),
        ({"metrics": ["nc1"]}, "nc1"),
    ):
        with pytest.raises(ValueError, match=message):
            DeeprepCallback(trainer, NUM_CLASSES, **options)
    trainer.add_callback(DeeprepCallback(trainer, NUM_CLASSES, labels_of=lambda batch: None))
    with pytest.raises(TypeError, match="labels"):
        trainer.train()
    assert num_hooks(trainer.model) == 0
