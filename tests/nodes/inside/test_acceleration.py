"""Exact accelerations in the host: the same clip, nothing compiled twice, and nothing left behind."""

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import CallbacksMP
from comfy.weight_adapter import LoRAAdapter
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_custom_sampler import Guider_DualCFG

import nodes


class CountingBackend:
    """torch.compile's: runs what it gets as it is, and counts how often it gets something."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def accelerated(pack):
    """A MODEL with switches of the settings on."""
    host = pack.module("nodes.host_acceleration")
    return lambda model, **switches: host.accelerate(model, host.Acceleration(**switches))


@pytest.fixture
def compiled(pack, accelerated):
    """A MODEL whose blocks are compiled by a backend."""
    params = pack.module("followclick_core.acceleration.compiled").CompileParams

    def compile_with(model, backend, any_shape=True, **more):
        return accelerated(model, compiled=params(any_shape=any_shape, backend=backend), **more)

    return compile_with


@pytest.fixture(scope="module")
def backend():
    """One for all tests: what is compiled with it serves them all."""
    return CountingBackend()


@pytest.fixture(scope="module")
def clip(pack, graph):
    with torch.inference_mode():
        return pack.sample_graph(graph, steps=3)


def assert_untouched(graph):
    """No layer of the UNet computes by anything else than its class."""
    for layer in graph.model.model.diffusion_model.modules():
        assert "forward" not in vars(layer) and "kept_projection" not in vars(layer)


def test_nothing_is_compiled_twice_for_other_prompts_magnitudes_lengths_sizes_and_weights(
    pack, demo, graph, picture, square, compiled, gpu_attention, backend
):
    plain = graph.model
    model = compiled(plain, backend)

    def same_clip(model, plain, prompt="run", magnitude=6.0, image=picture, mask=square, length=4, lora=0.0):
        conditioned = pack.first_frame(demo, image, pack.regions(demo, mask, prompt, magnitude), length)
        model, plain = (with_lora(each, lora) if lora else each for each in (model, plain))
        found, expected = (pack.sample(each, *conditioned, steps=1) for each in (model, plain))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

    same_clip(model, plain)
    first = backend.graphs
    blocks = pack.module("nodes.host_acceleration")._blocks
    each = [*blocks(graph.model.model.diffusion_model), *blocks(demo.motion_model.model)]
    kinds = {(type(block), *(weight.shape for weight in block.parameters())) for block, _ in each}
    assert first == len(kinds) < len(each)
    same_clip(model, plain, prompt="jump")
    same_clip(model, plain, magnitude=15.0)
    same_clip(model, plain, length=6)
    same_clip(model, plain, image=picture[:, :64], mask=square[:, :64])
    same_clip(model, plain, image=picture[:, :, :96], mask=square[:, :, :96])  # height and width are equal
    same_clip(model, plain, lora=0.5)
    again = pack.run("ApplyMotionModel", model=pack.run("LoadDemoModel")[0], motion_model=demo.motion_model)[0]
    same_clip(compiled(again, backend), again)
    assert backend.graphs == first
    assert_untouched(graph)


def with_lora(model, strength):
    key = "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"
    width = model.model.state_dict()[key].shape[0]
    up, down = torch.randn(width, 2, generator=torch.Generator().manual_seed(0)), torch.ones(2, width)
    patched = model.clone()
    assert patched.add_patches({key: LoRAAdapter(set(), (up, down, None, None, None, None))}, strength)
    return patched


def test_sizes_compiled_one_by_one_are_each_compiled_once(pack, demo, graph, picture, square, compiled, gpu_attention):
    backend = CountingBackend()
    model = compiled(graph.model, backend, any_shape=False)
    small = pack.first_frame(demo, picture, pack.regions(demo, square), length=2)
    counts = []
    for conditioned in (small, (graph.positive, graph.negative, graph.latent), small):
        found = pack.sample(model, *conditioned, steps=1)
        torch.testing.assert_close(found, pack.sample(graph.model, *conditioned, steps=1), rtol=1e-3, atol=1e-4)
        counts.append(backend.graphs)
    assert counts[1] == 2 * counts[0] and counts[2] == counts[1]


def test_blended_regions_run_uncompiled(pack, demo, graph, picture, square, compiled):
    """Each block has hooks of its own then."""
    two = pack.regions(demo, square.flip(-1), regions=pack.regions(demo, square), prompt="jump", magnitude=14.0)
    conditioned, backend = pack.first_frame(demo, picture, two), CountingBackend()
    found = pack.sample(compiled(graph.model, backend), *conditioned)
    assert torch.equal(found, pack.sample(graph.model, *conditioned)) and not backend.graphs


def test_blocks_that_are_hooked_inside_run_uncompiled(pack, graph, compiled, clip, gpu_attention, backend):
    """As ResBlocks are where norms run over whole clips (AnimateDiff v1, PIA): compiled code would not see it."""
    model = compiled(graph.model, backend)
    pack.sample_graph(graph, model=model, steps=3)
    handles = [
        layer.register_forward_hook(lambda _layer, _inputs, output: 1.5 * output)
        for layer in graph.model.model.diffusion_model.modules()
        if isinstance(layer, torch.nn.GroupNorm)
    ]
    try:
        found = pack.sample_graph(graph, model=model, steps=3)
        expected = pack.sample_graph(graph, steps=3)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, clip, atol=1e-2)


def test_channels_last_is_the_same_clip_and_is_undone(pack, graph, accelerated, clip):
    conv = graph.model.model.diffusion_model.input_blocks[1][0].in_layers[2]
    seen = []
    handle = conv.register_forward_hook(
        lambda _l, _i, output: seen.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    try:
        found = pack.sample_graph(graph, model=accelerated(graph.model, channels_last=True), steps=3)
    finally:
        handle.remove()
    torch.testing.assert_close(found, clip, rtol=1e-3, atol=1e-4)
    assert seen and all(seen) and conv.weight.is_contiguous()
    assert torch.equal(pack.sample_graph(graph, steps=3), clip)


class Projections:
    """Counts the calls of the UNet's own text projections while the block runs."""

    def __init__(self, model):
        self.layers = [
            layer
            for name, layer in model.model.diffusion_model.named_modules()
            if name.endswith(("attn2.to_k", "attn2.to_v"))
        ]
        self.rows = []

    def __enter__(self):
        classes = {type(layer) for layer in self.layers}
        self.patch = pytest.MonkeyPatch()
        known = {id(layer) for layer in self.layers}
        for kind in classes:
            self.patch.setattr(kind, "forward", self._counting(kind.forward, known))
        return self

    def _counting(self, forward, known):
        def counted(layer, x, *args, **kwargs):
            if id(layer) in known:
                self.rows.append(len(x))
            return forward(layer, x, *args, **kwargs)

        return counted

    def __exit__(self, *_):
        self.patch.undo()


