"""Joining a motion model to a UNet: what changes, what must not, and what is left behind."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from followclick_core.models.attach import Attachment, MotionConditioning, attach
from followclick_core.models.motion_model import MotionModel, MotionParams, load_motion_model, save_motion_model
from followclick_core.models.motion_module import TemporalAttention
from followclick_core.models.unet import UNet, UNetParams
from followclick_core.presets import get_preset

KEYS = Path(__file__).parents[3] / "shared" / "data" / "checkpoint_keys"
TINY = UNetParams(32, (1, 2), 1, (0, 1), 1, num_heads=2, context_dim=16)
TINY_MOTION = MotionParams(32, (1, 2), 1, num_heads=2, context_dim=16)
CLIPS, FRAMES = 2, 3


def randomised(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator) + (parameter.data.mean() == 1)
    return module.eval().requires_grad_(False)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def unet():
    return randomised(UNet(TINY))


@pytest.fixture
def motion():
    return randomised(MotionModel(TINY_MOTION))


@pytest.fixture
def call():
    """Arguments of a UNet call for CLIPS clips."""
    x, context = noise(CLIPS * FRAMES, 4, 8, 6), noise(CLIPS, 7, 16, seed=1).repeat_interleave(FRAMES, 0)
    return x, torch.tensor([100, 900]).repeat_interleave(FRAMES), context


def conditioning(**replaced):
    values = {
        "num_frames": FRAMES,
        "context": noise(CLIPS, 5, 16, seed=2),
        "magnitude": torch.tensor([2.0, 9.0]),
        "first_frame": noise(CLIPS, 5, FRAMES, 8, 6, seed=3),
    }
    return MotionConditioning(**(values | replaced))


def hooks(module):
    return [
        hook
        for layer in module.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        for hook in getattr(layer, kind).values()
    ]


def run(unet, motion, call, condition):
    attachment = attach(unet, motion)
    try:
        with attachment.conditioned(condition):
            return unet(*call)
    finally:
        attachment.detach()


def test_a_new_motion_model_changes_no_bit(unet, call):
    plain = unet(*call)
    motion = MotionModel(TINY_MOTION).eval()
    attachment = attach(unet, motion)
    ran = []
    for module in motion.modules():
        if isinstance(module, TemporalAttention | nn.Conv2d):
            module.register_forward_hook(lambda *_: ran.append(1))
    with attachment.conditioned(conditioning()):
        assert torch.equal(unet(*call), plain)
    assert ran  # it did take part
    attachment.detach()
    assert torch.equal(unet(*call), plain)


def test_a_trained_motion_model_works_only_inside_conditioned_and_leaves_nothing_after_detach(unet, motion, call):
    plain, keys = unet(*call), list(unet.state_dict())
    attachment = attach(unet, motion)
    assert list(unet.state_dict()) == keys and len(hooks(unet)) > 0
    assert torch.equal(unet(*call), plain)
    with attachment.conditioned(conditioning()):
        animated = unet(*call)
        assert (animated - plain).abs().max() > 1e-2
        assert torch.equal(unet(*call), animated)  # a repeated run is the same
    assert torch.equal(unet(*call), plain)
    attachment.detach()
    attachment.detach()
    assert not hooks(unet)
    assert torch.equal(unet(*call), plain)


def test_hooks_of_others_stay(unet, motion, call):
    mine = unet.input_blocks[0][0].register_forward_hook(lambda _layer, _inputs, output: 2 * output)
    scaled = unet(*call)
    attach(unet, motion).detach()
    assert len(hooks(unet)) == 1 and torch.equal(unet(*call), scaled)
    mine.remove()


def test_an_error_inside_conditioned_restores_the_conditioning_before(unet, motion, call):
    attachment = attach(unet, motion)
    with attachment.conditioned(conditioning()):
        outer = unet(*call)
        with pytest.raises(KeyboardInterrupt), attachment.conditioned(conditioning(magnitude=torch.tensor([0.0, 1.0]))):
            raise KeyboardInterrupt
        assert torch.equal(unet(*call), outer)
    attachment.detach()


def test_two_motion_models_stack(unet, motion, call):
    first, second = attach(unet, motion), attach(unet, MotionModel(TINY_MOTION).eval())
    with first.conditioned(conditioning()), second.conditioned(conditioning()):
        both = unet(*call)
    second.detach()
    with first.conditioned(conditioning()):
        assert torch.equal(unet(*call), both)
    first.detach()


def test_conv9_is_conv4_plus_conv5(unet, motion, call):
    """The first convolution sees [4 noisy | mask | 4 first-frame] channels as one of nine inputs would."""
    x, _t, _context = call
    condition, own, extra = conditioning(), unet.input_blocks[0][0], motion.first_frame_conv
    nine = torch.cat([own.weight, extra.weight], dim=1)
    frames = condition.first_frame.transpose(1, 2).flatten(0, 1)
    expected = F.conv2d(torch.cat([x, frames], dim=1), nine, own.bias, padding=1)
    attachment = attach(unet, motion)
    with attachment.conditioned(condition):
        torch.testing.assert_close(own(x), expected)
    attachment.detach()
    assert nine.shape == (32, 9, 3, 3) and extra.bias is None


def test_the_magnitude_acts_only_through_its_embedding_on_the_time_embedding(unet, motion, call):
    strong, weak = (run(unet, motion, call, conditioning(magnitude=torch.tensor([m, m]))) for m in (9.0, 2.0))
    assert (strong - weak).abs().max() > 1e-3
    # By hand: the same vector, added to the last layer of the time embedding.
    embedding = motion.motion_embedding(torch.tensor([9.0]))[0]
    unet.time_embed[2].bias += embedding
    by_hand = run(unet, motion, call, conditioning(magnitude=None))
    unet.time_embed[2].bias -= embedding
    torch.testing.assert_close(by_hand, strong, atol=1e-5, rtol=1e-4)
    nn.init.zeros_(motion.motion_embedding.linear_2.weight)
    nn.init.zeros_(motion.motion_embedding.linear_2.bias)
    strong, weak = (run(unet, motion, call, conditioning(magnitude=torch.tensor([m, m]))) for m in (9.0, 2.0))
    assert torch.equal(strong, weak)


def test_a_magnitude_belongs_to_its_clip_and_a_curve_to_its_frames(unet, motion, call):
    plain = run(unet, motion, call, conditioning(magnitude=torch.tensor([2.0, 9.0])))
    second = run(unet, motion, call, conditioning(magnitude=torch.tensor([2.0, 4.0])))
    change = (plain - second).abs().amax((1, 2, 3))
    assert change[:FRAMES].max() < 1e-5 < 1e-3 < change[FRAMES:].min()
    curve = run(unet, motion, call, conditioning(magnitude=torch.tensor([[2.0] * FRAMES, [9.0] * FRAMES])))
    torch.testing.assert_close(curve, plain)
    # Without what mixes frames, only the frame whose number differs changes.
    motion.mid_block = None
    motion.up_blocks, motion.down_blocks = nn.ModuleList(), nn.ModuleList()
    flat, bent = (
        run(unet, motion, call, conditioning(magnitude=torch.tensor([[2.0, last, 2.0], [9.0] * 3])))
        for last in (2.0, 8.0)
    )
    change = (flat - bent).abs().amax((1, 2, 3))
    assert change[1] > 1e-3 and change[[0, 2, 3, 4, 5]].max() == 0


@pytest.mark.parametrize("missing", ["context", "magnitude", "first_frame"])
def test_each_part_of_the_conditioning_matters_and_may_be_left_out(unet, motion, call, missing):
    whole = run(unet, motion, call, conditioning())
    assert (run(unet, motion, call, conditioning(**{missing: None})) - whole).abs().max() > 1e-3


def test_the_motion_text_is_projected_once_per_conditioning(unet, motion, call):
    calls = []
    for module in motion.modules():
        if isinstance(module, TemporalAttention) and module.to_k.in_features == 16:
            for layer in (module.to_k, module.to_v):
                layer.register_forward_hook(lambda *_: calls.append(1))
    attachment, condition = attach(unet, motion), conditioning()
    modules = 2 + 1 + 4
    with attachment.conditioned(condition):
        outputs = [unet(*call) for _ in range(3)]
        assert len(calls) == 2 * modules
    assert torch.equal(outputs[0], outputs[2])
    other = conditioning(context=noise(CLIPS, 5, 16, seed=9))
    with attachment.conditioned(other):
        assert not torch.equal(unet(*call), outputs[0])
    assert len(calls) == 4 * modules
    attachment.detach()


def test_while_training_the_text_is_projected_anew_each_time(unet, motion, call):
    motion.requires_grad_(True)
    attachment, condition = attach(unet, motion), conditioning()
    attention = motion.mid_block.motion_modules[0].temporal_transformer.transformer_blocks[0].motion_attention
    gradients = []
    for _ in range(2):
        with attachment.conditioned(condition):
            unet(*call).square().mean().backward()
        gradients.append(attention.to_k.weight.grad.clone())
        attention.to_k.weight.grad = None
    assert gradients[0].abs().max() > 0 and torch.equal(*gradients)
    attachment.detach()


def test_a_first_frame_of_another_size_is_refused(unet, motion, call):
    with pytest.raises(ValueError, match=r"for 6 frames of \(4, 6\) latents, but 6 frames of \(8, 6\)"):
        run(unet, motion, call, conditioning(first_frame=noise(CLIPS, 5, FRAMES, 4, 6)))
    with pytest.raises(ValueError, match="for 8 frames .* but 6 frames .* make both equal"):
        run(unet, motion, call, conditioning(first_frame=noise(CLIPS, 5, FRAMES + 1, 8, 6)))
    assert not hooks(unet)


@pytest.mark.parametrize(
    "params",
    [MotionParams(64, (1, 2), 1, 2, 16), MotionParams(32, (1, 2, 2), 1, 2, 16), MotionParams(32, (1, 2), 2, 2, 16)],
)
def test_a_motion_model_for_another_unet_is_refused_before_a_hook_is_set(unet, params):
    with pytest.raises(ValueError, match="load the checkpoint it was trained on"):
        attach(unet, MotionModel(params))
    assert not hooks(unet)


def test_modules_follow_the_layers_that_animatediff_puts_them_after(monkeypatch):
    """Insertion points for SD1.5 in LDM's numbering, as AnimateDiff-Evolved places them."""
    down = [f"input_blocks.{i}.{1 if i < 10 else 0}" for i in (1, 2, 4, 5, 7, 8, 10, 11)]
    up = [f"output_blocks.{i}.{0 if i < 3 else 1}" for i in range(12)]
    names = [f"down_blocks.{i // 2}.motion_modules.{i % 2}" for i in range(8)]
    names += ["mid_block.motion_modules.0"]
    names += [f"up_blocks.{i // 3}.motion_modules.{i % 3}" for i in range(12)]
    with torch.device("meta"):
        unet, motion = UNet(get_preset("sd15").unet), MotionModel(MotionParams())
    layer_names = {layer: name for name, layer in unet.named_modules()}
    module_names = {module: name for name, module in motion.named_modules()}
    found = []
    monkeypatch.setattr(
        Attachment, "hook_motion_module", lambda _self, layer, m: found.append((layer_names[layer], module_names[m]))
    )
    attach(unet, motion)
    assert found == list(zip([*down, "middle_block.1", *up], names, strict=True))
    assert sorted(layer_names[layer] for layer in unet.modules() if layer._forward_hooks) == [
        "input_blocks.0.0",
        "time_embed",
    ]


