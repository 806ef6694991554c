"""Several regions in one UNet call: exact where one region has all of a place, and nothing new where all are alike."""

import pytest
import torch

from followclick_core.models.attach import MotionConditioning, attach
from followclick_core.models.motion_model import MotionModel, MotionParams
from followclick_core.models.region_hooks import RegionBlend, blended_attention
from followclick_core.models.unet import UNet, UNetParams

CLIPS, FRAMES, REGIONS = 2, 3, 2
SIZE = (12, 10)  # the lower level is 6 x 5


def randomised(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator) + (parameter.data.mean() == 1)
    return module.eval().requires_grad_(False)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet():
    return randomised(UNet(UNetParams(32, (1, 2), 1, (1, 1), 1, num_heads=2, context_dim=16)), 1)


@pytest.fixture(scope="module")
def motion():
    return randomised(MotionModel(MotionParams(32, (1, 2), 1, num_heads=2, context_dim=16)), 2)


@pytest.fixture
def call():
    x = noise(CLIPS * FRAMES, 4, *SIZE)
    return x, torch.tensor([100, 900]).repeat_interleave(FRAMES), noise(CLIPS * FRAMES, 7, 16, seed=1)


CONTEXTS = noise(CLIPS, REGIONS, 5, 16, seed=2)
MAGNITUDES = torch.tensor([[2.0, 9.0], [5.0, 0.5]])
FIRST_FRAME = noise(CLIPS, 5, FRAMES, *SIZE, seed=3)


def shares(first):
    """Of two regions; `first` is what the first has, b h w."""
    return torch.stack([first, 1 - first], dim=1)


def halves():
    first = torch.zeros(CLIPS, *SIZE)
    first[:, :, : SIZE[1] // 2] = 1
    return shares(first)


def run(unet, motion, call, **conditioning):
    attachment = attach(unet, motion)
    try:
        with attachment.conditioned(MotionConditioning(FRAMES, first_frame=FIRST_FRAME, **conditioning)):
            return unet(*call)
    finally:
        attachment.detach()


def one_region(unet, motion, call, region):
    x, t, _ = call
    context = CONTEXTS[:, region]
    call = x, t, context.repeat_interleave(FRAMES, 0)
    return run(unet, motion, call, context=context, magnitude=MAGNITUDES[:, region])


@pytest.mark.parametrize("region", [0, 1])
def test_a_region_that_has_the_whole_picture_is_that_region_alone(unet, motion, call, region):
    first = torch.full((CLIPS, *SIZE), 1.0 - region)
    blend = RegionBlend(shares(first), CONTEXTS, MAGNITUDES, CONTEXTS)
    torch.testing.assert_close(
        run(unet, motion, call, regions=blend), one_region(unet, motion, call, region), rtol=1e-4, atol=1e-5
    )


def test_regions_that_move_alike_are_one_region_wherever_they_meet(unet, motion, call):
    same = [part[:, :1].expand_as(part).contiguous() for part in (CONTEXTS, MAGNITUDES)]
    blend = RegionBlend(shares(torch.rand(CLIPS, *SIZE)), same[0], same[1], same[0])
    torch.testing.assert_close(
        run(unet, motion, call, regions=blend), one_region(unet, motion, call, 0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("changed", ["contexts", "magnitudes", "spatial_contexts"])
def test_a_region_counts_by_its_share(unet, motion, call, changed):
    parts = {"contexts": CONTEXTS, "magnitudes": MAGNITUDES, "spatial_contexts": CONTEXTS}
    other = parts[changed].clone()
    other[:, 1] = other[:, 1] + 4

    def change(blend_shares):
        before, after = (
            run(unet, motion, call, regions=RegionBlend(blend_shares, **each))
            for each in (parts, parts | {changed: other})
        )
        return (before - after).abs().mean()

    assert change(halves()) > 1e-2 and change(shares(torch.ones(CLIPS, *SIZE))) < 1e-6


def test_each_resblock_adds_the_map_of_its_own_places_embeddings(unet, motion, call):
    """The magnitude's mathematics, by hand: E(t + m_r) for each region, blended where it is added."""
    block, seen = unet.input_blocks[1][0], []
    handles = [
        block.in_layers.register_forward_hook(lambda _l, _i, output: seen.append(output)),
        block.emb_layers.register_forward_pre_hook(lambda _l, inputs: seen.append(inputs[0])),
    ]
    attachment = attach(unet, motion)
    blend = RegionBlend(halves(), None, MAGNITUDES)
    with attachment.conditioned(MotionConditioning(FRAMES, regions=blend)):
        handles.append(block.out_layers.register_forward_pre_hook(lambda _l, inputs: seen.append(inputs[0])))
        unet(*call)
    attachment.detach()
    for handle in handles:
        handle.remove()
    before, time, after = seen
    expected = before.clone()
    for clip in range(CLIPS):
        for region in range(REGIONS):
            number = motion.motion_embedding(MAGNITUDES[clip, region : region + 1])
            for frame in range(clip * FRAMES, (clip + 1) * FRAMES):
                vector = block.emb_layers(time[frame : frame + 1] + number)[0, :, None, None]
                expected[frame] += vector * halves()[clip, region]
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


def test_blended_attention_is_the_sum_of_attentions():
    query, key, value = noise(2, 3, 6, 4), noise(2, 2, 3, 5, 4, seed=1), noise(2, 2, 3, 5, 4, seed=2)
    part = torch.softmax(noise(2, 2, 6, seed=3), 1)
    expected = torch.zeros(2, 3, 6, 4)
    for region in range(2):
        scores = torch.softmax(query @ key[:, region].transpose(-1, -2) / 2, -1)
        expected += part[:, region, None, :, None] * (scores @ value[:, region])
    torch.testing.assert_close(blended_attention(query, key, value, part), expected)


def test_what_another_pack_adds_to_the_attention_stays(unet, motion, call):
    """An image prompt's adapter adds to the attention before its output projection."""
    blend = RegionBlend(halves(), CONTEXTS, MAGNITUDES, CONTEXTS)
    plain = run(unet, motion, call, regions=blend)
    layer = unet.middle_block[1].transformer_blocks[0].attn2
    handle = layer.to_out.register_forward_pre_hook(lambda _l, inputs: (inputs[0] + 0.5,))
    added = run(unet, motion, call, regions=blend)
    handle.remove()
    assert (added - plain).abs().max() > 1e-3
    torch.testing.assert_close(run(unet, motion, call, regions=blend), plain)


def test_hooks_come_with_the_first_blend_and_go_with_detach(unet, motion, call):
    plain = unet(*call)
    count = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())  # noqa: E731
    attachment = attach(unet, motion)
    without = count()
    with attachment.conditioned(MotionConditioning(FRAMES, regions=RegionBlend(halves(), CONTEXTS, MAGNITUDES))):
        unet(*call)
        with_blend = count()
    with attachment.conditioned(MotionConditioning(FRAMES, CONTEXTS[:, 0], MAGNITUDES[:, 0], FIRST_FRAME)):
        after_blend = unet(*call)
    torch.testing.assert_close(
        after_blend, run(unet, motion, call, context=CONTEXTS[:, 0], magnitude=MAGNITUDES[:, 0]), rtol=0, atol=0
    )
    attachment.detach()
    assert with_blend > without > 0 == count() and torch.equal(unet(*call), plain)