@pytest.mark.parametrize("windows", [False, True])
def test_the_text_is_projected_once_per_sampling(pack, demo, graph, picture, square, accelerated, windows):
    conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    model = graph.model
    if windows:
        model = pack.run("ContextWindows", model=model, context_length=4, context_overlap=2, loop=False)[0]
    expected = pack.sample(model, *conditioned, steps=3)
    model = accelerated(model, text_keys=True)
    with Projections(model) as counted:
        assert torch.equal(pack.sample(model, *conditioned, steps=3), expected)
    assert len(counted.rows) == len(counted.layers), "all windows have one text"
    assert_untouched(graph)


def test_text_keys_follow_the_text_wherever_it_changes(pack, demo, graph, accelerated, picture, square):
    """Entries that start later, split calls, a prompt for each frame, patches, LoRAs and another sampling's text."""
    model = accelerated(graph.model, text_keys=True)

    def same(plain=graph.model, faster=model, positive=graph.positive, negative=graph.negative, **more):
        expected = pack.sample(plain, positive, negative, graph.latent, steps=3, **more)
        assert torch.equal(pack.sample(faster, positive, negative, graph.latent, steps=3, **more), expected)
        return expected

    first = same()
    early, late = (
        nodes.ConditioningSetTimestepRange().set_range(entries, *part)[0]
        for entries, part in ((graph.positive, (0.0, 0.5)), (with_text(graph.positive, 2.0), (0.5, 1.0)))
    )
    assert not torch.equal(same(positive=early + late), first)
    frames = torch.linspace(0.5, 1.5, 4)[:, None, None]
    assert not torch.equal(same(positive=with_text(graph.positive, frames)), first)
    two = pack.regions(demo, square.flip(-1), regions=pack.regions(demo, square), prompt="jump", magnitude=14.0)
    positive, negative, _ = pack.first_frame(demo, picture, two)
    same(positive=positive, negative=negative)
    assert not torch.equal(same(with_lora(graph.model, 1.0), with_lora(model, 1.0)), first)
    patched, faster = (each.clone() for each in (graph.model, model))
    for each in (patched, faster):
        each.set_model_attn2_patch(lambda n, context, value, _options: (n, 0.5 * context, 0.5 * value))
    assert not torch.equal(same(patched, faster), first)


