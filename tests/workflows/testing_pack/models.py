"""Random weights in the host's classes, without a file: filling gigabytes takes a second, reading them does not."""

import comfy.model_base
import comfy.model_management as memory
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import ClipTarget

PERIOD = 1_000_003  # of the random numbers in large weights; prime, so that no two rows of a weight are the same


class AnySizeSD15(comfy.supported_models.SD15):
    """What LoRA, FreeU and ControlNet read of a MODEL of the SD1.5 family, at any width."""


class RandomModel:
    """A MODEL with the blocks of Stable Diffusion 1.5; its own widths are (320, 640, 1280, 1280) and 768."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "make", "testing"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"channels": ("INT", {"default": 64}), "text_width": ("INT", {"default": 128})}}

    def make(self, channels: int, text_width: int):
        config = AnySizeSD15(
            {
                "image_size": 32,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": channels,
                "num_res_blocks": [2, 2, 2, 2],
                "channel_mult": [1, 2, 4, 4],
                "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
                "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
                "transformer_depth_middle": 1,
                "context_dim": text_width,
                "use_spatial_transformer": True,
                "use_linear_in_transformer": False,
                "use_temporal_attention": False,
                "use_temporal_resblock": False,
                "adm_in_channels": None,
                "legacy": False,
            }
        )
        # At the true width two bytes a weight, computed in four as the host does on a card that cannot.
        large = channels > 64
        config.set_inference_dtype(torch.bfloat16 if large else torch.float32, torch.float32 if large else None)
        device = memory.get_torch_device()
        model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device=memory.unet_offload_device())
        fill(model.diffusion_model)
        return (ModelPatcher(model.eval(), load_device=device, offload_device=memory.unet_offload_device()),)


class RandomClip:
    """A CLIP of one layer with SD1's tokenizer."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "make", "testing"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"width": ("INT", {"default": 768})}}

    def make(self, width: int):
        target = ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
        config = {
            "num_hidden_layers": 1,
            "hidden_size": width,
            "num_attention_heads": 8,
            "intermediate_size": 4 * width,
            "hidden_act": "quick_gelu",
            "max_position_embeddings": 77,
            "vocab_size": 49408,
            "eos_token_id": 49407,
        }
        target.params = {"clip_model": comfy.sd1_clip.SDClipModel, "textmodel_json_config": config}
        clip = comfy.sd.CLIP(target)
        fill(clip.cond_stage_model)
        return (clip,)


@torch.inference_mode()
def fill(module: torch.nn.Module) -> None:
    """Weights that keep the size of what passes through them; biases and norms as small and large as trained ones."""
    numbers = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0))
    for name, parameter in module.named_parameters():
        drawn = numbers.repeat(parameter.numel() // PERIOD + 1)[: parameter.numel()].view(parameter.shape)
        if parameter.ndim > 1:
            drawn = drawn * 0.7 / parameter[0].numel() ** 0.5
        else:
            drawn = 0.1 * drawn + (1.0 if name.endswith("weight") else 0.0)
        parameter.copy_(drawn)