@pytest.mark.parametrize(
    ("file", "mid_block"), [("animatediff_v1", False), ("animatediff_v2", True), ("animatediff_v3", False)]
)
def test_motion_keys_are_animatediffs(file, mid_block):
    path = KEYS / f"{file}.json"
    if not path.is_file():
        pytest.skip(f"the key list is not at {path}")
    published = {key: shape for key, shape in json.loads(path.read_text()).items() if not key.endswith(".pe")}
    with torch.device("meta"):
        state = MotionModel(MotionParams(context_dim=None, mid_block=mid_block)).state_dict()
    own = {key: list(value.shape) for key, value in state.items() if "motion_modules." in key}
    assert own == published and len(own) == 26 * (21 if mid_block else 20)
    rest = {key: list(value.shape) for key, value in state.items() if key not in own}
    assert rest.pop("first_frame_conv.weight") == [320, 5, 3, 3]
    assert set(rest) == {f"motion_embedding.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}


def test_the_motion_augmented_attention_adds_its_own_keys_only():
    """A third attention and its norm: 7 keys a module, and none of AnimateDiff's is renamed."""
    with torch.device("meta"):
        with_text, without = (MotionModel(MotionParams(context_dim=width)).state_dict() for width in (768, None))
    added = set(with_text) - set(without)
    assert set(without) < set(with_text) and len(added) == 7 * 21
    assert {key.split("transformer_blocks.0.")[1].split(".")[0] for key in added} == {"attention_blocks", "norms"}
    key = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.2.to_k.weight"
    assert list(with_text[key].shape) == [1280, 768]
    # The published count of what 21 such attentions add (positions are no parameters).
    assert sum(with_text[key].numel() for key in added) == 70_221_120


def test_a_motion_model_survives_saving_with_its_schedule_and_layout(motion, tmp_path):
    params = MotionParams(32, (1, 2), 1, 2, 16, mid_block=False, layout="paper", trained_frames=8)
    saved = randomised(MotionModel(params))
    save_motion_model(tmp_path / "motion.safetensors", saved)
    loaded = load_motion_model(tmp_path / "motion.safetensors")
    assert loaded.params == params and loaded.layout == "paper" and loaded.schedule.zero_terminal_snr
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.half().float()), key


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="no first-frame layout 'both'; choose one of paper, release, repeat"):
        MotionParams(layout="both")
