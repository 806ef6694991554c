"""Where training on shards starts and what it ends with: Stable Diffusion, AnimateDiff, LoRAs, and the dry run."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from followclick_core import presets
from followclick_core.checkpoint import CheckpointError, load_safetensors, save_safetensors
from followclick_core.models import text_encoder, unet
from followclick_core.models.bundle import load_bundle
from followclick_core.models.lora import merge_motion_lora, save_motion_lora
from followclick_core.models.motion_model import load_motion_model
from followclick_core.models.sd_autoencoder import SDAutoencoder
from followclick_core.models.text_encoder import TextEncoder, TextEncoderParams
from followclick_core.models.unet import UNet, UNetParams
from followclick_core.training import dry_run as dry_run_module
from followclick_core.training.clip_params import clip_training
from followclick_core.training.clip_run import Start, train_on_shards
from followclick_core.training.dry_run import dry_run


@pytest.fixture
def small_sd15(monkeypatch, tmp_path):
    """Stable Diffusion 1.5 at a tenth of its width, as the checkpoint that people have: LDM keys, half precision."""
    numbers, text = UNetParams(32, num_heads=4, context_dim=16), TextEncoderParams(16, 1, 2)
    monkeypatch.setattr(unet, "UNetParams", lambda **given: UNetParams(**given) if given else numbers)
    monkeypatch.setattr(
        text_encoder, "TextEncoderParams", lambda **given: TextEncoderParams(**given) if given else text
    )
    monkeypatch.setitem(presets.PRESETS, "sd15", presets._preset("sd15", 64, numbers, text))
    torch.manual_seed(0)
    parts = {
        "model.diffusion_model.": UNet(numbers),
        "cond_stage_model.transformer.": TextEncoder(text),
        "first_stage_model.": SDAutoencoder(),
    }
    tensors = {prefix + key: value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    path = tmp_path / "v1-5-pruned.safetensors"
    save_safetensors(path, {key: value.half() for key, value in tensors.items()})
    return path


def test_sd15_and_animatediff_are_a_start_and_the_end_is_a_model_that_loads(
    small_sd15, shards, tmp_path, animatediff_file
):
    torch.save(animatediff_file(32, True), tmp_path / "mm_sd_v15_v2.ckpt")
    stage = clip_training("sd15", "captions")
    loop = replace(stage.loop, steps=1, warmup=1)
    stage = replace(stage, loop=loop, size=64, num_frames=4, batch_size=1, validation_clips=0, precision="no")
    start = Start(str(small_sd15), str(tmp_path / "mm_sd_v15_v2.ckpt"))
    assert train_on_shards("sd15", shards, tmp_path / "run", [stage], start, device="cpu")
    motion = load_motion_model(tmp_path / "run" / "weights" / "motion.safetensors")
    assert motion.params.mid_block and motion.params.trained_frames == 4
    begun = animatediff_file(32, True)
    moved = [key for key, value in motion.state_dict().items() if key in begun and not torch.equal(value, begun[key])]
    close = [key for key in moved if (motion.state_dict()[key] - begun[key]).abs().max() < 3e-3]
    assert len(moved) > 500 and close == moved  # one step of 1e-4, and half precision
    # The rest of the folder is Stable Diffusion's own, so that the folder is a whole model.
    bundle, base = load_bundle(tmp_path / "run" / "weights"), load_safetensors(small_sd15)[0]
    for prefix, part in (("model.diffusion_model.", bundle.unet), ("first_stage_model.", bundle.autoencoder)):
        assert all(torch.equal(value, base[prefix + key].float()) for key, value in part.state_dict().items())
    key = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(bundle.text.state_dict()[key], base[f"cond_stage_model.transformer.{key}"].float())


def test_the_motion_lora_is_animatediffs_form_and_adds_up_to_the_model(shards, tiny_stage, tiny_weights, tmp_path):
    stage = tiny_stage(trainable="motion-lora", lora_rank=2, steps=2, learning_rate=0.02)
    train_on_shards("tiny", shards, tmp_path, [stage], Start(str(tiny_weights)), device="cpu")
    lora = tmp_path / "weights" / "motion_lora.safetensors"
    keys = load_safetensors(lora)[0].keys()
    first = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor."
    assert {f"{first}to_{x}_lora.{side}.weight" for x in ("q", "k", "v", "out") for side in ("down", "up")} <= keys
    assert len(keys) == 7 * 2 * 4 * 2  # modules, attentions, layers, sides
    trained = load_motion_model(tmp_path / "weights" / "motion.safetensors").state_dict()
    merged, plain = (load_motion_model(tiny_weights / "motion.safetensors") for _ in range(2))
    merge_motion_lora(merged, lora)
    assert all(torch.allclose(value, trained[key], atol=2e-3) for key, value in merged.state_dict().items())
    assert any((value - plain.state_dict()[key]).abs().max() > 5e-3 for key, value in merged.state_dict().items())
    half = load_motion_model(tiny_weights / "motion.safetensors")
    merge_motion_lora(half, lora, strength=0.5)
    for key, value in half.state_dict().items():
        assert torch.allclose(value, (merged.state_dict()[key] + plain.state_dict()[key]) / 2, atol=1e-5)


def test_what_is_no_motion_lora_or_another_models_is_refused(tiny_weights, tmp_path):
    motion = load_motion_model(tiny_weights / "motion.safetensors")
    save_motion_lora(tmp_path / "empty.safetensors", motion)
    merge_motion_lora(motion, tmp_path / "empty.safetensors")  # nothing in it, nothing to do
    layer = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor."
    path = tmp_path / "lora.safetensors"
    save_safetensors(path, {f"{layer}to_q_lora.down.weight": torch.ones(2, 99)})
    with pytest.raises(CheckpointError, match="lora.safetensors does not fit this motion model at down_blocks.0"):
        merge_motion_lora(motion, path)
    save_safetensors(path, {"lora_unet_x.lora_down.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="is no motion LoRA: it holds lora_unet_x.lora_down.weight"):
        merge_motion_lora(motion, path)


def test_the_spatial_lora_is_the_difference_between_the_unets(shards, tiny_stage, tiny_weights, tmp_path):
    stage = tiny_stage(trainable="spatial-lora", lora_rank=2, steps=2, learning_rate=0.02)
    train_on_shards("tiny", shards, tmp_path, [stage], Start(str(tiny_weights)), device="cpu")
    tensors = load_safetensors(tmp_path / "weights" / "spatial_lora.safetensors")[0]
    before = load_safetensors(tiny_weights / "unet.safetensors")[0]
    after = load_safetensors(tmp_path / "weights" / "unet.safetensors")[0]
    names = {key.rpartition(".lora_down")[0] for key in tensors if key.endswith(".lora_down.weight")}
    layers = {f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}": key for key in before}
    assert len(names) == 32 and names <= layers.keys()  # four transformers, two attentions, four layers
    for name in names:
        up, down = (tensors[f"{name}.lora_{side}.weight"].float() for side in ("up", "down"))
        assert tensors[f"{name}.alpha"] == len(down) == 2
        assert torch.allclose(before[layers[name]].float() + up @ down, after[layers[name]].float(), atol=3e-3)


def test_a_rank_that_no_layer_has_is_refused(shards, tiny_stage, tiny_weights, tmp_path):
    stage = tiny_stage(trainable="motion-lora", lora_rank=40)
    with pytest.raises(ValueError, match="The LoRA's rank is 40; give 1 to 32"):
        train_on_shards("tiny", shards, tmp_path, [stage], Start(str(tiny_weights)), device="cpu")


def test_attention_alone_needs_a_model_that_sees_the_first_frame(small_sd15, shards, tmp_path, animatediff_file):
    torch.save(animatediff_file(24, False), tmp_path / "mm_sd_v15.ckpt")
    stage = replace(clip_training("sd15", "captions"), trainable="ma", size=64, num_frames=4, batch_size=1)
    start = Start(str(small_sd15), str(tmp_path / "mm_sd_v15.ckpt"))
    with pytest.raises(ValueError, match="The set ma adds to a motion model that has been trained already"):
        train_on_shards("sd15", shards, tmp_path / "run", [replace(stage, precision="no")], start, device="cpu")


# The dry run


def test_a_dry_run_counts_what_is_trained_and_says_that_it_has_computed():
    report = dry_run("nano", clip_training("nano", "captions"), "cpu")
    assert report.trained < report.total and not report.measured
    text = report.to_text()
    assert (
        "peak memory and time are computed" in text
        and "(measured)" in text.split("at most (computed)")[1].splitlines()[3]
    )
    assert report.memory["AdamW's two moments"] == 8 * report.trained
    assert report.peak == sum(report.memory.values()) and report.utilisation == pytest.approx(1)


def test_attention_is_counted():
    from torch.nn.functional import scaled_dot_product_attention

    dry_run_module._count_attention()
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        query, key, value = (torch.randn(1, 2, 64, 8, requires_grad=True) for _ in range(3))
        scaled_dot_product_attention(query, key, value).sum().backward()
    # Two products forward; backward five, of which one is the first again.
    assert counter.get_total_flops() == 7 * 2 * 2 * 64 * 64 * 8


def test_utilisation_is_of_what_the_model_asks_for():
    stage = replace(clip_training("nano", "captions"), micro_batch=1, trainable="ma")
    plain, checkpointed = (dry_run("nano", replace(stage, gradient_checkpointing=on), "cpu") for on in (False, True))
    assert plain.model_flops == checkpointed.model_flops == plain.flops < checkpointed.flops
    assert plain.utilisation == pytest.approx(1)
    assert checkpointed.utilisation == pytest.approx(plain.flops / checkpointed.flops)
    assert checkpointed.to_dict()["utilisation"] == checkpointed.utilisation


def test_checkpointing_takes_less_memory_and_more_arithmetic():
    stage = replace(clip_training("nano", "captions"), micro_batch=1, trainable="ma")
    plain, checkpointed = (dry_run("nano", replace(stage, gradient_checkpointing=on), "cpu") for on in (False, True))
    activations = "activations and gradients at their height"
    assert checkpointed.memory[activations] < 0.5 * plain.memory[activations]
    assert 1.1 * plain.flops < checkpointed.flops < 2 * plain.flops


def test_twice_the_clips_are_twice_the_activations_and_arithmetic():
    stage = replace(clip_training("nano", "captions"), trainable="ma", batch_size=8)
    one, two = (dry_run("nano", replace(stage, micro_batch=n), "cpu") for n in (2, 4))
    activations = "activations and gradients at their height"
    assert two.flops == pytest.approx(2 * one.flops, rel=0.01)
    assert 1.8 < two.memory[activations] / one.memory[activations] < 2.05
    assert two.memory["frozen weights"] == one.memory["frozen weights"]
