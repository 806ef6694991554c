"""The host's transformers in less memory: the same clip, by weights as the host has them, and nothing left behind."""

import weakref

import comfy.ldm.modules.attention as host_attention
import comfy.ops
import pytest
import torch
from comfy.patcher_extension import CallbacksMP
from comfy.weight_adapter import LoRAAdapter

LIMIT = 2**16  # of the clips here several pieces at every resolution


class CountingBackend:
    """torch.compile's: runs what it gets as it is, and notes the operators of each graph."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, _inputs):
        self.graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    @property
    def with_operator(self):
        return sum(any("gated_feed_forward" in name for name in names) for names in self.graphs)


@pytest.fixture
def feed_forward(pack, monkeypatch):
    """The core's module, with a small limit."""
    module = pack.module("followclick_core.acceleration.feed_forward")
    monkeypatch.setattr(module, "MAX_BYTES", LIMIT)
    return module


@pytest.fixture
def fused(pack, feed_forward):
    """A MODEL with the switch and others on."""
    host = pack.module("nodes.host_acceleration")
    return lambda model, **more: host.accelerate(model, host.Acceleration(fused_feed_forward=True, **more))


@pytest.fixture(scope="module")
def clip(pack, graph):
    with torch.inference_mode():
        return pack.sample_graph(graph, steps=2)


class Widths:
    """Bytes of what each of the host's gated layers gives out, and of which their own forwards were called."""

    def __init__(self, monkeypatch):
        self.sizes, gate, whole = [], host_attention.GEGLU.forward, host_attention.FeedForward.forward
        self.whole = 0

        def gated(layer, x):
            out = gate(layer, x)
            self.sizes.append(2 * out.nbytes)
            return out

        def forward(layer, x):
            self.whole += 1
            return whole(layer, x)

        monkeypatch.setattr(host_attention.GEGLU, "forward", gated)
        monkeypatch.setattr(host_attention.FeedForward, "forward", forward)


def assert_untouched(graph):
    assert not any("forward" in vars(layer) for layer in graph.model.model.diffusion_model.modules())


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def with_lora(model, strength):
    key = "diffusion_model.input_blocks.3.1.transformer_blocks.0.ff.net.0.proj.weight"
    height, width = model.model.state_dict()[key].shape
    up, down = torch.randn(height, 2, generator=torch.Generator().manual_seed(0)), torch.ones(2, width)
    patched = model.clone()
    assert patched.add_patches({key: LoRAAdapter(set(), (up, down, None, None, None, None))}, strength)
    return patched


def test_every_feed_forward_of_the_unet_runs_in_pieces_and_only_where_it_was_asked_for(
    pack, graph, fused, clip, monkeypatch
):
    model, computed = fused(graph.model), Widths(monkeypatch)
    module = pack.module("followclick_core.acceleration.feed_forward")
    calls, operator = [], module.gated_feed_forward
    monkeypatch.setattr(module, "gated_feed_forward", lambda *inputs: calls.append(inputs[0]) or operator(*inputs))
    blocks = [
        layer
        for layer in graph.model.model.diffusion_model.modules()
        if isinstance(layer, host_attention.BasicTransformerBlock)
    ]
    close(pack.sample_graph(graph, model=model, steps=2), clip)
    assert blocks and len(calls) == 2 * len(blocks) and not computed.whole
    assert max(8 * x.nbytes for x in calls) > 8 * LIMIT, "so there were pieces"
    assert_untouched(graph)
    assert torch.equal(pack.sample_graph(graph, steps=2), clip) and computed.whole == len(calls)