def with_text(entries, factor):
    return [[factor * text, options] for text, options in entries]


def test_text_keys_change_during_a_sampling_if_the_text_does(pack, graph, accelerated):
    """Other packs exchange the text of an entry from step to step."""

    def louder(apply_model, call):
        call["c"]["c_crossattn"] = call["c"]["c_crossattn"] * call["timestep"].clamp(max=2)[:, None, None]
        return apply_model(call["input"], call["timestep"], **call["c"])

    plain, faster = graph.model.clone(), accelerated(graph.model, text_keys=True)
    for each in (plain, faster):
        each.set_model_unet_function_wrapper(louder)
    expected = pack.sample_graph(graph, model=plain, steps=3)
    assert torch.equal(pack.sample_graph(graph, model=faster, steps=3), expected)


def test_text_keys_and_compiled_blocks_go_together(
    pack, demo, graph, picture, square, compiled, gpu_attention, backend
):
    model = compiled(graph.model, backend, text_keys=True)
    counts = []
    for prompt, length in (("run", 4), ("jump", 6)):
        conditioned = pack.first_frame(demo, picture, pack.regions(demo, square, prompt), length)
        expected = pack.sample(graph.model, *conditioned)
        with Projections(graph.model) as counted:
            found = pack.sample(model, *conditioned)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        assert len(counted.rows) == len(counted.layers)
        counts.append(backend.graphs)
    assert counts[0] == counts[1]


def test_guidance_in_an_interval_really_leaves_the_unconditional_pass_out(pack, graph, accelerated, clip):
    batches = []
    model = accelerated(graph.model, guidance=(0.3, 0.7))

    def count(apply_model, call):
        batches.append(len(call["cond_or_uncond"]))
        return apply_model(call["input"], call["timestep"], **call["c"])

    model.set_model_unet_function_wrapper(count)
    limited = pack.sample_graph(graph, model=model, steps=10)
    # Noise levels of 'simple' begin at the share 0 and go on in tenths.
    assert batches == [1, 1, 1, 2, 2, 2, 2, 1, 1, 1] or batches == [1, 1, 1, 2, 2, 2, 2, 2, 1, 1], batches
    assert not torch.allclose(limited, pack.sample_graph(graph, steps=10), atol=1e-2)
    nowhere = accelerated(graph.model, guidance=(1.0, 1.0))
    assert torch.equal(pack.sample_graph(graph, model=nowhere, steps=3), pack.sample_graph(graph, steps=3, cfg=1.0))
    everywhere = accelerated(graph.model, guidance=(0.0, 1.0))
    assert torch.equal(pack.sample_graph(graph, model=everywhere, steps=3), clip)


