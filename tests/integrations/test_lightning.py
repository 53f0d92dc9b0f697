"""LayerMetricsCallback: the layers of the batches Lightning runs anyway; nothing stays behind."""

from __future__ import annotations

import csv
import importlib.util
import sys

import pytest
import torch
from torch import nn

import deeprep

lightning = pytest.importorskip("lightning.pytorch")

from deeprep.integrations import lightning as integration  # noqa: E402
from deeprep.integrations.lightning import LayerMetricsCallback  # noqa: E402

NUM_CLASSES = 3


def make_loader(num_samples=48, batch_size=10):
    labels = torch.arange(num_samples) % NUM_CLASSES
    inputs = torch.randn(NUM_CLASSES, 4)[labels] + 0.3 * torch.randn(num_samples, 4)
    data = torch.utils.data.TensorDataset(inputs, labels)
    return torch.utils.data.DataLoader(data, batch_size=batch_size)


def make_model():
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, NUM_CLASSES)
    )


class Steps:
    """What a user writes, for the LightningModule of either package."""

    def __init__(self):
        super().__init__()
        self.model = make_model()
        self.forwards = 0
        self.fail = None

    def forward(self, inputs):
        self.forwards += 1
        return self.model(inputs)

    def loss(self, batch):
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs), labels)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        loss = self.loss(batch)
        if self.fail is not None:
            raise self.fail
        return loss

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Module(Steps, lightning.LightningModule):
    pass


def make_trainer(*callbacks, package=lightning, **options):
    return package.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
        callbacks=list(callbacks),
    )


def hooks_of(module):
    return [h for m in module.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


def assert_same_values(found, expected):
    assert [layer.name for layer in found.layers] == [layer.name for layer in expected.layers]
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        assert mine.compression == pytest.approx(theirs.compression, rel=1e-5)
        assert mine.discrimination == pytest.approx(theirs.discrimination, rel=1e-5)


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


def test_validation_batches_are_measured_as_they_run():
    callback, loader = LayerMetricsCallback(NUM_CLASSES), make_loader()
    module, trainer = Module(), make_trainer(callback, num_sanity_val_steps=2)
    trainer.fit(module, make_loader(), loader)
    assert module.forwards == 2 + 2 * 5 + 2 * 5  # sanity check, training, validation: no more
    assert sorted(callback.reports) == [0, 1]
    report = callback.reports[1]
    assert report.num_samples == 48  # without those of the sanity check
    assert [layer.name for layer in report.layers] == ["input", "1", "3"]
    assert_same_values(report, deeprep.analyze(module.model, loader, NUM_CLASSES))
    for layer in report.layers:
        logged = trainer.callback_metrics[f"compression/{layer.name}"]
        assert logged == pytest.approx(layer.compression, rel=1e-6)
        assert f"discrimination/{layer.name}" in trainer.callback_metrics
    assert not hooks_of(module)


def test_training_goes_as_without_the_callback():
    def train(*callbacks):
        torch.manual_seed(1)
        module = Module()
        make_trainer(*callbacks).fit(module, make_loader())
        return module

    callback = LayerMetricsCallback(NUM_CLASSES, on="train", metrics=("cdnv",), prefix="train/")
    with_it, without = train(callback), train()
    torch.testing.assert_close(with_it.state_dict(), without.state_dict(), rtol=0, atol=0)
    assert with_it.forwards == without.forwards
    assert callback.reports[1].num_samples == 48
    assert callback.reports[1].layers[1].cdnv > 0
    assert not hooks_of(with_it)


def test_epochs_and_batches_are_chosen():
    callback = LayerMetricsCallback(NUM_CLASSES, "3", every_n_epochs=2, max_batches=3)
    trainer = make_trainer(callback, max_epochs=3)
    trainer.fit(Module(), make_loader(), make_loader())
    assert sorted(callback.reports) == [0, 2]
    assert callback.reports[2].num_samples == 30
    assert [layer.name for layer in callback.reports[2].layers] == ["input", "3"]


def test_a_loader_of_ones_own_is_measured_at_the_end_of_the_epoch():
    other = make_loader(num_samples=60)
    callback = LayerMetricsCallback(NUM_CLASSES, loader=other, on="train", weighting="prior")
    module = Module()
    make_trainer(callback).fit(module, make_loader())
    assert module.training
    expected = deeprep.analyze(module.model, other, NUM_CLASSES, weighting="prior")
    assert callback.reports[1].weighting == "prior"
    assert_same_values(callback.reports[1], expected)


def test_of_several_validation_loaders_the_first_is_measured():
    callback = LayerMetricsCallback(NUM_CLASSES)
    make_trainer(callback).validate(Module(), [make_loader(), make_loader(90)], verbose=False)
    assert callback.reports[0].num_samples == 48


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(RuntimeError("broken"), RuntimeError), (KeyboardInterrupt(), SystemExit)],
)
def test_hooks_are_gone_after_a_failure(failure, raised):
    module, trainer = Module(), make_trainer(LayerMetricsCallback(NUM_CLASSES))
    module.fail = failure
    with pytest.raises(raised):
        trainer.validate(module, make_loader(), verbose=False)
    assert not hooks_of(module)
    module.fail = None
    callback = LayerMetricsCallback(NUM_CLASSES)
    make_trainer(callback).validate(module, make_loader(), verbose=False)
    assert callback.reports[0].num_samples == 48


