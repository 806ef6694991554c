"""What sets the families apart, each where it counts: normalisation, positions, first frame, magnitude, schedule."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from followclick_core.families import FAMILIES, get_family
from followclick_core.families.affinity import LARGE, MEDIUM, SMALL, affinity_at, regional_affinity
from followclick_core.families.start import late_sigmas, moving_mask, start_latents, start_strength, strongest
from followclick_core.models.attach import MotionConditioning, attach
from followclick_core.models.motion_files import load_motion_file
from followclick_core.models.unet import UNet, UNetParams

JOINT = {"animatediff_v1", "pia", "release"}
POSITIONS = {
    "animatediff_v1": 24,
    "animatediff_v2": 32,
    "animatediff_v3": 32,
    "animatelcm": 64,
    "pia": 32,
    "release": 24,
}
FRAMES = 3


@pytest.fixture(scope="module")
def unet(checkpoint_files):
    torch.manual_seed(0)
    unet = UNet(UNetParams(model_channels=32, context_dim=16))
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models(checkpoint_files, tmp_path_factory):
    """A motion model of each family."""
    folder = tmp_path_factory.mktemp("families")
    options = {"text": 16}
    return {
        name: load_motion_file(
            checkpoint_files.write_motion_file(folder / f"{name}.safetensors", name, **options)
        ).model.requires_grad_(False)
        for name in checkpoint_files.FAMILIES
    }


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call(unet, motion, conditioning, frames=FRAMES, clips=1):
    attachment = attach(unet, motion)
    try:
        with attachment.conditioned(conditioning):
            count = clips * frames
            context = noise(clips, 7, 16, seed=1).repeat_interleave(frames, 0)
            return unet(noise(count, 4, 8, 8), torch.full((count,), 500), context)
    finally:
        attachment.detach()


def statistics_of(unet, motion, clips=2):
    """Layer name -> whether the frames of a clip were normalised together, and clips never."""
    joint, handles = {}, []
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.GroupNorm):

            def see(_layer, inputs, output, name=name):
                groups = output if output.ndim == 5 else output[:, :, None]
                weight, bias = (t.view(1, -1, 1, 1, 1) for t in (_layer.weight, _layer.bias))
                own = ((groups - bias) / weight).unflatten(1, (32, -1)).flatten(2)  # one row per set of statistics
                assert own.mean(-1).abs().max() < 1e-4
                joint[name] = len(output) == clips
                assert len(output) in (clips, clips * FRAMES) and output.shape == inputs[0].shape

            handles.append(layer.register_forward_hook(see))
    attachment = attach(unet, motion)  # our hooks come after, so that the ones above see what the layer itself got
    with attachment.conditioned(MotionConditioning(FRAMES)):
        count = clips * FRAMES
        unet(noise(count, 4, 8, 8), torch.full((count,), 500), noise(count, 7, 16))
    attachment.detach()
    for handle in handles:
        handle.remove()
    return joint


@pytest.mark.parametrize("name", POSITIONS)
def test_statistics_are_shared_over_frames_in_resblocks_and_the_output_alone_where_the_original_has_it(
    unet, models, name
):
    joint = statistics_of(unet, models[name])
    residual = {key for key in joint if key.endswith((".in_layers.0", ".out_layers.0")) or key == "out.0"}
    assert len(residual) == 2 * 22 + 1 and len(joint) == len(residual) + 16
    assert {key for key, value in joint.items() if value} == (residual if name in JOINT else set())


@pytest.mark.parametrize("name", sorted(JOINT))
def test_a_joint_norm_is_that_of_the_whole_clip_and_goes_with_the_attachment(unet, models, name):
    norm = unet.out[0]
    x = noise(2 * FRAMES, 32, 8, 8) * torch.arange(1, 2 * FRAMES + 1).view(-1, 1, 1, 1)
    plain = norm(x)
    clips = x.unflatten(0, (2, FRAMES)).transpose(1, 2)
    expected = nn.functional.group_norm(clips, 32, norm.weight, norm.bias, norm.eps).transpose(1, 2).flatten(0, 1)
    attachment = attach(unet, models[name])
    assert torch.equal(norm(x), plain)
    with attachment.conditioned(MotionConditioning(FRAMES)):
        torch.testing.assert_close(norm(x), expected)
    attachment.detach()
    assert torch.equal(norm(x), plain) and not torch.allclose(expected, plain, atol=0.1)


@pytest.mark.parametrize(("name", "positions"), POSITIONS.items(), ids=POSITIONS)
def test_a_clip_longer_than_the_encodings_is_refused_with_what_to_do(unet, models, name, positions):
    attachment = attach(unet, models[name])
    with attachment.conditioned(MotionConditioning(positions)):
        pass
    with (
        pytest.raises(
            ValueError, match=rf"{positions} frames, and {positions + 1} are.*length to {positions}.*windows"
        ),
        attachment.conditioned(MotionConditioning(positions + 1)),
    ):
        pass
    attachment.detach()


def test_this_packs_own_models_take_any_length():
    get_family("followclick").check_frames(1000)


def test_the_releases_first_frame_has_the_mask_on_all_frames_and_the_picture_on_the_first_alone(models):
    latents, mask = noise(1, 4, 8, 8), (noise(1, 1, 64, 64, seed=1) > 0).float()
    condition = models["release"].first_frame(latents, mask, FRAMES)
    assert torch.equal(condition[:, 1:, 0], latents) and condition[:, 1:, 1:].abs().max() == 0
    assert torch.equal(condition[:, 0, 0], condition[:, 0, 2]) and condition[:, 0, 2].max() > 0
    shown = models["release"].family.channels(condition, torch.tensor([4.0]))
    assert torch.equal(shown, condition)


def test_pias_affinity_follows_its_published_curves_inside_the_region_and_is_one_outside(models):
    latents, mask = noise(1, 4, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:6] = 1
    mask[..., 5, 3:6] = 0.5
    condition = models["pia"].first_frame(latents, mask, 16)
    for magnitude, curve in ((0.0, (1,)), (2.0, SMALL), (6.0, MEDIUM), (16.0, LARGE), (99.0, LARGE)):
        shown = models["pia"].family.channels(condition, torch.tensor([magnitude]))
        expected = torch.tensor([*curve, *[curve[-1]] * 16][:16], dtype=torch.float32)
        torch.testing.assert_close(shown[0, 0, :, 3, 4], expected)
        torch.testing.assert_close(shown[0, 0, :, 5, 4], 1 - (1 - expected) / 2)
        assert (shown[0, 0, :, :2] == 1).all() and (shown[0, 0, 0] == 1).all()
        assert torch.equal(shown[:, 1:], latents[:, :, None].expand(-1, -1, 16, -1, -1))


def test_pias_affinity_lies_between_its_curves_and_takes_a_magnitude_per_frame_or_per_region():
    assert affinity_at(1, 4.0) == pytest.approx((SMALL[1] + MEDIUM[1]) / 2)
    assert [affinity_at(frame, 16.0) for frame in (9, 10, 12, 40)] == [0.7, 0.6, 0.5, 0.5]
    everywhere = torch.ones(2, 5, 3, 1, 1)
    rows = regional_affinity(everywhere, torch.tensor([[2.0, 2.0, 6.0], [16.0, 0.0, 16.0]]))[:, 0, :, 0, 0]
    torch.testing.assert_close(rows, torch.tensor([[1.0, SMALL[1], MEDIUM[2]], [1.0, 1.0, LARGE[2]]]))
    shares = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1).expand(2, -1, -1, -1)
    blended = regional_affinity(everywhere, torch.tensor([[2.0, 16.0], [2.0, 2.0]]), shares)[:, 0, 2, 0, 0]
    torch.testing.assert_close(blended, torch.tensor([SMALL[2] / 4 + LARGE[2] * 3 / 4, SMALL[2]]))
    moderate = regional_affinity(everywhere, None)[0, 0, :, 0, 0]
    torch.testing.assert_close(moderate, torch.tensor([1.0, *MEDIUM[1:3]]))


def test_pias_affinities_are_made_once_for_all_steps_and_anew_for_other_frames(unet, models, monkeypatch):
    """The magnitude's numbers are looked at for them, which on a GPU means to wait for it."""
    looked, tolist = [], torch.Tensor.tolist
    conditioning = MotionConditioning(FRAMES, magnitude=torch.tensor([16.0]), first_frame=noise(1, 5, FRAMES, 8, 8))
    other = replace(conditioning, magnitude=torch.tensor([0.0]))
    with torch.no_grad():
        first = call(unet, models["pia"], conditioning)
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: looked.append(1) or tolist(tensor))
        assert torch.equal(call(unet, models["pia"], conditioning), first) and not looked
        assert not torch.allclose(call(unet, models["pia"], other), first) and len(looked) == 1
    assert torch.equal(call(unet, models["pia"], conditioning), first) and len(looked) == 2  # what may be trained


