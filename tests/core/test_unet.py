"""The UNet against Stable Diffusion's key list and against its maths written a second time."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from followclick_core.checkpoint import CheckpointError, load_tensors, save_safetensors
from followclick_core.models.blocks import ResBlock, SpatialTransformer
from followclick_core.models.embeddings import ScalarEmbedding, sinusoidal_embedding
from followclick_core.models.unet import UNet, UNetParams, load_unet, save_unet
from followclick_core.presets import get_preset

KEYS = Path(__file__).parents[3] / "shared" / "data" / "checkpoint_keys" / "sd15_unet_ldm.json"
TINY = UNetParams(32, (1, 2), 1, (0, 1), 1, num_heads=2, context_dim=16)


def randomised(module):
    """Every parameter of some size: output layers start at zero, which would hide errors."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator) + (parameter.data.mean() == 1)
    return module.eval()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet():
    return randomised(UNet(TINY))


def test_sd15_has_the_686_keys_and_shapes_of_stable_diffusion():
    if not KEYS.is_file():
        pytest.skip(f"the key list is not at {KEYS}")
    published = json.loads(KEYS.read_text())
    with torch.device("meta"):
        own = UNet(get_preset("sd15").unet).state_dict()
    assert len(published) == 686
    assert {f"model.diffusion_model.{key}": list(value.shape) for key, value in own.items()} == published


# The maths of Rombach et al. 2022's UNet from a state dict, without any of the package's layers.


class Reference:
    def __init__(self, module):
        self.weights = dict(module.state_dict())

    def affine(self, name, x):
        """A linear layer, or a 1x1 or 3x3 convolution by its weight's shape."""
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if weight.ndim == 2:
            return x @ weight.T + (0 if bias is None else bias)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def group_norm(self, name, x, eps):
        grouped = x.reshape(len(x), 32, -1)
        mean, variance = grouped.mean(-1, keepdim=True), grouped.var(-1, keepdim=True, unbiased=False)
        normed = ((grouped - mean) / (variance + eps).sqrt()).reshape(x.shape)
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return normed * weight[:, None, None] + bias[:, None, None]

    def layer_norm(self, name, x):
        normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return normed * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, name, x, context, heads):
        q, k, v = (
            self.affine(f"{name}.to_q", x),
            self.affine(f"{name}.to_k", context),
            self.affine(f"{name}.to_v", context),
        )
        width = q.shape[-1] // heads
        outputs = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
            outputs.append(scores.softmax(-1) @ v[..., part])
        return self.affine(f"{name}.to_out.0", torch.cat(outputs, -1))

    def res_block(self, name, x, emb):
        prefix = f"{name}." if name else ""
        h = self.affine(f"{prefix}in_layers.2", silu(self.group_norm(f"{prefix}in_layers.0", x, 1e-5)))
        h = h + self.affine(f"{prefix}emb_layers.1", silu(emb))[:, :, None, None]
        h = self.affine(f"{prefix}out_layers.3", silu(self.group_norm(f"{prefix}out_layers.0", h, 1e-5)))
        skip = f"{prefix}skip_connection"
        return h + (self.affine(skip, x) if f"{skip}.weight" in self.weights else x)

    def transformer(self, name, x, context, heads):
        prefix = f"{name}." if name else ""
        h = self.affine(f"{prefix}proj_in", self.group_norm(f"{prefix}norm", x, 1e-6)).flatten(2).transpose(1, 2)
        t = f"{prefix}transformer_blocks.0"
        own = self.layer_norm(f"{t}.norm1", h)
        h = h + self.attention(f"{t}.attn1", own, own, heads)
        h = h + self.attention(f"{t}.attn2", self.layer_norm(f"{t}.norm2", h), context, heads)
        value, gate = self.affine(f"{t}.ff.net.0.proj", self.layer_norm(f"{t}.norm3", h)).chunk(2, -1)
        gelu = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
        h = h + self.affine(f"{t}.ff.net.2", value * gelu)
        return x + self.affine(f"{prefix}proj_out", h.transpose(1, 2).reshape(x.shape))

    def tiny_unet(self, x, t, context):
        """TINY's wiring, spelled out: two levels of one block each, transformers below only."""
        w, heads = self.weights, TINY.num_heads
        emb = self.affine("time_embed.2", silu(self.affine("time_embed.0", timestep_sinusoid(t, 32))))
        h0 = self.affine("input_blocks.0.0", x)
        h1 = self.res_block("input_blocks.1.0", h0, emb)
        h2 = F.conv2d(h1, w["input_blocks.2.0.op.weight"], w["input_blocks.2.0.op.bias"], stride=2, padding=1)
        h3 = self.transformer("input_blocks.3.1", self.res_block("input_blocks.3.0", h2, emb), context, heads)
        h = self.transformer("middle_block.1", self.res_block("middle_block.0", h3, emb), context, heads)
        h = self.res_block("middle_block.2", h, emb)
        h = self.res_block("output_blocks.0.0", torch.cat([h, h3], 1), emb)
        h = self.transformer("output_blocks.0.1", h, context, heads)
        h = self.res_block("output_blocks.1.0", torch.cat([h, h2], 1), emb)
        h = self.transformer("output_blocks.1.1", h, context, heads)
        h = self.affine("output_blocks.1.2.conv", h.repeat_interleave(2, -1).repeat_interleave(2, -2))
        h = self.res_block("output_blocks.2.0", torch.cat([h, h1], 1), emb)
        h = self.res_block("output_blocks.3.0", torch.cat([h, h0], 1), emb)
        return self.affine("out.2", silu(self.group_norm("out.0", h, 1e-5)))


