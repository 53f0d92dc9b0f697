"""LayerProbe: the features of models that something wraps, compiles, fuses or quantises."""

from __future__ import annotations

import contextlib

import pytest
import torch
from probe_models import ResidualNet, assert_same, make_batches, measure
from torch import nn

from deeprep import LayerProbe, class_scatter


@contextlib.contextmanager
def one_process(tmp_path):
    from torch import distributed

    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def test_wrapped_models_give_the_layers_of_what_they_wrap(tmp_path):
    from torch.nn.parallel import DistributedDataParallel

    model, batches = ResidualNet().eval(), make_batches()
    expected = measure(model, *batches)
    assert_same(measure(nn.DataParallel(model), *batches), expected)
    with one_process(tmp_path):
        assert_same(measure(DistributedDataParallel(model), *batches), expected)


@pytest.mark.filterwarnings("ignore:FSDP is switching")
def test_fully_sharded_models(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    model, batches = ResidualNet().eval(), make_batches()
    expected = measure(model, *batches)
    with one_process(tmp_path):
        wrapped = FullyShardedDataParallel(
            ResidualNet().eval(), device_id=torch.device("cpu"), use_orig_params=True
        )
        with FullyShardedDataParallel.summon_full_params(wrapped):
            wrapped.module.load_state_dict(model.state_dict())
        assert_same(measure(wrapped, *batches), expected)
        mesh = init_device_mesh("cpu", (1,))
        for module in (*model.blocks, model.last_block, model):
            fully_shard(module, mesh=mesh)
        assert_same(measure(model, *batches), expected)


def test_compiled_models_are_seen_inside_and_stay_compiled():
    model, batches = ResidualNet().eval(), make_batches()
    expected = measure(model, *batches)
    traces = []

    def backend(graph, example_inputs):
        traces.append(graph)
        return graph.forward

    in_place, part = ResidualNet().eval(), ResidualNet().eval()
    for other in (in_place, part):
        other.load_state_dict(model.state_dict())
    in_place.compile(backend=backend)
    part.blocks[0] = torch.compile(part.blocks[0], backend=backend)
    for compiled in (torch.compile(model, backend=backend), in_place, part):
        torch.compiler.reset()
        traces.clear()
        with torch.no_grad():
            compiled(batches[0][0])  # traced before there are hooks
            assert len(traces) == 1
            assert_same(measure(compiled, *batches), expected)
            assert len(traces) == 1
            torch.compiler.reset()
            compiled(batches[0][0])
        assert len(traces) == 2  # compiled again: the stance is as before


def test_a_loop_that_calls_the_compiled_model_is_seen_inside():
    model, ((inputs, labels), *_) = ResidualNet().eval(), make_batches()
    expected, traces = measure(model, (inputs, labels)), []

    def backend(graph, example_inputs):
        traces.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    with torch.no_grad(), LayerProbe(compiled, 3) as probe:
        for _ in range(2):
            probe.scatters.clear()
            with probe.batch(labels):
                compiled(inputs)
            assert_same(probe.scatters, expected)
            assert not traces


def test_fused_transformer_layers_with_padding():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = model

        def forward(self, tokens, padding):
            return self.encoder(tokens, src_key_padding_mask=padding)

    tokens, padding = torch.randn(6, 5, 8), torch.arange(5) >= torch.tensor([[5, 4, 3] * 2]).T
    labels = torch.arange(6) % 2
    with torch.no_grad(), LayerProbe(Classifier(), 2, reduce="mean") as probe:
        probe((tokens, padding), labels, mask=~padding)
    assert list(probe.scatters) == ["input", "encoder.layers.0", "encoder.layers.1"]
    assert torch.backends.mha.get_fastpath_enabled()
    weights = (~padding).double() / (~padding).sum(dim=1, keepdim=True)
    expected = class_scatter(torch.einsum("nt,ntc->nc", weights, tokens.double()), labels)
    assert_same({"input": probe.scatters["input"]}, {"input": expected})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_outputs_are_taken_as_they_are(dtype):
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).eval()
    ((inputs, labels), *_) = make_batches()
    with torch.autocast("cpu", dtype), torch.no_grad():
        scatters = measure(model, (inputs, labels), full=True)
        hidden = model[0](inputs)
    assert hidden.dtype == dtype
    assert_same({"0": scatters["0"]}, {"0": class_scatter(hidden, labels, full=True)})
    # Products of autocast would have lost three digits.
    within = class_scatter(inputs.double(), labels, full=True).within
    torch.testing.assert_close(scatters["input"].within, within, rtol=1e-5, atol=1e-6)


def test_states_made_in_inference_mode_can_be_written_outside():
    model, batches = ResidualNet().eval(), make_batches()
    with LayerProbe(model, 3) as probe:
        with torch.inference_mode():
            probe(*batches[0])
        probe(*batches[1])
    assert_same(probe.scatters, measure(model, *batches[:2]))


def test_channels_last_gives_the_same_states():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    images, labels = torch.randn(6, 3, 6, 6), torch.arange(6) % 3
    for reduce in ("flatten", "mean", "tokens"):
        expected = measure(model, (images, labels), reduce=reduce)
        last = images.to(memory_format=torch.channels_last)
        assert_same(measure(model, (last, labels), reduce=reduce), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated, and in use
def test_quantised_and_parametrised_models():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model)
    batches = make_batches()
    expected = {
        "input": class_scatter(batches[0][0], batches[0][1]),
        "1": class_scatter(quantised[1](quantised[0](batches[0][0])), batches[0][1]),
    }
    assert_same(measure(quantised, batches[0]), expected)
    nn.utils.parametrizations.spectral_norm(model[0])
    assert list(measure(model, *batches)) == ["input", "1"]
