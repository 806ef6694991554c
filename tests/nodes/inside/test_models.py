"""The core's models as the host's own: the same numbers come out."""

import comfy.lora
import comfy.model_base
import comfy.model_detection
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher


@pytest.fixture(scope="module")
def bundle(pack, weights):
    return pack.module("followclick_core.models.bundle").load_bundle()


def test_the_outputs_are_the_hosts_own_types(demo):
    assert type(demo.model) is ModelPatcher and isinstance(demo.model.model, comfy.model_base.BaseModel)
    assert type(demo.clip) is comfy.sd.CLIP and type(demo.vae) is comfy.sd.VAE


def test_the_hosts_unet_computes_what_ours_does(demo, bundle):
    x, t = torch.randn(2, 4, 12, 16), torch.tensor([999.0, 3.0])
    context = torch.randn(2, 77, bundle.unet.params.context_dim)
    theirs = demo.model.model.diffusion_model(x, t, context, transformer_options={})
    torch.testing.assert_close(theirs, bundle.unet(x, t, context), rtol=1e-4, atol=1e-4)


def test_the_hosts_text_encoder_computes_what_ours_does(demo, bundle):
    for prompt in ("run", "", "spin left, spin LEFT!", "jump " * 70):
        theirs = demo.clip.encode_from_tokens(demo.clip.tokenize(prompt))
        torch.testing.assert_close(theirs, bundle.text.encode([prompt]), rtol=1e-4, atol=1e-4)


def test_the_hosts_vae_computes_what_ours_does(demo, bundle, picture):
    pixels = picture.movedim(-1, 1)
    latents = bundle.autoencoder.encode(pixels)
    torch.testing.assert_close(demo.vae.encode(picture) * 0.18215, latents, rtol=1e-4, atol=1e-4)
    decoded = bundle.autoencoder.decode(latents).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(demo.vae.decode(latents / 0.18215), decoded, rtol=1e-4, atol=1e-4)


def test_the_host_would_recognise_the_unet_by_its_keys(demo):
    own = demo.model.model.model_config.unet_config
    found = comfy.model_detection.detect_unet_config(demo.model.model.diffusion_model.state_dict(), "")
    for key, value in found.items():
        assert own.get(key, value) == value, key


def test_the_noise_schedule_is_the_trained_one(pack, demo, bundle):
    schedule = pack.module("followclick_core.diffusion.schedule").NoiseSchedule(bundle.motion.schedule)
    alphas = schedule.alphas_cumprod.double()
    sigmas = demo.model.get_model_object("model_sampling").sigmas.double()
    # The host clamps the last level, which is infinite, to its own 4518.76.
    torch.testing.assert_close(sigmas[:-1], ((1 - alphas) / alphas).sqrt()[:-1], rtol=1e-3, atol=0)
    assert sigmas[-1] == pytest.approx(4518.76, rel=1e-4)


def test_lora_keys_of_both_naming_schemes_reach_the_unet(demo):
    keys = comfy.lora.model_lora_keys_unet(demo.model.model, {})
    target = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    assert keys["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"] == target
    assert keys["lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"] == target
    assert {f"diffusion_model.{key}" for key in demo.model.model.diffusion_model.state_dict()} <= set(keys.values())


def test_weights_that_do_not_fit_are_refused(pack, weights, bundle):
    host_models = pack.module("nodes.host_models")
    wrong = pack.module("followclick_core.checkpoint").CheckpointError
    tensors = bundle.unet.state_dict()
    tensors.pop("out.2.weight")
    with pytest.raises(wrong, match=r"other.safetensors.*out.2.weight"):
        host_models.host_model(bundle.unet.params, bundle.motion.schedule, tensors, "other.safetensors")
    with pytest.raises(wrong, match=r"other.safetensors.*missing"):
        host_models.host_clip(bundle.text.params, {}, "other.safetensors")