def test_attentions_let_go_of_what_they_have_read(pack, graph, fused, clip, monkeypatch):
    """The host's hold queries, keys and values until their last layer returns."""
    attention, held = graph.model.model.diffusion_model.input_blocks[3][1].transformer_blocks[0].attn1, []
    made = []
    handles = [
        getattr(attention, name).register_forward_hook(lambda _l, _i, output: made.append(weakref.ref(output)))
        for name in ("to_q", "to_k", "to_v")
    ]
    linear = torch.nn.Linear.forward

    def forward(layer, x):
        if layer is attention.to_out[0]:
            held.append(sum(reference() is not None for reference in made[-3:]))
        return linear(layer, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    try:
        assert torch.equal(pack.sample_graph(graph, steps=2), clip) and held == [3, 3]
        close(pack.sample_graph(graph, model=fused(graph.model), steps=2), clip)
    finally:
        for handle in handles:
            handle.remove()
    assert held == [3, 3, 0, 0] and len(made) == 12


def test_the_node_has_the_switch_and_old_graphs_go_without(pack, graph, feed_forward, clip, monkeypatch):
    inputs = pack.node("AccelerateExactly").define_schema().inputs
    assert inputs[-1].id == "fused_feed_forward" and inputs[-1].optional, "saved workflows keep their values"
    model = pack.run("AccelerateExactly", model=graph.model, fused_feed_forward=True)[0]
    computed = Widths(monkeypatch)
    close(pack.sample_graph(graph, model=model, steps=2), clip)
    assert not computed.whole
    off = pack.run("AccelerateExactly", model=model)[0]
    assert torch.equal(pack.sample_graph(graph, model=off, steps=2), clip) and computed.whole


def test_loras_are_in_the_weights_that_are_read(pack, graph, fused, clip):
    for strength in (0.5, 1.0):
        expected = pack.sample_graph(graph, model=with_lora(graph.model, strength), steps=2)
        close(pack.sample_graph(graph, model=with_lora(fused(graph.model), strength), steps=2), expected)
        assert not torch.allclose(expected, clip, atol=1e-2)
    close(pack.sample_graph(graph, model=fused(graph.model), steps=2), clip)


def test_weights_that_change_between_steps_are_followed(pack, graph, fused, clip):
    """As by the host's hooks of LoRAs, which write into the weight where it lies, or give the layer another."""
    layer = graph.model.model.diffusion_model.input_blocks[3][1].transformer_blocks[0].ff.net[2]
    before = layer.weight

    def sample(model):
        def louder(apply_model, call):
            layer.weight = torch.nn.Parameter(1.5 * layer.weight, requires_grad=False)
            layer.weight.data.mul_(1.1)
            return apply_model(call["input"], call["timestep"], **call["c"])

        changing = model.clone()
        changing.set_model_unet_function_wrapper(louder)
        try:
            return pack.sample_graph(graph, model=changing, steps=2)
        finally:
            layer.weight = before

    expected = sample(graph.model)
    close(sample(fused(graph.model)), expected)
    assert not torch.allclose(expected, clip, atol=1e-2)


def test_weights_that_the_host_casts_or_patches_at_each_call_are_taken_by_its_own_function(
    pack, graph, fused, clip, monkeypatch
):
    """As with low memory, where LoRAs are added to weights that come from the CPU when they are used."""
    layers = [
        layer
        for block in graph.model.model.diffusion_model.modules()
        if isinstance(block, host_attention.FeedForward)
        for layer in (block.net[0].proj, block.net[2])
    ]
    before = [(layer, layer.weight) for layer in layers]

    def cast(patcher):
        for index, layer in enumerate(layers):
            layer.comfy_cast_weights, layer.weight_function = True, [lambda w: 1.25 * w] if index % 2 else []
            layer.bias_function = [lambda b: b + 0.125] if index % 3 else []
            layer.weight = torch.nn.Parameter(layer.weight.double(), requires_grad=False)
        patcher.model.model_lowvram = True

    def back(patcher):
        patcher.model.model_lowvram = False
        for layer, weight in before:
            layer.weight = weight
            for name in ("comfy_cast_weights", "weight_function", "bias_function"):
                if name in vars(layer):
                    delattr(layer, name)

    def sample(model):
        casting = model.clone()
        casting.add_callback(CallbacksMP.ON_PRE_RUN, cast)
        casting.add_callback(CallbacksMP.ON_CLEANUP, back)
        return pack.sample_graph(graph, model=casting, steps=2)

    expected, computed = sample(graph.model), Widths(monkeypatch)
    close(sample(fused(graph.model)), expected)
    assert not computed.whole and not torch.allclose(expected, clip, atol=1e-2)
    close(pack.sample_graph(graph, model=fused(graph.model), steps=2), clip)


class Doubled(comfy.ops.manual_cast.Linear):
    """A layer that keeps its weight in a way of its own, as those of packed files."""

    def forward_comfy_cast_weights(self, x):
        return torch.nn.functional.linear(x, 2 * self.weight, self.bias)


class PackedOps(comfy.ops.manual_cast):
    Linear = Doubled


def block_of(operations, dtype=torch.float32):
    block = host_attention.BasicTransformerBlock(32, 2, 16, context_dim=8, dtype=dtype, operations=operations)
    for name, parameter in block.named_parameters():
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 8
        parameter.data = 1 + values if "scale" in name else values.to(parameter.dtype)
    return block.eval()


@pytest.mark.parametrize(
    ("operations", "dtype", "common"),
    [
        (comfy.ops.disable_weight_init, torch.float32, True),
        (comfy.ops.manual_cast, torch.float16, True),
        (comfy.ops.manual_cast, torch.float8_e4m3fn, True),
        (PackedOps, torch.float32, False),
        (comfy.ops.fp8_ops, torch.float8_e4m3fn, False),
        (comfy.ops.scaled_fp8_ops(), torch.float8_e4m3fn, False),
    ],
)
def test_layers_of_every_kind_compute_what_they_do_whole(pack, feed_forward, operations, dtype, common, monkeypatch):
    block, x = block_of(operations, dtype), torch.randn(2, 90, 32)
    expected, computed = block.ff(x.clone()), Widths(monkeypatch)
    with pack.module("nodes.host_feed_forward").fused_feed_forwards(torch.nn.ModuleList([block])):
        found = block.ff(x.clone())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not computed.whole
    assert bool(computed.sizes) != common, "those that are not common run by their own forwards, in pieces"
    assert all(size <= LIMIT for size in computed.sizes)


def test_gradients_go_through_the_layers_themselves(pack, feed_forward, monkeypatch):
    with torch.inference_mode(False), torch.enable_grad():
        for operations in (comfy.ops.disable_weight_init, PackedOps):
            block, x = block_of(operations), torch.randn(2, 90, 32, requires_grad=True)
            with pack.module("nodes.host_feed_forward").fused_feed_forwards(torch.nn.ModuleList([block])):
                found = torch.autograd.grad(block.ff(x).sum(), x)
            assert torch.equal(found[0], torch.autograd.grad(block.ff(x).sum(), x)[0])


def test_compiled_blocks_have_it_as_one_operator_and_forget_it_when_it_is_off(
    pack, demo, graph, picture, square, fused, gpu_attention
):
    host, backend = pack.module("nodes.host_acceleration"), CountingBackend()
    params = pack.module("followclick_core.acceleration.compiled").CompileParams(backend=backend)
    on = fused(graph.model, compiled=params, text_keys=True)
    off = host.accelerate(graph.model, host.Acceleration(compiled=params, text_keys=True))
    counts = []
    # Pieces of five frames have sizes at which some processors add in another order; uncompiled they do too. Where the
    # UNet's result is rounded to half precision, a few numbers of it then fall to the other side.
    uncompiled = fused(graph.model, text_keys=True)
    plain = graph.model
    for model, length, reference in (
        (off, 4, plain),
        (on, 4, plain),
        (on, 6, plain),
        (off, 6, plain),
        (on, 5, uncompiled),
    ):
        conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length)
        found = pack.sample(model, *conditioned, steps=1)
        close(found, pack.sample(reference, *conditioned, steps=1))
        alike = torch.isclose(found, pack.sample(plain, *conditioned, steps=1), rtol=1e-3, atol=1e-4)
        assert alike.float().mean() > 0.99
        counts.append((len(backend.graphs), backend.with_operator))
    assert counts[0][1] == 0 < counts[1][1], counts
    assert counts[1] == counts[2] == counts[3] == counts[4], "nothing is compiled again for other numbers of pieces"
    assert_untouched(graph)


