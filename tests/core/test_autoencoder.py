"""The autoencoder's shape is TAESD's, and its files are strict."""

import pytest
import torch

from followclick_core.checkpoint import CheckpointError, load_safetensors, save_safetensors
from followclick_core.models.autoencoder import Autoencoder, Clamp, load_autoencoder, save_autoencoder


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Autoencoder().eval()


def test_it_has_taesds_2_445_063_weights_and_key_names(model):
    state = model.state_dict()
    learned = {key: value for key, value in state.items() if key.startswith("taesd_")}
    assert sum(value.numel() for value in learned.values()) == 2_445_063  # as published (diffusers' AutoencoderTiny)
    assert set(state) - set(learned) == {"vae_scale", "vae_shift"}
    # The first and last layer of TAESD's files, and the downsampling, which has no bias.
    assert state["taesd_encoder.0.weight"].shape == (64, 3, 3, 3)
    assert state["taesd_encoder.2.weight"].shape == (64, 64, 3, 3) and "taesd_encoder.2.bias" not in state
    assert state["taesd_encoder.14.weight"].shape == (4, 64, 3, 3)
    assert state["taesd_decoder.1.weight"].shape == (64, 4, 3, 3)
    assert state["taesd_decoder.19.weight"].shape == (3, 64, 3, 3)


def test_latents_have_an_eighth_of_the_size_and_pixels_come_back(model):
    pixels = torch.rand(2, 3, 48, 64)
    latents = model.encode(pixels)
    assert latents.shape == (2, 4, 6, 8) and model.decode(latents).shape == pixels.shape


def test_a_latent_cell_sees_its_own_place(model):
    pixels = torch.full((1, 3, 256, 256), 0.5)
    changed = pixels.clone()
    changed[..., :8, :8] = 1
    moved = (model.encode(changed) - model.encode(pixels)).abs().amax((0, 1))
    assert moved[0, 0] > 0 and moved[20:, 20:].max() == 0


def test_frames_are_coded_one_by_one(model):
    latents = noise(3, 4, 4, 4)
    together = model.decode(latents)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], model.decode(latents[i : i + 1]), atol=1e-5, rtol=1e-4)


def test_stray_latents_are_clamped_softly(model):
    x = torch.tensor([-100.0, -1.0, 0.0, 0.01, 1.0, 100.0])
    clamped = Clamp()(x)
    torch.testing.assert_close(clamped, 3 * torch.tanh(x / 3))
    torch.testing.assert_close(clamped[[0, 5]], torch.tensor([-3.0, 3.0]))
    torch.testing.assert_close(clamped[3], x[3], atol=1e-6, rtol=1e-3)
    wild = 1e4 * noise(1, 4, 4, 4)
    torch.testing.assert_close(model.decode(wild), model.decode(100 * wild))


def test_the_host_is_told_stable_diffusions_latent_scale(model):
    """ComfyUI's TAESD divides by vae_scale when encoding, so that its latents are ours times 1 / 0.18215."""
    assert model.vae_scale.item() == pytest.approx(0.18215) and model.vae_shift.item() == 0
    assert not model.vae_scale.requires_grad and not model.vae_shift.requires_grad


def test_an_autoencoder_survives_saving(model, tmp_path):
    save_autoencoder(tmp_path / "vae.safetensors", model, {"preset": "nano"})
    loaded = load_autoencoder(tmp_path / "vae.safetensors")
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.half().float()), key
    assert load_safetensors(tmp_path / "vae.safetensors")[1]["preset"] == "nano"
    assert not loaded.training


def test_other_weights_are_refused(model, tmp_path):
    path = tmp_path / "vae.safetensors"
    save_autoencoder(path, model)
    tensors, _ = load_safetensors(path)
    save_safetensors(path, {key: value for key, value in tensors.items() if not key.startswith("taesd_decoder.19")})
    with pytest.raises(CheckpointError, match="vae.safetensors does not fit this model: 2 missing"):
        load_autoencoder(path)
    save_safetensors(path, {"first_stage_model.encoder.conv_in.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="1 unexpected"):
        load_autoencoder(path)
