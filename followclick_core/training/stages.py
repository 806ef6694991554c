"""The stages of training a model from nothing: autoencoder, spatial and motion model. The segmenter has its own file."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import first_frame_condition, mask_first_frame, resize_mask
from ..data.scenes import SceneBatch, SceneGenerator
from ..diffusion.schedule import NoiseSchedule
from ..models.attach import MotionConditioning, attach
from ..models.autoencoder import Autoencoder
from ..models.motion_model import MotionModel
from ..models.text_encoder import END, START, UNKNOWN, VOCABULARY, TextEncoder, tokenize
from ..models.unet import UNet
from ..presets import Preset
from ..shapes import fold_frames, unfold_frames
from .loop import step_generator
from .params import AutoencoderParams, MotionTrainParams, SpatialParams
from .pool import Chunk, SamplePool


class Generative(nn.Module):
    """UNet, motion model and text encoder of one preset, and which words training has met."""

    seen: Tensor

    def __init__(self, preset: Preset):
        super().__init__()
        self.unet = UNet(preset.unet)
        self.motion = MotionModel(preset.motion)
        self.text = TextEncoder(preset.text)
        self.register_buffer("seen", torch.zeros(VOCABULARY, dtype=torch.bool))

    def embed(self, tokens: Tensor) -> Tensor:
        self.seen[tokens.flatten()] = True
        return self.text(tokens)


class AutoencoderStage:
    """Reconstruction of still scenes, with latents of unit scale."""

    name = "autoencoder"

    def __init__(self, model: Autoencoder, params: AutoencoderParams, scenes: SceneGenerator):
        self.module = model
        self.params = params
        self.scenes = scenes

    def prepare(self, step: int) -> None:
        pass

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = self.scenes.sample_stills(self.params.batch_size, seed=step).frames[:, :, 0]
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        latents = self.module.encode(pixels)
        noise = torch.randn(latents.shape, device=pixels.device, generator=step_generator(pixels.device, step))
        decoded = self.module.decode(latents + self.params.latent_noise * noise).float()
        error = decoded - pixels
        mean_square = error.square().mean()
        statistics = latent_statistics_loss(latents.float())
        loss = error.abs().mean() + mean_square + self.params.gradient_weight * gradient_loss(error)
        psnr = -10 * mean_square.detach().log10()
        return loss + self.params.statistics_weight * statistics, {"psnr": psnr, "statistics": statistics}


class SpatialStage:
    """Text-to-image by v-prediction on still scenes."""

    name = "spatial"

    def __init__(
        self, model: Generative, autoencoder: Autoencoder, params: SpatialParams, preset: Preset, scenes: SceneGenerator
    ):
        self.module = model
        self.params = params
        self.autoencoder = autoencoder
        self.scenes = scenes
        self.schedule = NoiseSchedule(preset.motion.schedule).to(scenes.device)
        self.pool = SamplePool(self._make_chunk, slots=16)

    def prepare(self, step: int) -> None:
        self.pool.refill(step)

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.pool.advance(step)
        batch = self.pool.draw(self.params.batch_size, step)
        generator = step_generator(batch["tokens"].device, step, salt=1)
        tokens = drop_text(batch["tokens"], self.params.text_dropout, self.params.word_dropout, generator)
        return image_loss(self.module, self.schedule, batch["latents"].float(), tokens, generator), {}

    @torch.no_grad()
    def _make_chunk(self, seed: int) -> Chunk:
        scenes = self.scenes.sample_stills(self.params.chunk_size, seed=seed)
        latents = encode_frames(self.autoencoder, scenes.frames)[:, :, 0]
        return {"latents": latents.bfloat16(), "tokens": tokenize(scenes.captions).to(latents.device)}


class MotionStage:
    """Region animation: first-frame condition, motion prompt, magnitude; v-prediction on whole clips."""

    name = "motion"

    def __init__(
        self,
        model: Generative,
        autoencoder: Autoencoder,
        params: MotionTrainParams,
        preset: Preset,
        scenes: SceneGenerator,
    ):
        self.module = model
        self.params = params
        self.preset = preset
        self.autoencoder = autoencoder
        self.scenes = scenes
        self.schedule = NoiseSchedule(preset.motion.schedule).to(scenes.device)
        self.attachment = attach(model.unet, model.motion)
        self.pool = SamplePool(self._make_chunk, params.pool_chunks)

    def prepare(self, step: int) -> None:
        self.pool.refill(step)

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.pool.advance(step)
        batch = self.pool.draw(self.params.batch_size, step)
        generator = step_generator(batch["tokens"].device, step, salt=2)
        clip_loss, logs = self._clip_loss(batch, generator)
        frames = batch["latents"].float()[: self.params.image_batch]
        index = torch.randint(frames.shape[2], (1,), device=frames.device, generator=generator)
        captions = drop_text(
            batch["captions"][: self.params.image_batch], self.params.text_dropout, self.params.word_dropout, generator
        )
        still_loss = image_loss(self.module, self.schedule, frames.index_select(2, index)[:, :, 0], captions, generator)
        logs |= {"clip": clip_loss.detach(), "image": still_loss.detach()}
        return clip_loss + self.params.image_weight * still_loss, logs

    def _clip_loss(self, batch: Chunk, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x_0 = batch["latents"].float()
        num_frames, device = x_0.shape[2], x_0.device
        t = torch.randint(self.schedule.params.num_train_timesteps, (len(x_0),), device=device, generator=generator)
        noise = torch.randn(x_0.shape, device=device, generator=generator)
        context = self.module.embed(
            drop_text(batch["tokens"], self.params.text_dropout, self.params.word_dropout, generator)
        )
        conditioning = MotionConditioning(num_frames, context, batch["magnitude"], self._condition(batch, generator))
        with self.attachment.conditioned(conditioning):
            v = self.module.unet(
                fold_frames(self.schedule.add_noise(x_0, noise, t)),
                t.repeat_interleave(num_frames),
                context.repeat_interleave(num_frames, dim=0),
            )
        error = (v.float() - fold_frames(self.schedule.velocity(x_0, noise, t))).square().mean(dim=1)
        swept = batch["swept"].float().repeat_interleave(num_frames, dim=0)[:, 0]
        weight = 1 + self.params.region_weight * swept
        logs = {
            "inside": (error * swept).sum().detach() / swept.sum(),
            "outside": (error * (1 - swept)).mean().detach(),
        }
        return (error * weight).sum() / weight.sum(), logs

    def _condition(self, batch: Chunk, generator: torch.Generator) -> Tensor:
        first = batch["latents"][:, :, 0].float()
        masked = torch.rand(len(first), device=first.device, generator=generator) < self.params.masked_share
        first = mask_first_frame(first, masked.float() * self.params.mask_ratio, generator)
        return first_frame_condition(first, batch["mask"].float(), batch["latents"].shape[2], self.preset.motion.layout)

    @torch.no_grad()
    def _make_chunk(self, seed: int) -> Chunk:
        scenes: SceneBatch = self.scenes.sample(self.params.chunk_size, seed=seed)
        latents = encode_frames(self.autoencoder, scenes.frames)
        size = latents.shape[-2:]
        generator = step_generator(latents.device, seed, salt=3)
        return {
            "latents": latents.bfloat16(),
            "mask": resize_mask(roughen_mask(scenes.mask, generator), size).bfloat16(),
            "swept": F.adaptive_max_pool2d(scenes.swept, size).bfloat16(),
            "magnitude": scenes.magnitude.float(),
            "tokens": tokenize(scenes.motion_prompts).to(latents.device),
            "captions": tokenize(scenes.captions).to(latents.device),
        }


def image_loss(
    model: Generative, schedule: NoiseSchedule, x_0: Tensor, tokens: Tensor, generator: torch.Generator
) -> Tensor:
    """v-prediction loss of single frames, b c h w, under their captions; no motion model takes part."""
    x_0 = x_0[:, :, None]
    t = torch.randint(schedule.params.num_train_timesteps, (len(x_0),), device=x_0.device, generator=generator)
    noise = torch.randn(x_0.shape, device=x_0.device, generator=generator)
    v = model.unet(fold_frames(schedule.add_noise(x_0, noise, t)), t, model.embed(tokens))
    return F.mse_loss(v.float(), fold_frames(schedule.velocity(x_0, noise, t)))


@torch.no_grad()
def encode_frames(autoencoder: Autoencoder, frames: Tensor) -> Tensor:
    """Pixels b 3 f h w to latents b 4 f h w, float32."""
    with torch.autocast(frames.device.type, torch.bfloat16):
        latents = autoencoder.encode(fold_frames(frames))
    return unfold_frames(latents.float(), len(frames))


def drop_text(tokens: Tensor, text_dropout: float, word_dropout: float, generator: torch.Generator) -> Tensor:
    """Empty some prompts (for guidance) and turn some words into the unknown one (so strange words do no harm)."""
    draw = torch.rand(tokens.shape, device=tokens.device, generator=generator)
    is_word = (tokens != START) & (tokens != END)
    tokens = torch.where(is_word & (draw < word_dropout), UNKNOWN, tokens)
    empty = torch.full_like(tokens, END)
    empty[:, 0] = START
    dropped = torch.rand((len(tokens), 1), device=tokens.device, generator=generator) < text_dropout
    return torch.where(dropped, empty, tokens)


def roughen_mask(mask: Tensor, generator: torch.Generator) -> Tensor:
    """A click's mask is never exact: grow or shrink each mask by up to about 1.5 % of the width, with a wavy edge."""
    size = mask.shape[-1]
    kernel = 2 * (size // 48) + 1
    blurred = F.avg_pool2d(mask, kernel, stride=1, padding=kernel // 2)
    coarse = torch.rand((len(mask), 1, 12, 12), device=mask.device, generator=generator)
    waves = F.interpolate(coarse, size=mask.shape[-2:], mode="bilinear") - 0.5
    level = 0.15 + 0.55 * torch.rand((len(mask), 1, 1, 1), device=mask.device, generator=generator)
    return (blurred + 0.4 * waves * (blurred > 0.02) > level).to(mask.dtype)


def gradient_loss(error: Tensor) -> Tensor:
    """Mean absolute error of the horizontal and vertical differences: keeps edges sharp."""
    return (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()


def latent_statistics_loss(latents: Tensor) -> Tensor:
    """Pulls every channel's mean to zero and its standard deviation to one, which the noise schedule assumes."""
    mean = latents.mean(dim=(0, 2, 3))
    deviation = latents.std(dim=(0, 2, 3))
    return mean.square().mean() + (deviation - 1).square().mean()
