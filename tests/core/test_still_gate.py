"""The gate for what stands still: what it computes, when it is shut, and that training opens it where it should."""

from dataclasses import replace

import pytest
import torch

from followclick_core.checkpoint import load_metadata
from followclick_core.diffusion.schedule import NoiseSchedule, ScheduleParams
from followclick_core.models.attach import MotionConditioning, attach
from followclick_core.models.motion_model import MotionModel, MotionParams, load_motion_model, save_motion_model
from followclick_core.models.still_gate import SHUT, StillGate
from followclick_core.models.unet import UNet, UNetParams
from followclick_core.training.run import load_older
from followclick_core.training.train_step import check_same_parts

TINY = UNetParams(32, (1, 2), 1, (0, 1), 1, num_heads=2, context_dim=16)
EPSILON = ScheduleParams(zero_terminal_snr=False, prediction_type="epsilon")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def opened(gate):
    torch.nn.init.constant_(gate.conv.bias, 50.0)
    return gate


@pytest.mark.parametrize("schedule", [ScheduleParams(), EPSILON], ids=["v", "epsilon"])
@pytest.mark.parametrize("t", [100, 500, 998])
def test_an_open_gate_predicts_the_clip_that_stands_still(schedule, t):
    first, true_noise = noise(1, 4, 1, 8, 6), noise(1, 4, 1, 8, 6, seed=1)
    steps, process = torch.tensor([t]), NoiseSchedule(schedule)
    x_t = process.add_noise(first, true_noise, steps)
    frames = [each[:, :, 0] for each in (torch.zeros_like(x_t), x_t, first)]
    mixed = opened(StillGate(32))(noise(1, 32, 8, 6), *frames, steps, schedule)
    torch.testing.assert_close(mixed, process.target(first, true_noise, steps)[:, :, 0], atol=1e-4, rtol=1e-4)


def test_where_there_is_hardly_any_noise_the_network_decides():
    x_t, first, predicted = noise(1, 4, 8, 6), 9 + noise(1, 4, 8, 6, seed=1), noise(1, 4, 8, 6, seed=2)
    gate = opened(StillGate(32))
    mixed = gate(noise(1, 32, 8, 6), predicted, x_t, first, torch.tensor([0]), ScheduleParams())
    sigma = (1 - NoiseSchedule(ScheduleParams()).alphas_cumprod[0]).sqrt()
    share = sigma / 0.2
    alpha = (1 - sigma.square()).sqrt()
    expected = (1 - share) * predicted + share * (alpha * x_t - first) / sigma
    assert share < 0.2
    torch.testing.assert_close(mixed, expected, atol=1e-3, rtol=1e-4)


def clip_call(motion, condition, t=(700, 700), timesteps=True):
    unet = UNet(TINY).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in unet.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    attachment = attach(unet, motion)
    steps = torch.tensor(t).repeat_interleave(3)
    x, context = noise(6, 4, 8, 6, seed=3), noise(6, 7, 16, seed=4)
    try:
        with attachment.conditioned(condition, steps if timesteps else None), torch.no_grad():
            return unet(x, steps, context)
    finally:
        attachment.detach()


def conditioning(layout="repeat", first_frame=True):
    condition = noise(2, 5, 1, 8, 6, seed=6).expand(-1, -1, 3, -1, -1).clone()
    if layout == "release":
        condition[:, 1:, 1:] = 0
    return MotionConditioning(3, None, torch.tensor([2.0, 9.0]), condition if first_frame else None)


def gated(layout="repeat"):
    torch.manual_seed(0)
    return MotionModel(MotionParams(32, (1, 2), 1, 2, 16, layout=layout, still_gate=True)).eval()


@pytest.mark.parametrize("layout", ["repeat", "release"])
def test_attached_it_replaces_the_prediction_of_every_frame_by_that_of_its_own_clip(layout):
    motion = gated(layout)
    opened(motion.still_gate)
    predicted = clip_call(motion, conditioning(layout), t=(700, 300))
    alphas = NoiseSchedule(ScheduleParams()).alphas_cumprod[torch.tensor([700, 300])].repeat_interleave(3)
    alpha, sigma = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    first = conditioning().first_frame[:, 1:, 0].repeat_interleave(3, 0)
    torch.testing.assert_close(predicted, (alpha * noise(6, 4, 8, 6, seed=3) - first) / sigma, atol=1e-4, rtol=1e-4)


def test_a_new_gate_is_all_but_shut_and_without_a_first_frame_there_is_none():
    motion = gated()
    without = MotionModel(MotionParams(32, (1, 2), 1, 2, 16)).eval()
    without.load_state_dict({key: value for key, value in motion.state_dict().items() if "still_gate" not in key})
    plain, new = clip_call(without, conditioning()), clip_call(motion, conditioning())
    opened(motion.still_gate)
    farthest = (clip_call(motion, conditioning()) - plain).abs().max()
    assert 0 < (new - plain).abs().max() < 0.02 * farthest
    apart = conditioning(first_frame=False)
    assert torch.equal(clip_call(motion, apart), clip_call(without, apart))
    assert torch.equal(clip_call(motion, apart, timesteps=False), clip_call(without, apart))