def test_magnitude_and_fps_reach_only_the_families_that_have_an_input_for_them(unet, models):
    mask = torch.ones(1, 1, 8, 8)
    for name, motion in models.items():
        first = motion.first_frame(noise(1, 4, 8, 8), mask, FRAMES)

        def run(motion=motion, first=first, **changed):
            values = {"magnitude": torch.tensor([4.0]), "first_frame": first} | changed
            return call(unet, motion, MotionConditioning(FRAMES, **values))

        plain, faster = run(), run(magnitude=torch.tensor([12.0]))
        assert torch.equal(plain, faster) == (name not in ("release", "pia")), name
        assert torch.equal(plain, run(fps=24.0)) == (name != "release"), name
        assert torch.equal(plain, run(first_frame=None)) == (first is None), name


def test_the_release_is_told_the_authors_fps_unless_somebody_says_otherwise(unet, models):
    motion = models["release"]
    assert motion.family.fps == 2.0
    implicit = call(unet, motion, MotionConditioning(FRAMES))
    assert torch.equal(implicit, call(unet, motion, MotionConditioning(FRAMES, fps=2.0)))
    # The MLP of the raw number, added to the time embedding.
    attachment = attach(unet, motion)
    with attachment.conditioned(MotionConditioning(FRAMES, fps=5.0)):
        with_fps = unet.time_embed(noise(FRAMES, 32))
    attachment.detach()
    added = with_fps - unet.time_embed(noise(FRAMES, 32))
    torch.testing.assert_close(
        added, motion.fps_embedding(torch.tensor([5.0])).expand(FRAMES, -1), rtol=1e-3, atol=1e-4
    )