def test_reports_are_kept_in_checkpoints(tmp_path):
    first, second = (LayerMetricsCallback(NUM_CLASSES, prefix=p) for p in ("a/", "b/"))
    trainer = make_trainer(first, second)
    trainer.fit(Module(), make_loader(), make_loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = LayerMetricsCallback(NUM_CLASSES, prefix="a/")
    module, trainer = Module(), make_trainer(again, max_epochs=3)
    trainer.fit(module, make_loader(), make_loader(), ckpt_path=tmp_path / "last.ckpt")
    assert sorted(again.reports) == [0, 1, 2]
    assert again.reports[1] == first.reports[1]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(6, 2, 12, 0.0) for _ in range(2))

    def forward(self, input_ids, attention_mask):
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class EncoderModule(lightning.LightningModule):
    """Two children with parameters; its batches are mappings."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Linear(6, NUM_CLASSES)

    def validation_step(self, batch, batch_idx):
        self.head(self.encoder(batch["input_ids"], batch["attention_mask"]).mean(dim=1))


def test_mappings_bring_labels_and_mask():
    ids, labels = torch.randint(20, (30, 5)), torch.arange(30) % NUM_CLASSES
    mask = torch.arange(5) < torch.randint(1, 6, (30, 1))
    batch = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}
    callback = LayerMetricsCallback(NUM_CLASSES, reduce="mean", module="encoder")
    module = EncoderModule()
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    make_trainer(callback).validate(module, loader, verbose=False)
    with torch.no_grad():
        hidden = module.encoder(ids, mask)
    kept = mask.unsqueeze(2)
    expected = deeprep.class_scatter((hidden * kept).sum(1) / kept.sum(1), labels)
    assert callback.reports[0].warnings == []
    found = callback.reports[0].layers
    assert [layer.name for layer in found] == ["input", "layers.0", "layers.1"]
    assert found[2].compression == pytest.approx(deeprep.compression(expected), rel=1e-5)


class Translation(lightning.LightningModule):
    """Passes its masks by position, where the model's hooks do not see whose they are."""

    def __init__(self, transformers):
        super().__init__()
        config = transformers.T5Config(
            vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2
        )
        self.model = transformers.T5Model(config)

    def validation_step(self, batch, batch_idx):
        names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
        self.model(*(batch[name] for name in names))


def test_each_sequence_of_an_encoder_decoder_model_has_its_mask():
    transformers = pytest.importorskip("transformers")
    batch = {"labels": torch.arange(6) % NUM_CLASSES}
    for prefix, lengths in (("", [1, 2, 3, 4, 4, 4]), ("decoder_", [4, 3, 2, 1, 1, 1])):
        batch[f"{prefix}input_ids"] = torch.randint(2, 20, (6, 4))
        mask = torch.arange(4) < torch.tensor(lengths).unsqueeze(1)
        batch[f"{prefix}attention_mask"] = mask.long()
    layers = ["encoder.block.0", "decoder.block.0"]
    callback = LayerMetricsCallback(NUM_CLASSES, layers, reduce="tokens")
    module = Translation(transformers)
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    make_trainer(callback).validate(module, loader, verbose=False)
    expected = deeprep.analyze(module.model, [batch], NUM_CLASSES, layers=layers, reduce="tokens")
    assert_same_values(callback.reports[0], expected)


