"""The method's inference on a model of random weights: what follows from its inputs, and what may not matter."""

from dataclasses import replace

import pytest
import torch

from followclick_core import generate
from followclick_core.acceleration.feature_reuse import ReuseParams
from followclick_core.conditioning import first_frame_condition
from followclick_core.diffusion.noise import without_temporal_mean
from followclick_core.diffusion.schedule import NoiseSchedule, trailing_timesteps
from followclick_core.generate import SamplingParams, decode_clip, fastest_dtype, generate_latents, initial_noise
from followclick_core.models.attach import MotionConditioning, attach
from followclick_core.models.bundle import ModelBundle
from followclick_core.models.motion_model import MotionModel, MotionParams
from followclick_core.models.text_encoder import TextEncoder, TextEncoderParams
from followclick_core.models.unet import UNet, UNetParams
from followclick_core.presets import Preset

PARAMS = SamplingParams(num_frames=3, steps=3, guidance_scale=3.0)


def randomised(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.data.mean() == 1)
    return module.eval()


class TinyAutoencoder(torch.nn.Module):
    """Means of 8x8 pixels as latents: enough to see where pixels go."""

    def encode(self, pixels):
        small = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([small, small[:, :1]], dim=1) * 2 - 1

    def decode(self, latents):
        return (latents[:, :3] / 2 + 0.5).repeat_interleave(8, -1).repeat_interleave(8, -2)


@pytest.fixture(scope="module")
def bundle():
    unet, text = UNetParams(32, (1, 2), 1, (0, 1), 1, 2, 16), TextEncoderParams(16, 1, 2)
    preset = Preset("tiny", 64, unet, MotionParams(32, (1, 2), 1, 2, 16), text)
    parts = {"unet": UNet(unet), "motion": MotionModel(preset.motion), "text": TextEncoder(text)}
    bundle = object.__new__(ModelBundle)  # with an autoencoder of another class
    for name, part in {"preset": preset, "autoencoder": TinyAutoencoder(), **parts}.items():
        object.__setattr__(bundle, name, randomised(part) if name in parts else part)
    return bundle


@pytest.fixture
def request_():
    first_frames = torch.rand((2, 3, 64, 48), generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 1, 64, 48)
    masks[:, :, 16:40, 8:32] = 1
    return {
        "first_frames": first_frames,
        "masks": masks,
        "prompts": ["run", "flap the wings"],
        "magnitudes": [4.0, 9.0],
        "seeds": [5, 6],
        "params": PARAMS,
    }


def test_noise_follows_from_the_seed_alone():
    first = initial_noise((4, 3, 8, 6), [5, 6])
    assert torch.equal(first[1], initial_noise((4, 3, 8, 6), [6])[0])
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(123)
    assert torch.equal(first, initial_noise((4, 3, 8, 6), [5, 6]))
    assert first.std().item() == pytest.approx(1, abs=0.1)


def test_sampling_is_ddim_with_guidance_between_prompt_and_empty_prompt(bundle, request_):
    """The whole loop once more, one clip and one prompt at a time, with Lin et al.'s and Song et al.'s formulas."""
    expected = []
    schedule = NoiseSchedule(bundle.motion.schedule)
    for i in range(2):
        z_0 = bundle.autoencoder.encode(request_["first_frames"][i : i + 1])
        condition = first_frame_condition(z_0, request_["masks"][i : i + 1], 3, bundle.motion.layout)
        x_t = without_temporal_mean(initial_noise((4, 3, 8, 6), [request_["seeds"][i]]), 3)
        # Magnitudes refer to the width: this clip is 48 wide, the model was trained at 64.
        magnitude = torch.tensor([request_["magnitudes"][i] * 48 / 64])
        steps = trailing_timesteps(3)
        for now, then in zip(steps, [*steps[1:], None], strict=True):
            predictions = []
            for prompt in (request_["prompts"][i], ""):
                context = bundle.text.encode([prompt])
                attachment = attach(bundle.unet, bundle.motion)
                with torch.no_grad(), attachment.conditioned(MotionConditioning(3, context, magnitude, condition)):
                    t = torch.full((3,), now)
                    v = bundle.unet(x_t[0].transpose(0, 1), t, context.repeat(3, 1, 1)).transpose(0, 1)[None]
                attachment.detach()
                predictions.append(v)
            v = predictions[1] + 3.0 * (predictions[0] - predictions[1])
            alpha_bar = schedule.alphas_cumprod[now]
            x_0 = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * v
            eps = (1 - alpha_bar).sqrt() * x_t + alpha_bar.sqrt() * v
            if then is not None:
                x_t = schedule.alphas_cumprod[then].sqrt() * x_0 + (1 - schedule.alphas_cumprod[then]).sqrt() * eps
        expected.append(x_0)
    own = generate_latents(bundle, **request_)
    torch.testing.assert_close(own, torch.cat(expected), atol=1e-3, rtol=1e-3)


def test_the_same_request_gives_the_same_latents(bundle, request_):
    assert torch.equal(generate_latents(bundle, **request_), generate_latents(bundle, **request_))


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [5, 7]},
        {"prompts": ["run", "shake"]},
        {"magnitudes": [4.0, 2.0]},
        {"params": SamplingParams(3, 3, 5.0)},
        {"params": SamplingParams(3, 3, 3.0, guidance_rescale=0.7)},
        {"params": SamplingParams(3, 4, 3.0)},
    ],
)
def test_every_input_reaches_the_clip_it_belongs_to(bundle, request_, change):
    difference = (generate_latents(bundle, **request_) - generate_latents(bundle, **(request_ | change))).abs()
    assert difference[1].max() > 0.1
    assert "params" in change or difference[0].max() < 1e-4  # the other clip of the batch stays