def silu(x):
    return x / (1 + torch.exp(-x))


def timestep_sinusoid(values, width):
    """Of improved DDPM: cosines first, then sines, at frequencies 10000^(-i / (width / 2))."""
    rows = []
    for value in values.tolist():
        angles = [value * 10000 ** (-i / (width // 2)) for i in range(width // 2)]
        rows.append([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    return torch.tensor(rows)


@pytest.mark.parametrize(("width_in", "width_out"), [(32, 32), (64, 32)])
def test_a_res_block_computes_what_its_definition_says(width_in, width_out):
    block = randomised(ResBlock(width_in, 24, width_out))
    x, emb = noise(3, width_in, 6, 5), noise(3, 24, seed=1)
    torch.testing.assert_close(block(x, emb), Reference(block).res_block("", x, emb), atol=1e-5, rtol=1e-4)


def test_a_spatial_transformer_computes_what_its_definition_says():
    block = randomised(SpatialTransformer(64, 16, num_heads=4, depth=1))
    x, context = noise(2, 64, 6, 5), noise(2, 7, 16, seed=1)
    torch.testing.assert_close(block(x, context), Reference(block).transformer("", x, context, 4), atol=1e-5, rtol=1e-4)


def test_the_unet_is_wired_like_stable_diffusions(unet):
    x, t, context = noise(3, 4, 8, 6), torch.tensor([0, 421, 999]), noise(3, 5, 16, seed=1)
    torch.testing.assert_close(unet(x, t, context), Reference(unet).tiny_unet(x, t, context), atol=1e-4, rtol=1e-3)


def test_sinusoids_put_cosines_first():
    values = torch.tensor([0, 1, 500, 999])
    torch.testing.assert_close(
        sinusoidal_embedding(values, 32), timestep_sinusoid(values, 32).float(), atol=2e-4, rtol=0
    )


def test_a_new_scalar_embedding_adds_nothing_and_a_trained_one_tells_numbers_apart():
    embedding = ScalarEmbedding(32, 128)
    values = torch.tensor([0.0, 2.0, 6.5])
    assert not embedding(values).any()
    randomised(embedding)
    assert (embedding(values)[1:] - embedding(values)[:-1]).abs().amax(1).min() > 1e-2


def test_frames_are_independent_without_a_motion_model(unet):
    x, t, context = noise(4, 4, 8, 8), torch.tensor([5, 300, 600, 999]), noise(4, 5, 16, seed=1)
    together = unet(x, t, context)
    for i in range(4):
        alone = unet(x[i : i + 1], t[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)
    changed = x.clone()
    changed[2] += 1
    moved = (unet(changed, t, context) - together).abs().amax((1, 2, 3))
    assert moved[2] > 1e-2 and moved[[0, 1, 3]].max() == 0


def test_timestep_and_text_reach_the_output(unet):
    x, t, context = noise(1, 4, 8, 8), torch.tensor([300]), noise(1, 5, 16, seed=1)
    plain = unet(x, t, context)
    assert (unet(x, t + 300, context) - plain).abs().max() > 1e-3
    assert (unet(x, t, context.flip(2)) - plain).abs().max() > 1e-3
    # Attention has no order of its own: the order of the text's tokens is the text encoder's affair.
    torch.testing.assert_close(unet(x, t, context.flip(1)), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(7, 5), (1, 9)])
def test_odd_latent_sizes_come_back_at_their_size(unet, size):
    assert unet(noise(1, 4, *size), torch.tensor([10]), noise(1, 5, 16)).shape == (1, 4, *size)


def test_a_new_unet_predicts_zero():
    assert not UNet(TINY)(noise(1, 4, 8, 8), torch.tensor([10]), noise(1, 5, 16)).any()


def test_levels_and_transformer_depths_must_agree():
    with pytest.raises(ValueError, match="3 UNet levels need a transformer depth each"):
        UNetParams(channel_mult=(1, 2, 4), transformer_depth=(0, 1))


def test_a_unet_survives_saving(unet, tmp_path):
    save_unet(tmp_path / "unet.safetensors", unet, {"preset": "none"})
    loaded = load_unet(tmp_path / "unet.safetensors")
    assert loaded.params == TINY
    for key, value in unet.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.half().float()), key
    assert load_tensors(tmp_path / "unet.safetensors")[1]["preset"] == "none"


def test_a_unet_file_with_a_missing_a_foreign_and_a_reshaped_key_is_refused_with_their_names(unet, tmp_path):
    path = tmp_path / "unet.safetensors"
    save_unet(path, unet)
    tensors, metadata = load_tensors(path)
    del tensors["out.2.bias"]
    tensors["out.3.bias"] = torch.zeros(4)
    tensors["time_embed.0.bias"] = torch.zeros(5)
    save_safetensors(path, tensors, metadata)
    with pytest.raises(
        CheckpointError, match=r"1 missing \(out.2.bias\).*1 unexpected \(out.3.bias\).*time_embed.0.bias"
    ):
        load_unet(path)


def test_a_file_without_a_unet_is_refused(tmp_path):
    save_safetensors(tmp_path / "lora.safetensors", {"lora_up": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="lora.safetensors holds no Stable Diffusion UNet"):
        load_unet(tmp_path / "lora.safetensors")