class Classification(lightning.LightningModule):
    """An encoder-decoder model whose decoder reads the tokens of the encoder again."""

    def __init__(self, transformers, by_position):
        super().__init__()
        sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
        sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
        config = transformers.BartConfig(
            vocab_size=20, d_model=8, max_position_embeddings=8, pad_token_id=0, **sizes
        )
        self.model, self.by_position = transformers.BartModel(config), by_position

    def validation_step(self, batch, batch_idx):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if self.by_position:
            self.model(ids, mask)
        else:
            self.model(input_ids=ids, attention_mask=mask.bool())


@pytest.mark.parametrize("by_position", [True, False])
def test_one_mask_of_an_encoder_decoder_model(by_position):
    transformers = pytest.importorskip("transformers")
    mask = (torch.arange(4) < torch.tensor([1, 2, 3, 4, 4, 4]).unsqueeze(1)).long()
    batch = {"input_ids": torch.randint(2, 20, (6, 4)), "attention_mask": mask}
    batch["labels"] = torch.arange(6) % NUM_CLASSES
    layers = ["encoder.layers.0", "decoder.layers.0"]
    callback = LayerMetricsCallback(NUM_CLASSES, layers, reduce="tokens")
    module = Classification(transformers, by_position)
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    make_trainer(callback).validate(module, loader, verbose=False)
    expected = deeprep.analyze(module.model, [batch], NUM_CLASSES, layers=layers, reduce="tokens")
    assert_same_values(callback.reports[0], expected)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="on is 'predict', expected 'train', 'validation'"):
        LayerMetricsCallback(NUM_CLASSES, on="predict")
    with pytest.raises(ValueError, match="metrics holds 'speed', expected some of cdnv"):
        LayerMetricsCallback(NUM_CLASSES, metrics=["compression", "speed"])
    with pytest.raises(ValueError, match="metrics holds 'nc1', which needs states with full=True"):
        LayerMetricsCallback(NUM_CLASSES, metrics=["nc1"])
    with pytest.raises(ValueError, match="every_n_epochs is 0"):
        LayerMetricsCallback(NUM_CLASSES, every_n_epochs=0)

    def validate(batch, **options):
        loader = torch.utils.data.DataLoader([batch], batch_size=None)
        trainer = make_trainer(LayerMetricsCallback(NUM_CLASSES, **options))
        trainer.validate(Module(), loader, verbose=False)

    inputs, labels = torch.randn(3, 4), torch.tensor([0, 1, 7])
    with pytest.raises(ValueError, match="module is 'backbone', expected a submodule"):
        validate((inputs, labels), module="backbone")
    with pytest.raises(ValueError, match=r"loader gave a list of 3, .*; or pass labels_of"):
        validate((inputs, labels, inputs))
    with pytest.raises(ValueError, match=r"labels\[2\] is 7, expected a class in \[0, 3\)"):
        validate((inputs, labels))


def test_a_module_that_never_runs_is_an_error():
    class Idle(Module):
        def validation_step(self, batch, batch_idx):
            pass

    trainer = make_trainer(LayerMetricsCallback(NUM_CLASSES))
    with pytest.raises(ValueError, match="expected a module that runs in the validation step"):
        trainer.validate(Idle(), make_loader(), verbose=False)