def test_photo_and_mask_reach_the_clip(bundle, request_):
    before = generate_latents(bundle, **request_)
    for name in ("first_frames", "masks"):
        changed = request_ | {name: request_[name].flip(-1)}
        assert (generate_latents(bundle, **changed) - before).abs().max() > 1e-3, name


def test_without_guidance_the_empty_prompt_is_not_computed(bundle, request_):
    batches = []
    handle = bundle.unet.register_forward_pre_hook(lambda _unet, inputs: batches.append(len(inputs[0])))
    try:
        plain = generate_latents(bundle, **(request_ | {"params": SamplingParams(3, 3, 1.0)}))
        assert batches == [2 * 3] * 3
        nearly = generate_latents(bundle, **(request_ | {"params": SamplingParams(3, 3, 1.0 + 1e-6)}))
        assert batches[3:] == [2 * 2 * 3] * 3
    finally:
        handle.remove()
    torch.testing.assert_close(plain, nearly, atol=1e-3, rtol=1e-3)


def test_no_hook_stays_behind_even_after_an_interruption(bundle, request_):
    plain = bundle.unet(torch.ones(1, 4, 8, 8), torch.tensor([3]), torch.ones(1, 2, 16))

    def interrupt(done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_latents(bundle, **request_, callback=interrupt)
    assert not any(layer._forward_hooks for layer in bundle.unet.modules())
    assert torch.equal(bundle.unet(torch.ones(1, 4, 8, 8), torch.tensor([3]), torch.ones(1, 2, 16)), plain)


def test_decoding_in_parts_is_decoding_frame_by_frame(bundle):
    latents = torch.randn((2, 4, 3, 8, 6), generator=torch.Generator().manual_seed(0))
    told = []
    video = decode_clip(bundle, latents, lambda *step: told.append(step))
    assert video.shape == (2, 3, 3, 64, 48) and video.min() == 0 and video.max() == 1  # clamped
    for clip in range(2):
        for frame in range(3):
            expected = bundle.autoencoder.decode(latents[clip : clip + 1, :, frame]).clamp(0, 1)
            assert torch.equal(video[clip : clip + 1, :, frame], expected)
    assert told == [(1, 2), (2, 2)] and generate.DECODED_AT_ONCE == 4


def test_the_papers_defaults():
    assert SamplingParams() == SamplingParams(num_frames=16, steps=25, guidance_scale=7.5, guidance_rescale=0.0)


@pytest.mark.parametrize("length", [2, 3])
def test_windows_too_short_for_a_quarter_share_a_frame(bundle, request_, length):
    params = SamplingParams(num_frames=5, steps=2, context_length=length)
    assert torch.isfinite(generate_latents(bundle, **request_ | {"params": params})).all()
    with pytest.raises(ValueError, match="cannot overlap by 0"):
        generate_latents(bundle, **request_ | {"params": replace(params, context_overlap=0)})


@pytest.mark.parametrize(
    ("device", "features", "dtype"),
    [
        ("cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ("cpu", {"avx512_bf16": False, "avx2": True}, None),
        ("cuda", {"avx512_bf16": True}, None),
    ],
)
def test_bfloat16_is_chosen_where_a_cpu_multiplies_it_faster(monkeypatch, device, features, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert fastest_dtype(torch.device(device)) is dtype


def test_a_pytorch_that_does_not_know_the_cpu_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fastest_dtype(torch.device("cpu")) is None


def counted_halves(bundle):
    sizes = []
    bundle.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return sizes


def test_outside_its_interval_guidance_is_neither_applied_nor_computed(bundle, request_):
    sizes = counted_halves(bundle)
    params = SamplingParams(4, 4, 5.0, guidance_interval=(0.25, 0.6))
    partly = generate_latents(bundle, **request_ | {"params": params})
    clip = len(request_["seeds"]) * 4
    assert sizes == [clip, 2 * clip, 2 * clip, clip]  # done before each step: 0, 0.25, 0.5 and 0.75
    for other in (SamplingParams(4, 4, 5.0), SamplingParams(4, 4, 1.0)):
        assert not torch.allclose(partly, generate_latents(bundle, **request_ | {"params": other}), atol=1e-4)
    whole = SamplingParams(4, 4, 5.0, guidance_interval=(0.0, 0.9999))
    assert torch.equal(
        generate_latents(bundle, **request_ | {"params": whole}),
        generate_latents(bundle, **request_ | {"params": SamplingParams(4, 4, 5.0)}),
    )


def test_one_step_that_no_interval_holds_is_guided_all_the_same(bundle, request_):
    sizes = counted_halves(bundle)
    params = SamplingParams(4, 1, 5.0, guidance_interval=(0.1, 0.7))
    once = generate_latents(bundle, **request_ | {"params": params})
    assert sizes == [2 * len(request_["seeds"]) * 4]
    assert torch.equal(once, generate_latents(bundle, **request_ | {"params": SamplingParams(4, 1, 5.0)}))


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.2), (-0.1, 1.0), (0.0, 1.5)])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(ValueError, match="interval of guidance"):
        SamplingParams(guidance_interval=interval)


def test_an_interval_and_reused_features_exclude_each_other():
    with pytest.raises(ValueError, match="one of the two"):
        SamplingParams(guidance_interval=(0.2, 0.8), reuse=ReuseParams(3))
