"""The same mathematics as diffusers', on the same random weights: motion modules, the whole motion UNet, DDIM.

Where diffusers departs from the original, its layers are set as the original has them: it normalises a motion module's
input over all frames together, AnimateDiff each frame by itself; its ResBlocks normalise each frame, those of
AnimateDiff v1, PIA and the authors' release all frames together.
"""

import pytest
import torch
from torch import nn

from followclick_core.diffusion.samplers import sample_ddim
from followclick_core.diffusion.schedule import NoiseSchedule, ScheduleParams, leading_timesteps, trailing_timesteps
from followclick_core.models.attach import MotionConditioning, attach
from followclick_core.models.motion_files import load_motion_file
from followclick_core.models.motion_module import MotionModule
from followclick_core.models.unet import UNet, UNetParams
from followclick_core.shapes import fold_frames, unfold_frames

diffusers = pytest.importorskip("diffusers")

TEXT, FRAMES, CLIPS = 16, 5, 2


class PerFrame(nn.Module):
    """A norm of 5-D tensors, b c f h w, that sees each frame by itself."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return torch.stack([self.norm(frame) for frame in x.unbind(2)], dim=2)


class PerClip(nn.Module):
    """A norm of frames, (b f) c h w, that sees whole clips."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.unflatten(0, (-1, FRAMES)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("channels", [64, 160])
def test_a_motion_module_is_diffusers_animatediff_transformer(checkpoint_files, channels):
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    theirs = AnimateDiffTransformer3D(
        8,
        channels // 8,
        channels,
        norm_num_groups=32,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=32,
    )
    place = "down_blocks.0.motion_modules.0."
    adapter, ours_named = (
        {key.removeprefix(place): value for key, value in tensors.items() if key.startswith(place)}
        for tensors in (
            checkpoint_files.adapter_tensors("animatediff_v2", channels),
            checkpoint_files.motion_tensors("animatediff_v2", channels),
        )
    )
    theirs.load_state_dict(adapter)
    theirs.norm = PerFrame(theirs.norm)
    module = MotionModule(channels, 8, None)
    module.load_state_dict({key: value for key, value in ours_named.items() if not key.endswith(".pe")})
    x = noise(CLIPS * FRAMES, channels, 6, 4)
    with torch.no_grad():
        expected = theirs(x, num_frames=FRAMES)
        assert relative_error(module(x, FRAMES), expected) < 1e-4
        assert relative_error(x, expected) > 1e-2  # the module does something


@pytest.fixture(scope="module")
def spatial(checkpoint_files):
    """A UNet's weights in diffusers' names, with four input channels."""
    shapes = checkpoint_files.unet_shapes(32, TEXT) | {"conv_in.weight": (32, 4, 3, 3)}
    return checkpoint_files.random_tensors(shapes, seed=5)


def diffusers_unet(checkpoint_files, family, spatial, middle):
    from diffusers import UNetMotionModel

    unet = UNetMotionModel(
        block_out_channels=(32, 64, 128, 128), cross_attention_dim=TEXT, use_motion_mid_block=middle
    ).eval()
    motion = checkpoint_files.adapter_tensors(family)
    # It makes its encodings itself, as long as its own default.
    own = {key: value for key, value in unet.state_dict().items() if key.endswith(".pe")}
    unet.load_state_dict(spatial | motion | own)
    for module in unet.modules():
        if type(module).__name__ == "AnimateDiffTransformer3D":
            module.norm = PerFrame(module.norm)
    return unet