def test_a_guider_that_guides_otherwise_is_refused(graph, accelerated):
    guider = Guider_DualCFG(accelerated(graph.model, guidance=(0.2, 0.8)))
    guider.set_conds(graph.positive, graph.positive, graph.negative)
    guider.set_cfg(2.0, 3.0)
    latent = graph.latent["samples"]
    sigmas = comfy.samplers.calculate_sigmas(graph.model.get_model_object("model_sampling"), "simple", 1)
    with pytest.raises(ValueError, match="guides in a way of its own"):
        guider.sample(latent + 1, latent, comfy.samplers.sampler_object("euler"), sigmas, seed=0)


@pytest.mark.parametrize("node", ["AccelerateExactly", "AccelerateApproximately"])
def test_the_hosts_whole_compilation_is_refused(pack, graph, node):
    more = {"text_keys": True} if node == "AccelerateExactly" else {}
    model = pack.run(node, model=graph.model, **more)[0]
    set_torch_compile_wrapper(model, backend="eager")
    with pytest.raises(ValueError, match="leaves no place for Accelerate Sampling"):
        pack.sample_graph(graph, model=model)


@pytest.mark.parametrize("node", ["AccelerateExactly", "AccelerateApproximately"])
def test_models_that_are_no_stable_diffusion_unet_are_refused(pack, graph, node):
    other = graph.model.clone()
    other.model = torch.nn.Module()
    other.model.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="this MODEL is a Linear"):
        pack.run(node, model=other)


def test_the_node_is_off_until_something_is_switched_on(pack, graph, clip):
    off = pack.run("AccelerateExactly", model=graph.model)[0]
    assert {kind: list(keys) for kind, keys in off.wrappers.items()} == {
        kind: list(keys) for kind, keys in graph.model.wrappers.items()
    }
    on = pack.run("AccelerateExactly", model=graph.model, text_keys=True, channels_last=True)[0]
    torch.testing.assert_close(pack.sample_graph(graph, model=on, steps=3), clip, rtol=1e-3, atol=1e-4)
    off_again = pack.run("AccelerateExactly", model=on)[0]
    assert torch.equal(pack.sample_graph(graph, model=off_again, steps=3), clip)
    with pytest.raises(ValueError, match="from 0.8 to 0.2"):
        pack.run("AccelerateExactly", model=graph.model, guidance_start=0.8, guidance_end=0.2)


@pytest.fixture
def recorder(pack, monkeypatch):
    """In place of a GPU's: replays by running the function on the very tensors that were recorded."""
    host, made = pack.module("nodes.host_acceleration"), []

    def record(function, inputs):
        made.append([None if each is None else each.shape for each in inputs])
        return lambda: function(inputs)

    monkeypatch.setattr(host, "record_cuda_graph", record)
    monkeypatch.setattr(host, "_may_record", lambda *_: True)
    return made


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("windows", [False, True])
def test_recorded_calls_are_told_everything_anew(
    pack, demo, graph, picture, square, accelerated, recorder, windows, keys
):
    conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    model = graph.model
    if windows:
        model = pack.run("ContextWindows", model=model, context_length=4, context_overlap=2, loop=False)[0]
    faster = accelerated(model, cuda_graphs=True, text_keys=keys)
    expected = pack.sample(model, *conditioned, steps=5)
    assert torch.equal(pack.sample(faster, *conditioned, steps=5), expected)
    assert len(recorder) == 1, "one kind of call, recorded once"


def test_windows_that_read_other_texts_are_recorded_apart(pack, demo, graph, picture, square, accelerated, recorder):
    """A replay reads what was kept of the text where it lay when it was recorded."""
    positive, negative, latent = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    positive = with_text(positive, torch.linspace(0.5, 1.5, 6)[:, None, None])
    model = pack.run("ContextWindows", model=graph.model, context_length=4, context_overlap=2, loop=False)[0]
    faster = accelerated(model, cuda_graphs=True, text_keys=True)
    expected = pack.sample(model, positive, negative, latent, steps=5)
    assert torch.equal(pack.sample(faster, positive, negative, latent, steps=5), expected)
    assert len(recorder) == 2