def load_again(monkeypatch, **modules):
    """The integration as it is imported where `sys.modules` has these."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name.replace("__", "."), module)
    spec = importlib.util.spec_from_file_location("lightning_again", integration.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_other_package_of_lightning_will_do(monkeypatch):
    other = pytest.importorskip("pytorch_lightning")
    again = load_again(monkeypatch, lightning__pytorch=None)
    callback = again.LayerMetricsCallback(NUM_CLASSES)
    assert isinstance(callback, other.Callback)
    module = type("Module", (Steps, other.LightningModule), {})()
    trainer = make_trainer(callback, package=other)
    trainer.fit(module, make_loader(), make_loader())
    assert callback.reports[1].num_samples == 48
    assert "compression/3" in trainer.callback_metrics


def test_layers_that_did_not_run_are_named():
    callback = LayerMetricsCallback(NUM_CLASSES, ["model.1", "unused"])
    module = Module()
    module.unused = nn.Linear(2, 2)
    make_trainer(callback).validate(module, make_loader(), verbose=False)
    assert callback.reports[0].warnings == ["layer 'unused': did not run"]


def test_without_lightning_the_error_says_what_to_install(monkeypatch):
    with pytest.raises(ImportError, match=r"pip install 'deeprep\[lightning\]'"):
        load_again(monkeypatch, lightning__pytorch=None, pytorch_lightning=None)


class OnEveryRank(lightning.Callback):
    """Asserts, in each process, that its report is of the data of both."""

    def __init__(self, callback, num_samples):
        self.callback, self.num_samples = callback, num_samples

    def on_validation_end(self, trainer, pl_module):
        assert torch.distributed.get_world_size() == 2
        assert self.callback.reports[0].num_samples == self.num_samples


@pytest.mark.parametrize("own_loader", [False, True])
def test_two_processes_report_the_whole(own_loader):
    loader = make_loader(num_samples=40)
    callback = LayerMetricsCallback(NUM_CLASSES, loader=loader if own_loader else None)
    trainer = make_trainer(
        callback, OnEveryRank(callback, 40), strategy="ddp_fork", devices=2, max_epochs=1
    )
    module = Module()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer.validate(module, loader, verbose=False)
    finally:
        torch.set_num_threads(threads)
    expected = deeprep.analyze(module.model, loader, NUM_CLASSES)
    for layer in expected.layers:
        logged = trainer.callback_metrics[f"compression/{layer.name}"]
        assert logged == pytest.approx(layer.compression, rel=1e-5)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_steps_are_measured_and_logged_at_once(tmp_path, accumulated):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    layers = LayerMetricsCallback(NUM_CLASSES, on="train", every_n_steps=3, prefix="t/")
    module = Module()
    make_trainer(layers, logger=logger, accumulate_grad_batches=accumulated).fit(
        module, make_loader()
    )
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("t/compression/1")]
    steps = range(0, 10 // accumulated, 3)  # five batches in each of two epochs
    assert [int(row["step"]) for row in rows] == list(steps)
    assert list(layers.reports) == [steps[-1]]
    (report,) = layers.reports.values()
    assert float(rows[-1]["t/compression/1"]) == pytest.approx(report.layers[1].compression)
    assert module.forwards == 10
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_test_loaders():
    layers = LayerMetricsCallback(NUM_CLASSES, on="test", every_n_epochs=3)
    module, loader = Module(), make_loader()
    trainer = make_trainer(layers)
    trainer.fit(module, loader, loader)
    assert layers.reports == {}
    (results, _) = trainer.test(module, [loader, make_loader(10)], verbose=False)
    (report,) = layers.reports.values()
    expected = deeprep.analyze(module.model, loader, NUM_CLASSES)
    assert report.num_samples == 48
    assert [r.compression for r in report.layers] == [r.compression for r in expected.layers]
    assert results["compression/1"] == pytest.approx(expected.layers[1].compression)


def test_names_of_repeated_layers_are_those_of_trackers():
    class Twice(nn.Sequential):
        def forward(self, inputs):
            return self[2](self[1](self[1](self[0](inputs))))

    module, layers = Module(), LayerMetricsCallback(NUM_CLASSES, layers="1")
    module.model = Twice(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, NUM_CLASSES))
    trainer = make_trainer(layers)
    trainer.fit(module, make_loader(), make_loader())
    assert {"compression/1", "compression/1-2"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize("options", [{"on": "validation"}, {"loader": []}, {"max_batches": 2}])
def test_steps_go_with_training_batches_alone(options):
    with pytest.raises(ValueError, match="every_n_steps is 5, expected on='train'"):
        LayerMetricsCallback(NUM_CLASSES, every_n_steps=5, **{"on": "train", **options})