@pytest.mark.parametrize("family", ["animatediff_v1", "animatediff_v2", "animatediff_v3", "animatelcm"])
def test_the_whole_motion_unet_is_diffusers(checkpoint_files, family, spatial, tmp_path):
    path = checkpoint_files.write_motion_file(tmp_path / "x.safetensors", family, "adapter")
    motion = load_motion_file(path).model
    theirs = diffusers_unet(checkpoint_files, family, spatial, motion.params.mid_block)
    if motion.family.joint_norms:
        for module in theirs.modules():
            if type(module).__name__ == "ResnetBlock2D":
                module.norm1, module.norm2 = PerClip(module.norm1), PerClip(module.norm2)
        theirs.conv_norm_out = PerClip(theirs.conv_norm_out)
    unet = core_unet(spatial)
    latents, context = noise(CLIPS, 4, FRAMES, 16, 8), noise(CLIPS, 7, TEXT, seed=1)
    t = torch.tensor([901, 17])
    attachment = attach(unet, motion)
    with torch.no_grad(), attachment.conditioned(MotionConditioning(FRAMES)):
        frames = fold_frames(latents), t.repeat_interleave(FRAMES), context.repeat_interleave(FRAMES, 0)
        ours = unfold_frames(unet(*frames), CLIPS)
        expected = theirs(latents, t, context.repeat_interleave(FRAMES, 0)).sample
    attachment.detach()
    assert relative_error(ours, expected) < 1e-4
    with torch.no_grad():  # without the motion model it is another picture, so it was compared
        assert relative_error(unfold_frames(unet(*frames), CLIPS), expected) > 1e-2


def core_unet(spatial):
    from followclick_core.models.motion_keys import unet_keys

    unet = UNet(UNetParams(model_channels=32, context_dim=TEXT)).eval()
    unet.load_state_dict({ours: spatial[theirs] for theirs, ours in unet_keys(unet).items()})
    return unet


SCHEDULES = {
    "release": ScheduleParams(),
    "animatediff": ScheduleParams(zero_terminal_snr=False, prediction_type="epsilon"),
    "stable-diffusion": ScheduleParams(beta_schedule="linear", zero_terminal_snr=False, prediction_type="epsilon"),
    "velocity": ScheduleParams(zero_terminal_snr=False),
}


def diffusers_schedule(params, spacing):
    names = {"sqrt_linear": "linear", "linear": "scaled_linear"}  # each calls its own what the other does not
    return diffusers.DDIMScheduler(
        beta_start=params.beta_start,
        beta_end=params.beta_end,
        beta_schedule=names[params.beta_schedule],
        prediction_type=params.prediction_type,
        rescale_betas_zero_snr=params.zero_terminal_snr,
        timestep_spacing=spacing,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_noise_schedule_is_diffusers(name):
    params = SCHEDULES[name]
    theirs = diffusers_schedule(params, "trailing").alphas_cumprod
    torch.testing.assert_close(NoiseSchedule(params).alphas_cumprod, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 10, 25, 50, 100])
def test_timesteps_are_diffusers_trailing_and_leading(steps):
    for spacing, own in (("trailing", trailing_timesteps), ("leading", leading_timesteps)):
        theirs = diffusers_schedule(ScheduleParams(), spacing)
        theirs.set_timesteps(steps)
        assert own(steps) == theirs.timesteps.tolist(), spacing


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [5, 20])
def test_ddim_takes_diffusers_steps(name, spacing, steps):
    params = SCHEDULES[name]
    theirs = diffusers_schedule(params, spacing)
    theirs.set_timesteps(steps)
    start = noise(2, 4, 3, 4, 4)

    def model(x, t):
        return torch.tanh(1.5 * x + t / 500).roll(1, dims=2)

    expected = start
    for t in theirs.timesteps:
        expected = theirs.step(model(expected, t), t, expected).prev_sample
    schedule = NoiseSchedule(params)

    def predict_v(x, t):
        return schedule.as_velocity(model(x, t.view(-1, 1, 1, 1, 1)), x, t)

    own = trailing_timesteps(steps) if spacing == "trailing" else leading_timesteps(steps)
    assert relative_error(sample_ddim(predict_v, schedule, start, own), expected) < 1e-4
    assert relative_error(start, expected) > 1e-2
