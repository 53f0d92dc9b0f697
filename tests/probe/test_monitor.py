"""Monitor: which steps it measures, what it measures there, and that it leaves no trace."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from probe_models import ResidualNet, make_batches
from rank_checks import join
from torch import nn
from torch.utils.checkpoint import checkpoint

import deeprep
from deeprep import LayerProbe, Monitor


def train_step(model, optimizer, inputs, labels, context):
    with context:
        loss = nn.functional.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def interrupt(output):
    raise KeyboardInterrupt


def num_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def measured_by_probe(model, *batches, **options):
    with LayerProbe(model, 3, classifier=None, **options) as probe:
        for inputs, labels in batches:
            with probe.batch(labels):
                model(inputs)
    return probe.report(metrics=deeprep.report.layer_metrics.ALWAYS)


def test_every_nth_step_is_measured_and_no_other():
    model = ResidualNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor, ((inputs, labels), *_) = Monitor(model, 3, every=4), make_batches()
    told = []
    for step in range(9):
        context = monitor.step(labels)
        with context:
            assert bool(num_hooks(model)) == (step % 4 == 0)
            loss = nn.functional.cross_entropy(model(inputs), labels)
        assert num_hooks(model) == 0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report = monitor.report()
        assert not monitor._probe.scatters
        told += [step] if report else []
        assert report is None or [layer.name for layer in report.layers] == [
            "input",
            "blocks.0",
            "blocks.1",
            "last_block",
        ]
    assert told == [0, 4, 8]


def test_values_are_those_of_a_probe_on_the_same_batches():
    model, batches = ResidualNet().eval(), make_batches()
    monitor = Monitor(model, 3, every=len(batches), window=len(batches))
    for inputs, labels in batches:
        assert monitor.report() is None
        with monitor.step(labels):
            model(inputs)
    assert monitor.report() == measured_by_probe(model, *batches)
    assert monitor.report() is None


def test_training_goes_on_to_the_same_bits():
    weights = []
    for watched in (False, True):
        torch.manual_seed(1)
        model, batches = ResidualNet(), make_batches()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = Monitor(model, 3, every=2, full=True, metrics="auto")
        torch.manual_seed(2)  # of the dropout
        for inputs, labels in batches * 2:
            unmeasured = deeprep.probe.monitor._NOTHING
            train_step(
                model, optimizer, inputs, labels, monitor.step(labels) if watched else unmeasured
            )
            monitor.report()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_windows_begin_anew_and_unreported_ones_are_dropped():
    model = nn.Linear(4, 3)
    monitor, labels = Monitor(model, 3, every=5, window=2), torch.arange(6) % 3
    told = {}
    for step in range(12):
        with monitor.step(labels):
            model(torch.randn(6, 4))
        if step not in (1, 2, 3) and (report := monitor.report()):
            told[step] = report.num_samples
    assert told == {4: 12, 6: 12, 11: 12}
    monitor = Monitor(model, 3, every=2, window=2)
    for _ in range(4):  # nobody asks after the first window
        with monitor.step(labels):
            model(torch.randn(6, 4))
    assert monitor.report().num_samples == 12


def test_parts_of_a_step_have_its_number():
    model = nn.Linear(4, 3)
    monitor, labels = Monitor(model, 3, every=3), torch.arange(6) % 3
    told = []
    for step in range(4, 8):  # a loop that goes on from a checkpoint
        for _ in range(2):
            with monitor.step(labels, number=step):
                model(torch.randn(6, 4))
        if report := monitor.report():
            told.append((step, report.num_samples))
        with monitor.step(labels, number=step):  # after its report a step is not measured again
            assert num_hooks(model) == 0
    assert told == [(6, 12)]
    with monitor.step(labels, number=0):  # a new count
        model(torch.randn(6, 4))
    assert monitor.report().num_samples == 6


def test_a_step_whose_window_was_passed_over_is_complete():
    model = nn.Linear(4, 3)
    monitor, labels = Monitor(model, 3, every=10, window=3), torch.arange(6) % 3
    for step in range(0, 10, 4):
        with monitor.step(labels, number=step):
            model(torch.randn(6, 4))
        report = monitor.report()
        assert (report is not None) == (step == 4)


def test_an_exception_drops_the_window_and_the_hooks():
    model, ((inputs, labels), *_) = ResidualNet(), make_batches()
    monitor = Monitor(model, 3, every=3, window=3)
    with monitor.step(labels):
        model(inputs)
    with pytest.raises(KeyboardInterrupt), monitor.step(labels):
        interrupt(model(inputs))
    assert num_hooks(model) == 0
    assert not monitor._probe.scatters
    with monitor.step(labels):
        model(inputs)
    assert monitor.report().num_samples == len(labels)  # of what came after it
    with monitor.step(labels), pytest.raises(RuntimeError, match="entered once"):
        monitor.step(labels).__enter__()
    assert num_hooks(model) == 0


def test_labels_are_checked_before_the_model_runs():
    model, ((_, labels), *_) = ResidualNet(), make_batches()
    monitor = Monitor(model, 3, every=1)
    for wrong in (labels + 3, labels.double()):
        with pytest.raises((ValueError, TypeError), match="label"), monitor.step(wrong):
            pytest.fail("ran")
        assert num_hooks(model) == 0
        assert monitor.report() is None


def test_nothing_of_the_graph_is_kept():
    model, ((inputs, labels), *_) = ResidualNet(), make_batches()
    monitor = Monitor(model, 3, every=2, window=2)
    hidden = []
    handle = model.blocks.register_forward_hook(
        lambda module, args, output: hidden.append(weakref.ref(output))
    )
    with monitor.step(labels):
        output = model(inputs)
    handle.remove()
    scatters = monitor._probe.scatters.values()
    assert not any(s.means.requires_grad for s in scatters)
    del output
    gc.collect()
    assert hidden[0]() is None


def test_compiled_models_are_measured_and_not_compiled_anew():
    traces = []

    def backend(graph, example_inputs):
        traces.append(graph)
        return graph.forward

    for compile_it in (
        lambda model: torch.compile(model, backend=backend),
        lambda model: model.compile(backend=backend) or model,
    ):
        torch.compiler.reset()
        traces.clear()
        model, ((inputs, labels), *_) = ResidualNet().eval(), make_batches()
        expected = measured_by_probe(model, (inputs, labels))
        model = compile_it(model)
        monitor = Monitor(model, 3, every=2)
        counts = []
        for step in range(5):
            with monitor.step(labels):
                model(inputs).sum().backward()
            report = monitor.report()
            assert report == (expected if step % 2 == 0 else None)
            counts.append(len(traces))
        assert counts == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_runs_again_is_not_taken_in_again(reentrant):
    class Checkpointed(ResidualNet):
        def forward(self, inputs):
            hidden = checkpoint(self.blocks, self.stem(inputs), use_reentrant=reentrant)
            return self.head(self.last_block(hidden))

    model, ((inputs, labels), *_) = Checkpointed(), make_batches()
    monitor = Monitor(model, 3)
    with monitor.step(labels):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()  # inside
    report = monitor.report()
    assert [layer.name for layer in report.layers] == [
        "input",
        "blocks.0",
        "blocks.1",
        "last_block",
    ]
    assert report.num_samples == len(labels)
    assert model.stem.weight.grad is not None


def test_autocast_frozen_layers_and_forwards_in_between():
    model, ((inputs, labels), *_) = ResidualNet(), make_batches()
    model.blocks.requires_grad_(False).eval()
    monitor = Monitor(model, 3, every=2)
    for step in range(3):
        with monitor.step(labels), torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(inputs), labels)
        with torch.no_grad():
            model(inputs)  # an evaluation
        loss.backward()
        report = monitor.report()
        assert (report is not None) == (step != 1)
        assert report is None or report.num_samples == len(labels)
    assert not model.blocks.training


def test_two_forwards_of_a_step_are_two_views_of_its_samples():
    model, labels = nn.Linear(4, 3), torch.arange(6) % 3
    monitor = Monitor(model, 3)
    with monitor.step(labels):
        model(torch.randn(6, 4))
        model(torch.randn(6, 4))
    assert monitor.report().num_samples == 12


def test_next_tokens():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    ids = torch.randint(7, (5, 6))
    monitor = Monitor(model, 7, labels="next-token")
    with monitor.step(ids):
        model(ids)
    report = monitor.report()
    assert report.num_samples == 5 * 5
    with LayerProbe(model, 7, labels="next-token") as probe:
        probe(ids, None)
    assert report.layers == probe.report(metrics=deeprep.report.layer_metrics.ALWAYS).layers


def test_a_window_without_a_layer_is_an_error():
    model, labels = nn.Linear(4, 3), torch.arange(6) % 3
    monitor = Monitor(model, 3)
    with monitor.step(labels):
        pass
    with pytest.raises(ValueError, match=r"no layer of Linear ran inside monitor\.step"):
        monitor.report()
    assert monitor.report() is None


def test_arguments():
    model = nn.Linear(4, 3)
    for options, message in (
        ({"every": 0}, "every is 0"),
        ({"window": 0}, "window is 0"),
        ({"every": 2, "window": 3}, "window is 3, expected at most every, which is 2"),
        ({"metrics": ["nc1"]}, "nc1"),
        ({"metrics": ["accuracy"]}, "accuracy"),
        ({"full": 2}, "full is 2"),
        ({"layers": "blocks"}, "blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            Monitor(model, 3, **options)
    parallel = nn.DataParallel(model)
    parallel.device_ids = [0, 1]
    with pytest.raises(ValueError, match="DataParallel over 2 devices"):
        Monitor(nn.Sequential(parallel), 3)
    with pytest.raises(TypeError, match="model is None"):
        Monitor(None, 3)


def test_options_of_the_report():
    model, ((inputs, labels), *_) = ResidualNet().eval(), make_batches()
    monitor = Monitor(
        model,
        3,
        layers="blocks.*",
        full="auto",
        weighting="prior",
        metrics="auto",
        class_names=["a", "b", "c"],
    )
    with monitor.step(labels):
        model(inputs)
    report = monitor.report()
    assert report.layers[1].nc1 is not None
    assert report.layers[1].cdnv is not None
    assert report.weighting == "prior"
    assert report.class_names == ["a", "b", "c"]
    expected = Monitor(model, 3, options=deeprep.ReportOptions(metrics=["equinorm"]))
    with expected.step(labels):
        model(inputs)
    row = expected.report().layers[1]
    assert (row.equinorm is not None, row.cdnv) == (True, None)


def train_in_a_group(rank, size, store, results):
    join(rank, size, store, seconds=120)
    torch.manual_seed(0)
    model = ResidualNet()
    whole = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(whole, 3, every=2, all_reduce=True, layers="blocks.*")
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        labels = torch.arange(6 + rank) % 3
        inputs = torch.randn(6 + rank, 4, generator=generator)
        train_step(whole, optimizer, inputs, labels, monitor.step(labels))
        if report := monitor.report():
            results.put((rank, report.num_samples, report.layers[1].compression))
    torch.distributed.destroy_process_group()


def test_processes_report_their_samples_together(run_ranks):
    exit_codes, results = run_ranks(train_in_a_group, 2)
    assert exit_codes == [0, 0]
    found = [results.get(timeout=10) for _ in range(4)]
    for rank in range(2):
        assert [samples for r, samples, _ in found if r == rank] == [13, 13]
    first, second = ([value for r, _, value in found if r == rank] for rank in range(2))
    assert first == second


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_the_device_before_the_report():
    model = ResidualNet().cuda()
    labels, inputs = (torch.arange(12) % 3).cuda(), torch.randn(12, 4).cuda()
    monitor = Monitor(model, 3, full=True)
    with monitor.step(labels):
        model(inputs)
    monitor.report()  # what is loaded only once is there
    monitor = Monitor(model, 3, full=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with monitor.step(labels):
            model(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert monitor.report().num_samples == 12


def test_a_report_says_nothing_of_a_collapse_that_nobody_asked_for():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    monitor = deeprep.Monitor(model, num_classes=2)
    with monitor.step(torch.arange(16) % 2):
        model(torch.randn(16, 4))
    report = monitor.report()
    assert report is not None
    assert "NC1 to NC4" not in str(report)


@pytest.mark.parametrize("number", [-1, 2.5])
def test_a_number_that_is_no_step_is_refused(number):
    monitor = deeprep.Monitor(nn.Linear(4, 2), num_classes=2)
    with pytest.raises(ValueError, match=f"number is {number}, expected a whole number >= 0"):
        monitor.step(torch.arange(4) % 2, number=number)
