"""ClassScatterMetric: a ClassScatter that does what torchmetrics expects of a metric."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch

import deeprep
from deeprep import class_scatter
from deeprep.report.layer_metrics import ALWAYS, CHOOSABLE

torchmetrics = pytest.importorskip("torchmetrics")

from deeprep.integrations.torchmetrics import ClassScatterMetric  # noqa: E402

NUM_CLASSES, WIDTH = 3, 5


def make_batches(num_batches=4, size=30):
    labels = torch.arange(num_batches * size) % NUM_CLASSES
    # Far from the origin: what is kept in less than float64 would be lost.
    features = 1e4 + torch.randn(NUM_CLASSES, WIDTH)[labels] + 0.1 * torch.randn(len(labels), WIDTH)
    return list(zip(features.split(size), labels.split(size), strict=True))


def whole(batches, **options):
    features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return class_scatter(features, labels, NUM_CLASSES, **options)


def fill(metric, batches):
    for features, labels in batches:
        metric.update(features, labels)
    return metric


def assert_measures(values, scatter):
    assert values["compression"] == pytest.approx(deeprep.compression(scatter), rel=1e-9)
    assert values["discrimination"] == pytest.approx(deeprep.discrimination(scatter), abs=1e-12)


def test_compute_is_of_all_batches():
    batches = make_batches()
    values = fill(ClassScatterMetric(NUM_CLASSES), batches).compute()
    assert list(values) == ["compression", "discrimination"]
    assert values["compression"].shape == ()
    assert_measures(values, whole(batches))


def test_one_name_computes_to_one_tensor_and_names_need_their_state():
    batches = make_batches()
    metric = fill(ClassScatterMetric(NUM_CLASSES, metrics="nc1", full=True), batches)
    assert metric.compute().item() == pytest.approx(deeprep.metrics.nc1(whole(batches, full=True)))
    with pytest.raises(ValueError, match="metrics holds 'nc1', which needs states with full=True"):
        ClassScatterMetric(NUM_CLASSES, metrics="nc1")
    with pytest.raises(ValueError, match="metrics holds 'nc7', expected some of cdnv"):
        ClassScatterMetric(NUM_CLASSES, metrics=["compression", "nc7"])
    with pytest.raises(ValueError, match=r"metrics is .*expected at least one name"):
        ClassScatterMetric(NUM_CLASSES, metrics=[])


def test_every_metric_offered_can_be_computed():
    names = (*ALWAYS, *CHOOSABLE)
    # alpha_req fits a line to the eigenvalues from number 11 on.
    wide = [(torch.cat([x, torch.randn(len(x), 12)], dim=1), y) for x, y in make_batches()]
    values = fill(ClassScatterMetric(NUM_CLASSES, metrics=names, full=True), wide)
    assert all(value.isfinite() for value in values.compute().values())


def test_own_functions_of_the_state():
    batches = make_batches()[:1]
    batches[0] = (batches[0][0][:20], batches[0][1].clamp(max=1)[:20])  # unbalanced, one empty
    functions = {
        "prior": partial(deeprep.compression, weighting="prior"),
        "samples": lambda scatter: scatter.num_samples,
    }
    with pytest.warns(UserWarning, match="1 of 3 classes have no samples"):
        values = fill(ClassScatterMetric(NUM_CLASSES, metrics=functions), batches).compute()
    with pytest.warns(UserWarning, match="1 of 3 classes have no samples"):
        expected = deeprep.compression(whole(batches), "prior")
    assert values["prior"] == pytest.approx(expected)
    assert values["samples"] == 20


def test_forward_gives_the_batch_and_takes_it_in():
    batches = make_batches()
    metric = ClassScatterMetric(NUM_CLASSES, full=True, metrics=["compression", "discrimination"])
    for features, labels in batches:
        assert_measures(metric(features, labels), class_scatter(features, labels, NUM_CLASSES))
    assert_measures(metric.compute(), whole(batches))
    pooled = whole(batches, full=True).pooled_scatter
    torch.testing.assert_close(metric.scatter.pooled_scatter, pooled, rtol=1e-5, atol=1e-5)
    assert metric.scatter.unit_roundoff == 2.0**-24  # of float32 features, not of float64


def test_a_batch_with_one_class_is_nan_and_no_error():
    batches = make_batches()
    metric = ClassScatterMetric(NUM_CLASSES)
    fill(metric, batches)
    with pytest.warns(UserWarning, match="compression needs at least two classes") as warned:
        values = metric(torch.randn(4, WIDTH), torch.ones(4, dtype=torch.int64))
    assert {warning.filename for warning in warned} == {__file__}  # the line that called
    assert all(value.isnan() for value in values.values())
    assert metric.compute()["compression"].isfinite()


def test_without_a_batch_every_value_is_nan():
    with pytest.warns(UserWarning, match="was called before the ``update`` method"):
        values = ClassScatterMetric(NUM_CLASSES).compute()
    assert all(value.isnan() for value in values.values())


def test_input_that_does_not_fit_is_refused_before_anything_is_written():
    metric = ClassScatterMetric(NUM_CLASSES)
    with pytest.raises(ValueError, match=r"labels\[1\] is 3, expected a class in \[0, 3\)"):
        metric.update(torch.randn(2, 7), torch.tensor([0, 3]))
    batches = make_batches()
    fill(metric, batches)  # the width 7 was not kept
    wanted = r"features has shape \(2, 4\), expected \(N, 5\), as in earlier batches"
    with pytest.raises(ValueError, match=wanted):
        metric.update(torch.randn(2, 4), torch.tensor([0, 1]))
    assert_measures(metric.compute(), whole(batches))
    with pytest.raises(ValueError, match=r"expected \(N, 8\), as num_features says"):
        ClassScatterMetric(NUM_CLASSES, 8).update(*batches[0])
    with pytest.raises(ValueError, match=r"features has shape \(2, 4, 3\), expected \(N, d\)"):
        metric.update(torch.randn(2, 4, 3), torch.tensor([0, 1]))


def test_ignored_and_one_hot_labels():
    features, labels = make_batches()[0]
    kept = labels != 2
    metric = ClassScatterMetric(NUM_CLASSES, ignore_index=-1)
    metric.update(features, labels.masked_fill(~kept, -1))
    one_hot = torch.nn.functional.one_hot(labels, NUM_CLASSES)[kept]
    twin = ClassScatterMetric(NUM_CLASSES)
    twin.update(features[kept], one_hot)
    with pytest.warns(UserWarning, match="no samples"):
        assert_measures(metric.compute(), twin.scatter)


def test_reset_forgets_samples_and_width():
    metric = fill(ClassScatterMetric(NUM_CLASSES, full=True), make_batches())
    metric.reset()
    assert metric.scatter.num_samples == 0
    features, labels = torch.randn(30, 2), torch.arange(30) % 3
    metric.update(features, labels)
    assert_measures(metric.compute(), class_scatter(features, labels))


def test_inference_mode_is_no_obstacle():
    batches = make_batches()
    metric = ClassScatterMetric(NUM_CLASSES, full=True)
    with torch.inference_mode():
        fill(metric, batches[:1])
        metric(*batches[1])
    fill(metric, batches[2:])
    assert_measures(metric.compute(), whole(batches))
    with torch.inference_mode():
        metric.reset()
    assert_measures(fill(metric, batches).compute(), whole(batches))


def test_clones_and_pickles_go_on_by_themselves():
    batches = make_batches()
    metric = fill(ClassScatterMetric(NUM_CLASSES), batches[:2])
    for twin in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        fill(twin, batches[2:])
        assert_measures(twin.compute(), whole(batches))
    assert_measures(metric.compute(), whole(batches[:2]))


def test_checkpoints_hold_the_states_where_asked():
    batches = make_batches()
    metric = fill(ClassScatterMetric(NUM_CLASSES, full=True), batches[:2])
    assert not metric.state_dict()
    metric.persistent(True)
    file = io.BytesIO()
    torch.save(metric.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    before = copy.deepcopy(state)
    twin = ClassScatterMetric(NUM_CLASSES, full=True)
    twin.load_state_dict(state)
    fill(twin, batches[2:])
    torch.testing.assert_close(state, before)  # the checkpoint itself is not written into
    torch.testing.assert_close(twin.scatter.counts, whole(batches).counts)
    assert_measures(twin.compute(), whole(batches))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 4}, r"'counts' has shape \(3,\) .* expected \(4,\)"),
        ({"num_classes": 3, "num_features": 6}, r"'means' has shape \(3, 5\) .* \(3, 6\)"),
        ({"num_classes": 3, "full": True}, "state has no products"),
        ({"num_classes": 3, "ignore_index": -1}, "'ignored_label' is -100, expected -1"),
    ],
)
def test_a_checkpoint_of_another_metric_is_refused(options, message):
    metric = fill(ClassScatterMetric(NUM_CLASSES), make_batches())
    metric.persistent(True)
    other = ClassScatterMetric(**options)
    with pytest.raises(RuntimeError, match=message):
        other.load_state_dict(metric.state_dict())
    assert other.scatter.num_samples == 0


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.half(),
        lambda m: m.set_dtype(torch.float16),
        lambda m: m.to(torch.bfloat16),
        lambda m: torch.nn.ModuleDict({"metric": m}).to("cpu", torch.float16)["metric"],
    ],
)
def test_states_stay_float64(convert):
    batches = make_batches()
    metric = convert(fill(convert(ClassScatterMetric(NUM_CLASSES)), batches[:2]))
    assert metric.means.dtype == metric.sumsq.dtype == torch.float64
    assert metric.counts.dtype == torch.int64
    assert_measures(fill(metric, batches[2:]).compute(), whole(batches))


def test_a_collection_shares_one_state_and_names_its_values():
    batches = make_batches()
    collection = torchmetrics.MetricCollection(
        {
            "c": ClassScatterMetric(NUM_CLASSES, metrics="compression"),
            "d": ClassScatterMetric(NUM_CLASSES, metrics="discrimination"),
            "both": ClassScatterMetric(NUM_CLASSES, metrics=("equinorm", "cdnv")),
            "ignoring": ClassScatterMetric(NUM_CLASSES, metrics="compression", ignore_index=0),
        },
        prefix="val_",
    )
    fill(collection, batches)
    groups = sorted(sorted(names) for names in collection.compute_groups.values())
    assert groups == [["both", "c", "d"], ["ignoring"]]
    values = collection.compute()
    assert set(values) == {"val_c", "val_d", "val_equinorm", "val_cdnv", "val_ignoring"}
    scatter = whole(batches)
    assert values["val_c"] == pytest.approx(deeprep.compression(scatter), rel=1e-9)
    assert values["val_cdnv"] == pytest.approx(deeprep.metrics.cdnv(scatter), rel=1e-9)
    with pytest.warns(UserWarning, match="no samples"):
        ignoring = deeprep.compression(whole(batches, ignore_index=0))
    assert values["val_ignoring"] == pytest.approx(ignoring, rel=1e-9)
    collection.reset()
    batch_values = collection.clone(prefix="batch_")(*batches[0])
    assert batch_values["batch_c"] == pytest.approx(deeprep.compression(class_scatter(*batches[0])))
    fill(collection, batches[:2])
    assert collection.compute()["val_d"] == pytest.approx(
        deeprep.discrimination(whole(batches[:2]))
    )


def test_metrics_merge():
    batches = make_batches()
    metric = fill(ClassScatterMetric(NUM_CLASSES), batches[:1])
    metric.merge_state(fill(ClassScatterMetric(NUM_CLASSES), batches[1:]))
    metric.merge_state(ClassScatterMetric(NUM_CLASSES))
    empty = ClassScatterMetric(NUM_CLASSES)
    empty.merge_state(metric.metric_state)
    assert_measures(empty.compute(), whole(batches))
    fill(empty, batches)  # what was taken in is a copy
    assert metric.scatter.num_samples == 120


def test_importing_deeprep_imports_no_optional_package():
    optional = (
        "{'torchmetrics', 'lightning', 'pytorch_lightning', 'transformers', 'timm', 'pandas'}"
    )
    code = f"import sys, deeprep, deeprep.integrations; print({optional} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_without_torchmetrics_the_error_says_what_to_install(monkeypatch):
    module = importlib.import_module(ClassScatterMetric.__module__)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    spec = importlib.util.spec_from_file_location("again", module.__file__)
    with pytest.raises(ImportError, match=r"pip install 'deeprep\[torchmetrics\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_gather_of_ones_own_is_refused():
    with pytest.raises(ValueError, match=r"dist_sync_fn is .*, expected None"):
        ClassScatterMetric(NUM_CLASSES, dist_sync_fn=lambda tensor, group: [tensor])


def test_plot_draws_what_was_computed():
    metric = fill(ClassScatterMetric(NUM_CLASSES), make_batches())
    figure, _ = metric.plot()
    assert figure.axes


def _on_one_rank(rank, folder):
    """One of two processes; the second sees less, and in the end nothing at all."""
    torch.set_num_threads(1)  # the threads of the process this one was forked from are not here
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    batches = make_batches(5)
    mine = [batches[:4], batches[4:]][rank]

    metric = fill(ClassScatterMetric(NUM_CLASSES, full=True), mine)
    assert_measures(metric.compute(), whole(batches))
    assert metric.scatter.num_samples == 30 * len(mine)  # unsynced
    with metric.sync_context():
        pooled = whole(batches, full=True).pooled_scatter
        torch.testing.assert_close(metric.scatter.pooled_scatter, pooled, rtol=1e-5, atol=1e-5)
    fill(metric, mine)
    assert_measures(metric.compute(), whole(batches + batches))

    collection = torchmetrics.MetricCollection(
        {name: ClassScatterMetric(NUM_CLASSES, metrics=name) for name in ("cdnv", "equinorm")}
    )
    fill(collection, mine)
    for _ in range(2):  # members of the group, which share tensors, each synchronise
        values = collection.compute()
        assert values["cdnv"] == pytest.approx(deeprep.metrics.cdnv(whole(batches)), rel=1e-9)
        assert values["equinorm"] == pytest.approx(
            deeprep.metrics.equinorm(whole(batches)), rel=1e-6
        )
        for member in collection.values():
            member._computed = None

    on_step = ClassScatterMetric(NUM_CLASSES, dist_sync_on_step=True)
    both = whole([batches[0], batches[4]])
    assert_measures(on_step(*mine[0]), both)
    assert on_step.scatter.num_samples == 30

    some = ClassScatterMetric(NUM_CLASSES)  # which rank 1 gives no batch, nor a width
    assert_measures(fill(some, mine if rank == 0 else []).compute(), whole(batches[:4]))
    assert some.means.shape[1] == (WIDTH if rank == 0 else 0)
    assert all(value.isnan() for value in ClassScatterMetric(NUM_CLASSES).compute().values())

    torn = ClassScatterMetric(NUM_CLASSES)
    torn.update(torch.randn(30, 2 + rank), batches[0][1])
    with pytest.raises(ValueError, match=r"num_features=2.* on rank 0.*num_features=3.* on rank 1"):
        torn.compute()
    assert torn.scatter.num_samples == 30
    torch.distributed.destroy_process_group()


def test_processes_compute_the_whole_and_go_on_with_their_own(tmp_path):
    # Forked, as to import torchmetrics anew takes longer than all else here.
    torch.multiprocessing.start_processes(
        _on_one_rank, (str(tmp_path),), nprocs=2, start_method="fork"
    )