def test_without_cuda_nothing_is_recorded(pack, graph, accelerated, clip, monkeypatch):
    host, said = pack.module("nodes.host_acceleration"), []
    monkeypatch.setattr(host.logger, "info", lambda text, *values: said.append(text % values))
    found = pack.sample_graph(graph, model=accelerated(graph.model, cuda_graphs=True), steps=3)
    assert torch.equal(found, clip) and said == ["Sampling runs without CUDA graphs: there is no CUDA device."]


def test_a_model_that_the_host_streams_is_neither_compiled_nor_laid_out_anew(pack, graph, compiled, clip, monkeypatch):
    backend, offered = CountingBackend(), []
    host = pack.module("nodes.host_acceleration")
    monkeypatch.setattr(host, "channels_last", lambda unet: offered.append(unet))
    model = compiled(graph.model, backend, channels_last=True, cuda_graphs=True, text_keys=True)
    # What the host notes when not all weights fit; it is noted after they are loaded.
    model.add_callback(CallbacksMP.ON_PRE_RUN, lambda patcher: setattr(patcher.model, "model_lowvram", True))
    model.add_callback(CallbacksMP.ON_CLEANUP, lambda patcher: setattr(patcher.model, "model_lowvram", False))
    assert torch.equal(pack.sample_graph(graph, model=model, steps=3), clip)
    assert not backend.graphs and not offered


def test_pictures_without_a_motion_model_are_accelerated_too(pack, demo, graph, compiled, gpu_attention, backend):
    text, other = pack.text(demo, "run"), pack.text(demo, "jump")
    latent = {"samples": torch.zeros(2, 4, 12, 12)}
    expected = pack.sample(demo.model, text, other, latent)
    model = compiled(demo.model, backend, text_keys=True)
    torch.testing.assert_close(pack.sample(model, text, other, latent), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(pack.sample(demo.model, text, other, latent), expected)


def test_layers_that_another_pack_computes_in_its_own_way_are_left_to_it(pack, graph, compiled, gpu_attention, backend):
    unet = graph.model.model.diffusion_model
    projection = unet.input_blocks[3][1].transformer_blocks[0].attn2.to_k
    layers = [(projection, 2.0), (unet.input_blocks[1][0], 1.5)]
    for layer, factor in layers:
        own = type(layer).forward.__get__(layer)
        layer.forward = lambda *inputs, own=own, factor=factor: factor * own(*inputs)
    try:
        expected = pack.sample_graph(graph)
        found = pack.sample_graph(graph, model=compiled(graph.model, backend, text_keys=True))
        assert all("forward" in vars(layer) for layer, _ in layers)
    finally:
        for layer, _ in layers:
            del layer.forward
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, pack.sample_graph(graph), atol=1e-2)


def test_nothing_stays_after_a_failure(pack, graph, accelerated, clip):
    model = accelerated(graph.model, channels_last=True, text_keys=True)

    def fail(_apply_model, _call):
        raise InterruptedError("cancelled")

    model.set_model_unet_function_wrapper(fail)
    with pytest.raises(InterruptedError):
        pack.sample_graph(graph, model=model)
    assert_untouched(graph)
    assert torch.equal(pack.sample_graph(graph, steps=3), clip)


def test_a_feed_forward_in_pieces_is_compiled_for_a_range_of_sizes(
    pack, demo, graph, picture, square, compiled, gpu_attention, backend, monkeypatch
):
    monkeypatch.setattr(pack.module("followclick_core.models.motion_module"), "MAX_FEED_FORWARD_BYTES", 2**20)
    model, counts = compiled(graph.model, backend), [backend.graphs]
    for length in (6, 7):
        conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length)
        found = pack.sample(model, *conditioned, steps=1)
        torch.testing.assert_close(found, pack.sample(graph.model, *conditioned, steps=1), rtol=1e-3, atol=1e-4)
        counts.append(backend.graphs)
    assert counts[0] < counts[1] == counts[2]