def test_all_accelerations_go_together(pack, graph, fused, clip, monkeypatch):
    host, made = pack.module("nodes.host_acceleration"), []

    def record(function, inputs):
        made.append(len(inputs))
        return lambda: function(inputs)

    monkeypatch.setattr(host, "record_cuda_graph", record)
    monkeypatch.setattr(host, "_may_record", lambda *_: True)
    model = fused(graph.model, channels_last=True, cuda_graphs=True, text_keys=True)
    close(pack.sample_graph(graph, model=model, steps=4), pack.sample_graph(graph, steps=4))
    assert len(made) == 1
    assert_untouched(graph)


def test_it_goes_with_reused_features_and_several_regions(pack, demo, graph, picture, square, fused, monkeypatch):
    inputs = {"cache_interval": 2, "cache_depth": 0, "only_region": True, "context": 1.5}
    reusing = pack.run("AccelerateApproximately", model=graph.model, **inputs)[0]
    exact, computed = pack.sample_graph(graph, model=reusing, steps=4), Widths(monkeypatch)
    close(pack.sample_graph(graph, model=fused(reusing), steps=4), exact)
    again = pack.run("AccelerateApproximately", model=fused(graph.model), **inputs)[0]
    close(pack.sample_graph(graph, model=again, steps=4), exact)
    two = pack.regions(demo, square.flip(-1), regions=pack.regions(demo, square), prompt="jump", magnitude=14.0)
    conditioned = pack.first_frame(demo, picture, two)
    found = pack.sample(fused(graph.model), *conditioned)
    assert not computed.whole
    close(found, pack.sample(graph.model, *conditioned))


def test_layers_that_another_pack_computes_or_watches_are_left_to_it(pack, graph, fused, monkeypatch):
    blocks = [
        layer
        for layer in graph.model.model.diffusion_model.modules()
        if isinstance(layer, host_attention.BasicTransformerBlock)
    ]
    own = type(blocks[0].ff).forward.__get__(blocks[0].ff)
    blocks[0].ff.forward = lambda x: 1.5 * own(x)
    handle = blocks[1].ff.net[2].register_forward_hook(lambda _layer, _inputs, output: 0.5 * output)
    try:
        expected, computed = pack.sample_graph(graph), Widths(monkeypatch)
        close(pack.sample_graph(graph, model=fused(graph.model)), expected)
        assert computed.whole and "forward" in vars(blocks[0].ff)
    finally:
        handle.remove()
        del blocks[0].ff.forward
    assert not torch.allclose(expected, pack.sample_graph(graph), atol=1e-2)


def test_nothing_stays_after_a_failure(pack, graph, fused, clip):
    model = fused(graph.model)

    def fail(_apply_model, _call):
        raise InterruptedError("cancelled")

    model.set_model_unet_function_wrapper(fail)
    with pytest.raises(InterruptedError):
        pack.sample_graph(graph, model=model)
    assert_untouched(graph)
    assert torch.equal(pack.sample_graph(graph, steps=2), clip)
