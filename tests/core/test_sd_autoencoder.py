"""Stable Diffusion's own autoencoder and text encoder: their published sizes, keys, and how they are read."""

import pytest
import torch

from followclick_core.checkpoint import CheckpointError, save_safetensors
from followclick_core.models import text_encoder
from followclick_core.models.autoencoder import Autoencoder, save_autoencoder
from followclick_core.models.sd_autoencoder import (
    SDAutoencoder,
    load_any_autoencoder,
    load_sd_autoencoder,
    save_sd_autoencoder,
)
from followclick_core.models.text_encoder import TextEncoder, TextEncoderParams, load_sd_text_encoder


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return SDAutoencoder().eval()


def test_it_has_the_published_number_of_parameters_and_keys(autoencoder):
    state = autoencoder.state_dict()
    assert len(state) == 248 and sum(value.numel() for value in state.values()) == 83_653_863
    for key, shape in {
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        "encoder.conv_out.weight": (8, 512, 3, 3),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "post_quant_conv.weight": (4, 4, 1, 1),
    }.items():
        assert state[key].shape == shape, key


@torch.inference_mode()
def test_latents_are_an_eighth_of_the_picture_and_lead_back_to_its_size(autoencoder):
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    latents = autoencoder.encode(pixels)
    assert latents.shape == (1, 4, 4, 6) and autoencoder.decode(latents).shape == pixels.shape
    # The unit scale is Stable Diffusion's 0.18215, on the mean alone.
    moments = autoencoder.quant_conv(autoencoder.encoder(2 * pixels - 1))
    assert torch.allclose(latents, 0.18215 * moments[:, :4])


def test_it_is_read_from_a_checkpoint_and_from_a_file_of_its_own(autoencoder, tmp_path):
    whole = {f"first_stage_model.{key}": value for key, value in autoencoder.state_dict().items()}
    whole |= {"model.diffusion_model.out.0.weight": torch.ones(4), "first_stage_model.loss.logvar": torch.ones(1)}
    save_safetensors(tmp_path / "checkpoint.safetensors", {key: value.half() for key, value in whole.items()})
    save_sd_autoencoder(tmp_path / "autoencoder.safetensors", autoencoder)
    first = load_sd_autoencoder(tmp_path / "checkpoint.safetensors").state_dict()
    second = load_any_autoencoder(tmp_path / "autoencoder.safetensors").state_dict()
    for key, value in autoencoder.state_dict().items():
        assert torch.equal(first[key], value.half().float()) and torch.equal(second[key], first[key])
    save_autoencoder(tmp_path / "small.safetensors", Autoencoder())
    assert isinstance(load_any_autoencoder(tmp_path / "small.safetensors"), Autoencoder)


def test_a_checkpoint_without_an_autoencoder_is_refused(tmp_path):
    path = tmp_path / "unet.safetensors"
    save_safetensors(path, {"model.diffusion_model.out.0.weight": torch.ones(4)})
    with pytest.raises(CheckpointError, match="unet.safetensors holds no autoencoder of Stable Diffusion"):
        load_sd_autoencoder(path)
    save_safetensors(path, {"first_stage_model.encoder.down.0.block.0.norm1.weight": torch.ones(4)})
    with pytest.raises(CheckpointError, match="247 missing"):
        load_sd_autoencoder(path)
    with pytest.raises(CheckpointError, match="holds no text encoder of Stable Diffusion 1"):
        load_sd_text_encoder(path)


def test_the_text_encoder_of_stable_diffusion_1_has_clips_size_and_is_read_from_its_keys(tmp_path, monkeypatch):
    with torch.device("meta"):
        full = TextEncoder(TextEncoderParams())
    assert len(full.state_dict()) == 196 and sum(p.numel() for p in full.parameters()) == 123_060_480
    small = TextEncoderParams(width=16, layers=2, num_heads=2)
    torch.manual_seed(0)
    model = TextEncoder(small)
    tensors = {f"cond_stage_model.transformer.{key}": value for key, value in model.state_dict().items()}
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_safetensors(tmp_path / "v1-5.safetensors", tensors)
    with pytest.raises(CheckpointError, match="160 missing"):
        load_sd_text_encoder(tmp_path / "v1-5.safetensors")
    monkeypatch.setattr(text_encoder, "TextEncoderParams", lambda: small)
    read = load_sd_text_encoder(tmp_path / "v1-5.safetensors").state_dict()
    assert all(torch.equal(read[key], value) for key, value in model.state_dict().items())
