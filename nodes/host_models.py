"""The core's models as the host's own MODEL, CLIP and VAE, so that every stock node takes them."""

from typing import ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as memory
import comfy.model_sampling
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import ClipTarget
from torch import Tensor

from ..followclick_core.checkpoint import CheckpointError, load_strict
from ..followclick_core.diffusion.schedule import SPACINGS, ScheduleParams
from ..followclick_core.models.text_encoder import MAX_TOKENS, VOCABULARY, TextEncoderParams
from ..followclick_core.models.unet import UNetParams

Tensors = dict[str, Tensor]


class SmallSD15(comfy.supported_models.SD15):
    """SD1.5's family at another size: what FreeU, LoRA loaders and checkpoint savers read."""

    unet_extra_config: ClassVar[dict] = {}  # SD15 would put its 8 heads here

    def __init__(self, params: UNetParams, schedule: ScheduleParams):
        super().__init__(unet_config(params))
        self.sampling_settings = sampling_settings(schedule)


def unet_config(params: UNetParams) -> dict:
    """The arguments of the host's UNetModel for our UNet; depths are listed per block there, per level here."""
    blocks = params.num_res_blocks
    return {
        "image_size": 32,  # asked for, never used
        "in_channels": params.in_channels,
        "out_channels": params.out_channels,
        "model_channels": params.model_channels,
        "num_res_blocks": [blocks] * len(params.channel_mult),
        "channel_mult": list(params.channel_mult),
        "transformer_depth": [depth for depth in params.transformer_depth for _ in range(blocks)],
        "transformer_depth_output": [depth for depth in params.transformer_depth for _ in range(blocks + 1)],
        "transformer_depth_middle": params.transformer_depth_middle,
        "context_dim": params.context_dim,
        "num_heads": params.num_heads,
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "adm_in_channels": None,
        "legacy": False,
    }


def sampling_settings(schedule: ScheduleParams) -> dict:
    """The names of ScheduleParams are the host's already."""
    return {
        "beta_schedule": schedule.beta_schedule,
        "linear_start": schedule.beta_start,
        "linear_end": schedule.beta_end,
        "timesteps": schedule.num_train_timesteps,
        "zsnr": schedule.zero_terminal_snr,
    }


def model_type(schedule: ScheduleParams) -> comfy.model_base.ModelType:
    velocity = schedule.prediction_type == "v_prediction"
    return comfy.model_base.ModelType.V_PREDICTION if velocity else comfy.model_base.ModelType.EPS


def model_sampling(schedule: ScheduleParams) -> comfy.model_sampling.ModelSamplingDiscrete:
    """Noise levels and prediction as the host computes with them."""
    settings = type("SamplingConfig", (), {"sampling_settings": sampling_settings(schedule)})()
    return comfy.model_base.model_sampling(settings, model_type(schedule))


def host_model(params: UNetParams, schedule: ScheduleParams, tensors: Tensors, name: str) -> ModelPatcher:
    """A MODEL: the host's UNet with our weights.

    Raises:
        CheckpointError: the tensors are not those of this UNet.
    """
    device = memory.get_torch_device()
    config = SmallSD15(params, schedule)
    size = sum(tensor.nelement() for tensor in tensors.values())
    dtype = memory.unet_dtype(model_params=size, supported_dtypes=config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, memory.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    model = comfy.model_base.BaseModel(config, model_type(schedule), device=memory.unet_offload_device())
    load_strict(model.diffusion_model, tensors, name)
    return ModelPatcher(model.eval(), load_device=device, offload_device=memory.unet_offload_device())


def host_clip(params: TextEncoderParams, tensors: Tensors, name: str) -> comfy.sd.CLIP:
    """A CLIP: the host's text encoder and SD1 tokenizer with our weights.

    Raises:
        CheckpointError: the tensors are not those of this text encoder.
    """
    target = ClipTarget(_tokenizer_of(params.width), comfy.sd1_clip.SD1ClipModel)
    target.params = {"clip_model": comfy.sd1_clip.SDClipModel, "textmodel_json_config": clip_config(params)}
    clip = comfy.sd.CLIP(target, embedding_directory=folder_paths.get_folder_paths("embeddings"))
    # The host's class has a projection of the pooled vector, which UNets of this family do not read.
    projected = {"text_projection.weight": torch.eye(params.width), **tensors}
    missing, unexpected = clip.load_sd(projected)
    if missing or unexpected:
        raise CheckpointError(
            f"{name} does not fit this model: {len(missing)} keys are missing, {len(unexpected)} unexpected. "
            "Choose a file made for this model."
        )
    return clip


def _tokenizer_of(width: int) -> type:
    """SD1's tokenizer that looks for textual inversions of this width."""

    def make(**options: object) -> comfy.sd1_clip.SDTokenizer:
        return comfy.sd1_clip.SDTokenizer(embedding_size=width, **options)

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: list[str] | None = None, tokenizer_data: dict | None = None):
            super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=make)

    return Tokenizer


def clip_config(params: TextEncoderParams) -> dict:
    return {
        "num_hidden_layers": params.layers,
        "hidden_size": params.width,
        "num_attention_heads": params.num_heads,
        "intermediate_size": 4 * params.width,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": MAX_TOKENS,
        "vocab_size": VOCABULARY,
        "eos_token_id": 49407,
    }


def host_vae(tensors: Tensors) -> comfy.sd.VAE:
    """A VAE, in float32: it is small, and half precision would cost it quality that can be seen."""
    return comfy.sd.VAE(sd=dict(tensors), dtype=torch.float32)


def model_latents(vae: comfy.sd.VAE, pixels: Tensor) -> Tensor:
    """Pixels, b h w 3 in 0..1, as latents of the scale that models of the SD1.5 family are trained on, b 4 h/8 w/8."""
    return comfy.latent_formats.SD15().process_in(vae.encode(pixels[..., :3]))


def encode_text(clip: comfy.sd.CLIP, text: str) -> Tensor:
    """The embedding of a text, 1 n c."""
    return clip.encode_from_tokens(clip.tokenize(text))


def spaced_sigmas(model: ModelPatcher, steps: int, spacing: str) -> Tensor:
    """Noise levels of the core's timesteps in this spacing (`SPACINGS`), as SIGMAS; the last is 0.

    Raises:
        ValueError: There is no such spacing. Or MODEL has continuous noise levels, or fewer than `steps`.
    """
    levels = getattr(model.get_model_object("model_sampling"), "sigmas", None)
    if levels is None:
        raise ValueError("This MODEL has no discrete timesteps; connect the one from Apply Motion Model.")
    if spacing not in SPACINGS:
        raise ValueError(f"There is no spacing {spacing!r}; choose one of {', '.join(SPACINGS)}.")
    return torch.cat([levels[SPACINGS[spacing](steps, len(levels))], levels.new_zeros(1)]).cpu()