def test_schedules_are_those_of_the_table():
    for family in FAMILIES:
        schedule = family.schedule
        assert (schedule.beta_schedule, schedule.beta_start, schedule.beta_end) == ("sqrt_linear", 0.00085, 0.012)
        velocity = family.name in ("followclick", "release")
        assert (schedule.prediction_type == "v_prediction") == schedule.zero_terminal_snr == velocity
        assert family.follows_prediction == (not velocity)
    assert [family.name for family in FAMILIES if family.distilled_timesteps] == ["animatelcm"]


def test_a_family_without_an_input_for_the_picture_starts_from_it():
    family = get_family("animatediff_v3")
    with pytest.raises(ValueError, match="AnimateDiff v3 has no input for a first frame"):
        family.first_frame(noise(1, 4, 8, 8), torch.ones(1, 1, 8, 8), 4)
    latents = noise(1, 4, 8, 8)
    clip = start_latents(latents, 4)
    assert clip.shape == (4, 4, 8, 8) and all(torch.equal(frame, latents[0]) for frame in clip)
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, 0, :8, :8], masks[1, 0, -8:, -4:] = 1, 1
    moving = moving_mask(masks, 4, (8, 8))
    assert moving.shape == (4, 1, 8, 8) and moving[0].max() == 0
    assert moving[3, 0, 0, 0] == 1 and moving[3, 0, 7, 7] == 0.5 and moving[3].sum() == 1.5


def test_the_start_noise_grows_with_the_magnitude_and_cuts_off_the_levels_above_it():
    strengths = [start_strength(magnitude) for magnitude in (0.0, 2.0, 4.0, 6.0, 16.0, 32.0, 99.0)]
    assert strengths == sorted(strengths) and strengths[0] == 0.3 and strengths[-1] == 1.0
    assert start_strength(4.0) == pytest.approx(0.6)
    levels = torch.linspace(0.1, 10.0, 100)
    sigmas = torch.tensor([10.0, 8.0, 6.0, 4.0, 2.0, 0.0])
    assert late_sigmas(sigmas, levels, 1.0).tolist() == sigmas.tolist()
    assert late_sigmas(sigmas, levels, 0.6).tolist() == [6.0, 4.0, 2.0, 0.0]
    assert late_sigmas(sigmas, levels, 0.01).tolist() == [2.0, 0.0]  # a step is left
    assert late_sigmas(sigmas[3:], levels, 0.6).tolist() == [4.0, 2.0, 0.0]  # started lower by the user already
    # Of a part of a sampling no step is left, only the level at which the next pass begins.
    assert late_sigmas(sigmas[:2], levels, 0.6).tolist() == [8.0]
    assert late_sigmas(sigmas[:4], levels, 0.6).tolist() == [6.0, 4.0]
    assert strongest([torch.tensor([3.0]), torch.tensor([1.0, 7.0])]) == 7.0 and strongest([]) is None


def test_an_unknown_family_is_refused_by_name():
    with pytest.raises(ValueError, match="no motion model family 'v9'.*animatelcm"):
        get_family("v9")
