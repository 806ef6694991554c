"""The temporal transformer against PyTorch's own attention, and its shortcuts against the plain way."""

import math

import pytest
import torch
from torch import nn

from followclick_core.models import motion_module
from followclick_core.models.motion_module import MotionModule, TemporalAttention, frame_positions

FRAMES, CHANNELS, TEXT, HEADS = 5, 32, 12, 4


def randomised(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.data.mean() == 1)
    return module.eval()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def module():
    return randomised(MotionModule(CHANNELS, HEADS, TEXT))


def torch_attention(own: TemporalAttention) -> nn.MultiheadAttention:
    """PyTorch's multi-head attention with the same weights."""
    other = nn.MultiheadAttention(
        CHANNELS, HEADS, kdim=own.to_k.in_features, vdim=own.to_v.in_features, batch_first=True, bias=True
    )
    state = other.state_dict()
    if "in_proj_weight" in state:
        state["in_proj_weight"] = torch.cat([own.to_q.weight, own.to_k.weight, own.to_v.weight])
    else:
        state |= {f"{name}_proj_weight": getattr(own, f"to_{name}").weight for name in "qkv"}
    state["in_proj_bias"] = torch.zeros(3 * CHANNELS)
    state |= {"out_proj.weight": own.to_out[0].weight, "out_proj.bias": own.to_out[0].bias}
    other.load_state_dict(state)
    return other.eval()


def reference(module: MotionModule, x, num_frames, context):
    """A motion module over a list of pixels, one clip after the other, by PyTorch's layers."""
    own, block = module.temporal_transformer, module.temporal_transformer.transformer_blocks[0]
    pe = torch.tensor(
        [
            [(math.sin, math.cos)[c % 2](f * 10000 ** (-(c - c % 2) / CHANNELS)) for c in range(CHANNELS)]
            for f in range(num_frames)
        ]
    )
    attentions = [torch_attention(attention) for attention in block.attention_blocks]
    height, width = x.shape[-2:]
    out = x.clone()
    for clip, start in enumerate(range(0, len(x), num_frames)):
        frames = x[start : start + num_frames]
        normed = torch.cat([own.norm(frame[None]) for frame in frames])  # statistics of each frame
        for row in range(height):
            for column in range(width):
                h = own.proj_in(normed[:, :, row, column])[None]
                for index in range(2):
                    query = block.norms[index](h) + pe
                    h = h + attentions[index](query, query, query)[0]
                if context is not None:
                    text = context[clip : clip + 1]
                    h = h + attentions[2](block.norms[2](h) + pe, text, text)[0]
                value, gate = block.ff.net[0].proj(block.ff_norm(h)).chunk(2, -1)
                h = h + block.ff.net[2](value * nn.functional.gelu(gate))
                out[start : start + num_frames, :, row, column] += own.proj_out(h)[0]
    return out


def test_attention_over_frames_is_multi_head_attention():
    attention, x = randomised(TemporalAttention(CHANNELS, HEADS)), noise(6, FRAMES, CHANNELS)
    torch.testing.assert_close(attention.attend_frames(x), torch_attention(attention)(x, x, x)[0])


def test_attention_to_the_text_is_multi_head_attention_with_each_clips_own_text():
    attention, context = randomised(TemporalAttention(CHANNELS, HEADS, TEXT)), noise(2, 7, TEXT)
    x = noise(6, FRAMES, CHANNELS, seed=1)  # two clips of three pixels
    texts = context.repeat_interleave(3, dim=0)
    expected = torch_attention(attention)(x, texts, texts)[0]
    torch.testing.assert_close(attention.attend_text(x, attention.project_text(context)), expected)


@pytest.mark.parametrize("with_text", [True, False])
def test_a_module_computes_what_a_loop_over_pixels_does(module, with_text):
    x, context = noise(2 * FRAMES, CHANNELS, 3, 2), noise(2, 7, TEXT, seed=1)
    text = module.project_text(context) if with_text else None
    own = module(x, FRAMES, text)
    torch.testing.assert_close(own, reference(module, x, FRAMES, context if with_text else None), atol=1e-4, rtol=1e-4)


def test_a_new_module_changes_no_bit():
    x = noise(2 * FRAMES, CHANNELS, 3, 2)
    module = MotionModule(CHANNELS, HEADS, TEXT)
    assert torch.equal(module(x, FRAMES, module.project_text(noise(2, 7, TEXT))), x)


def test_a_new_motion_augmented_attention_leaves_the_rest_as_it_was(module):
    """An AnimateDiff checkpoint brings no third attention: with it new, text must change no bit."""
    block = module.temporal_transformer.transformer_blocks[0]
    new = MotionModule(CHANNELS, HEADS, TEXT).temporal_transformer.transformer_blocks[0]
    x, context = noise(FRAMES, CHANNELS, 3, 2), noise(1, 7, TEXT)
    assert not torch.equal(module(x, FRAMES, module.project_text(context)), module(x, FRAMES))
    block.attention_blocks[2].load_state_dict(new.attention_blocks[2].state_dict())
    assert torch.equal(module(x, FRAMES, module.project_text(context)), module(x, FRAMES))


def test_clips_of_a_batch_do_not_mix(module):
    x, context = noise(2 * FRAMES, CHANNELS, 3, 2), noise(2, 7, TEXT, seed=1)
    together = module(x, FRAMES, module.project_text(context))
    for clip in range(2):
        part = slice(clip * FRAMES, (clip + 1) * FRAMES)
        alone = module(x[part], FRAMES, module.project_text(context[clip : clip + 1]))
        torch.testing.assert_close(together[part], alone, atol=1e-5, rtol=1e-4)


def test_frames_of_a_clip_see_each_other(module):
    x = noise(FRAMES, CHANNELS, 3, 2)
    changed = x.clone()
    changed[-1] = noise(CHANNELS, 3, 2, seed=7)
    assert (module(changed, FRAMES) - module(x, FRAMES))[0].abs().max() > 1e-4


def test_a_feed_forward_in_pieces_gives_the_same_and_its_hidden_state_stays_small(monkeypatch, module):
    block = module.temporal_transformer.transformer_blocks[0]
    x = noise(13, FRAMES, CHANNELS)
    sizes = []
    block.ff.net[0].register_forward_hook(lambda _layer, inputs, _output: sizes.append(len(inputs[0])))
    with torch.no_grad():
        whole = block._feed_forward(x)
        monkeypatch.setattr(motion_module, "MAX_FEED_FORWARD_BYTES", 8 * 4 * FRAMES * CHANNELS * 4)
        pieces = block._feed_forward(x)
    torch.testing.assert_close(pieces, whole)
    assert sizes[0] == 13 and len(sizes) > 2 and max(sizes[1:]) <= 4 and sum(sizes[1:]) == 13


def test_positions_computed_in_inference_mode_serve_training_too():
    frame_positions.cache_clear()
    with torch.inference_mode():
        frame_positions(FRAMES, CHANNELS, torch.device("cpu"), torch.float32)
    kept = frame_positions(FRAMES, CHANNELS, torch.device("cpu"), torch.float32)
    scale = torch.ones(CHANNELS, requires_grad=True)
    (kept * scale).sum().backward()  # autograd keeps the encoding for this, and would refuse an inference tensor
    torch.testing.assert_close(scale.grad, kept.sum(0))


def test_positions_are_no_buffers_which_the_hosts_low_memory_mode_would_not_move(module):
    assert not list(module.buffers())