def test_cells_that_training_masks_are_left_to_the_network():
    gate, first = opened(StillGate(32)), noise(1, 4, 8, 6)
    first[:, :, 2:4] = 0
    predicted = noise(1, 4, 8, 6, seed=1)
    mixed = gate(noise(1, 32, 8, 6), predicted, noise(1, 4, 8, 6, seed=2), first, torch.tensor([500]), ScheduleParams())
    left = (mixed == predicted).all(1)[0]
    assert left[2:4].all() and not left[:2].any() and not left[4:].any()


def test_it_must_know_the_timesteps():
    with pytest.raises(ValueError, match="timesteps"):
        clip_call(gated(), conditioning(), timesteps=False)


def test_it_follows_the_schedule_that_a_motion_model_is_trained_on_with():
    motion = gated()
    opened(motion.still_gate)
    before = clip_call(motion, conditioning())
    motion.params = replace(motion.params, schedule=EPSILON)
    assert not torch.allclose(clip_call(motion, conditioning()), before)


def test_a_family_without_a_first_frame_has_no_gate():
    with pytest.raises(ValueError, match="animatediff_v2"):
        MotionParams(family="animatediff_v2", still_gate=True)


def test_training_opens_it_where_nothing_moves_and_nowhere_else():
    """The network itself learns nothing here: it is frozen at zero, so only the gate can lower the loss."""
    gate, process = StillGate(32), NoiseSchedule(ScheduleParams())
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.03)
    moves = torch.zeros(1, 1, 1, 8, 8)
    moves[..., 4:] = 1
    features = torch.cat([moves[:, :, 0], 1 - moves[:, :, 0]], dim=1).repeat(1, 16, 1, 1)
    first = noise(1, 4, 1, 8, 8)
    x_0 = first + moves * noise(1, 4, 1, 8, 8, seed=1)
    for step in range(150):
        t = torch.tensor([100 + step * 5])
        drawn = noise(*x_0.shape, seed=step)
        x_t = process.add_noise(x_0, drawn, t)
        v = process.velocity(x_0, drawn, t)
        mixed = gate(features, torch.zeros_like(v[:, :, 0]), x_t[:, :, 0], first[:, :, 0], t, ScheduleParams())
        optimizer.zero_grad()
        (mixed - v[:, :, 0]).square().mean().backward()
        optimizer.step()
    opening = gate.conv(features).sigmoid()[0, 0]
    assert opening[:, :3].min() > 0.9 and opening[:, 5:].max() < 0.4


def test_after_sampling_in_inference_mode_it_can_still_be_trained():
    schedule = ScheduleParams(beta_end=0.0121)  # of no other test: what it needs is made inside the inference mode
    gate = StillGate(32)
    arguments = (noise(1, 32, 8, 6), *[noise(1, 4, 8, 6)] * 3, torch.tensor([500]), schedule)
    with torch.inference_mode():
        gate(*arguments)
    gate(*arguments).sum().backward()
    assert gate.conv.bias.grad.abs() > 0


def test_it_is_saved_with_the_motion_model(tmp_path):
    motion = gated()
    torch.nn.init.normal_(motion.still_gate.conv.weight)
    save_motion_model(tmp_path / "motion.safetensors", motion)
    loaded = load_motion_model(tmp_path / "motion.safetensors")
    assert loaded.params.still_gate
    torch.testing.assert_close(loaded.still_gate.conv.weight, motion.still_gate.conv.weight, atol=1e-3, rtol=1e-3)


def test_a_file_without_a_gate_says_nothing_of_gates(tmp_path):
    """Versions before there was one refuse numbers that they do not know."""
    save_motion_model(tmp_path / "motion.safetensors", MotionModel(MotionParams(32, (1, 2), 1, 2, 16)))
    assert "still_gate" not in load_metadata(tmp_path / "motion.safetensors")["params"]
    assert not load_motion_model(tmp_path / "motion.safetensors").params.still_gate


def test_training_goes_on_from_a_motion_model_without_a_gate_and_from_no_other_with_parts_missing():
    old, new = MotionModel(MotionParams(32, (1, 2), 1, 2, 16)), gated()
    load_older(new, old)
    kept = new.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in old.state_dict().items())
    assert new.still_gate.conv.bias.tolist() == [SHUT]
    del old.motion_embedding
    with pytest.raises(RuntimeError, match="motion_embedding"):
        load_older(new, old)


def test_a_checkpoint_of_other_parts_is_refused_in_plain_words():
    check_same_parts(["a", "b"], ["b", "a"])
    with pytest.raises(ValueError, match=r"other parts \(still_gate.conv.bias\); begin another --run folder"):
        check_same_parts(["a"], ["a", "still_gate.conv.bias"])
