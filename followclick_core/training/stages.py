"""The stages of training a model from nothing: autoencoder, spatial and motion model. The segmenter is apart."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import first_frame_condition, mask_first_frame, resize_mask
from ..data.scenes import SceneBatch, SceneGenerator
from ..data.scenes_ahead import ScenesAhead
from ..data.shards import ShardBatch, ShardClips
from ..diffusion.schedule import NoiseSchedule
from ..generate import LATENT_SCALE
from ..models.attach import MotionConditioning, attach
from ..models.autoencoder import Autoencoder
from ..models.motion_model import MotionModel
from ..models.text_encoder import END, START, UNKNOWN, VOCABULARY, TextEncoder, tokenize
from ..models.unet import UNet
from ..presets import Preset
from ..shapes import fold_frames, unfold_frames
from .correspondence import CorrespondenceLoss, draw_places
from .loop import step_generator
from .params import AutoencoderParams, MotionTrainParams, SpatialParams
from .pool import Chunk, SamplePool
from .still_loss import StillLoss, still_cells

SceneSource = SceneGenerator | ScenesAhead | ShardClips


class Generative(nn.Module):
    """UNet, motion model and text encoder of one preset, and which words training has met."""

    seen: Tensor

    def __init__(self, preset: Preset):
        super().__init__()
        self.unet = UNet(preset.unet)
        self.motion = MotionModel(preset.motion)
        self.text = TextEncoder(preset.text)
        self.register_buffer("seen", torch.zeros(VOCABULARY, dtype=torch.bool))

    def mark_seen(self, tokens: Tensor) -> None:
        self.seen.index_fill_(0, tokens.flatten(), True)


class AutoencoderStage:
    """Reconstruction of still scenes, with latents of unit scale."""

    replayable = True
    all_bfloat16 = True

    def __init__(self, model: Autoencoder, params: AutoencoderParams, scenes: SceneSource, name: str = "autoencoder"):
        self.name = name
        self.module = model
        self.params = params
        self.scenes = scenes
        self.pool = SamplePool(self._make_chunk, slots=16, device=scenes.device)
        self.prepare, self.prefetch = self.pool.refill, self.pool.advance

    def batch(self, step: int) -> Chunk:
        pixels = self.pool.draw(self.params.batch_size, step)["pixels"].float()
        size = (len(pixels), 4, pixels.shape[2] // LATENT_SCALE, pixels.shape[3] // LATENT_SCALE)
        noise = torch.randn(size, device=pixels.device, generator=step_generator(pixels.device, step))
        return {"pixels": pixels.contiguous(memory_format=torch.channels_last), "noise": noise}

    def loss(self, batch: Chunk) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = batch["pixels"]
        latents = self.module.encode(pixels)
        decoded = self.module.decode(latents + self.params.latent_noise * batch["noise"]).float()
        error = decoded - pixels.float()
        mean_square = error.square().mean()
        statistics = latent_statistics_loss(latents.float())
        loss = error.abs().mean() + mean_square + self.params.gradient_weight * gradient_loss(error)
        psnr = -10 * mean_square.detach().log10()
        return loss + self.params.statistics_weight * statistics, {"psnr": psnr, "statistics": statistics.detach()}

    @torch.no_grad()
    def _make_chunk(self, seed: int) -> Chunk:
        return {"pixels": self.scenes.sample_stills(self.params.chunk_size, seed=seed).frames[:, :, 0].bfloat16()}


class SpatialStage:
    """Text-to-image by v-prediction on still scenes."""

    name = "spatial"
    replayable = True
    all_bfloat16 = True

    def __init__(
        self, model: Generative, autoencoder: Autoencoder, params: SpatialParams, preset: Preset, scenes: SceneSource
    ):
        self.module = model
        self.params = params
        self.autoencoder = autoencoder
        self.scenes = scenes
        self.schedule = NoiseSchedule(preset.motion.schedule).to(scenes.device)
        self.pool = SamplePool(self._make_chunk, slots=16, device=scenes.device)
        self.prepare, self.prefetch = self.pool.refill, self.pool.advance

    def batch(self, step: int) -> Chunk:
        drawn = self.pool.draw(self.params.batch_size, step)
        generator = step_generator(self.scenes.device, step, salt=1)
        tokens = drop_text(drawn["tokens"], self.params.text_dropout, self.params.word_dropout, generator)
        self.module.mark_seen(tokens)
        return {"tokens": tokens, **diffuse(drawn["latents"].float()[:, :, None], self.schedule, generator)}

    def loss(self, batch: Chunk) -> tuple[Tensor, dict[str, Tensor]]:
        return image_loss(self.module, batch), {}

    @torch.no_grad()
    def _make_chunk(self, seed: int) -> Chunk:
        scenes = self.scenes.sample_stills(self.params.chunk_size, seed=seed)
        latents = encode_frames(self.autoencoder, scenes.frames)[:, :, 0]
        return {"latents": latents.bfloat16(), "tokens": tokenize(scenes.captions).to(latents.device)}


class MotionStage:
    """Region animation: first-frame condition, motion prompt, magnitude; v-prediction on whole clips.

    A few single frames under their captions go along, so that the UNet stays a text-to-image model.
    """

    name = "motion"
    replayable = True
    all_bfloat16 = True
    # Stages on clips whose points' origins are not known go without.
    _correspondence: CorrespondenceLoss | None = None
    _still: StillLoss | None = None

    def __init__(
        self,
        model: Generative,
        autoencoder: Autoencoder,
        params: MotionTrainParams,
        preset: Preset,
        scenes: SceneSource,
    ):
        self.module = model
        self.params = params
        self.preset = preset
        self.autoencoder = autoencoder
        self.scenes = scenes
        self.schedule = NoiseSchedule(preset.motion.schedule).to(scenes.device)
        self.attachment = attach(model.unet, model.motion)
        if params.correspondence_weight:
            if isinstance(scenes, ShardClips):
                raise ValueError("Shards do not know where points come from; set correspondence_weight to 0.")
            self._correspondence = CorrespondenceLoss(model.unet)
        self._still = watch_gate(model.motion, params)
        self.pool = SamplePool(self._make_chunk, params.pool_chunks, scenes.device)
        self.prepare, self.prefetch = self.pool.refill, self.pool.advance

    def batch(self, step: int) -> Chunk:
        params, device = self.params, self.scenes.device
        generator = step_generator(device, step, salt=2)
        drawn = self.pool.draw(params.batch_size, step)
        whole = drawn["latents"].float()
        if params.crop is not None:
            drawn |= crop_around_object(drawn, params.crop // LATENT_SCALE, generator)
        latents = drawn["latents"].float()
        clip = diffuse(latents, self.schedule, generator, params.noisy_share, params.noisy_from)
        frame = torch.randint(latents.shape[2], (1,), device=device, generator=generator)
        still = diffuse(whole[: params.image_batch].index_select(2, frame), self.schedule, generator)
        tokens = drop_text(drawn["tokens"], params.text_dropout, params.word_dropout, generator)
        captions = drop_text(
            drawn["captions"][: params.image_batch], params.text_dropout, params.word_dropout, generator
        )
        self.module.mark_seen(tokens)
        self.module.mark_seen(captions)
        if self._correspondence is not None:
            points = params.correspondence_points
            clip["place"], clip["origin"] = draw_places(drawn["origins"].float(), LATENT_SCALE, points, generator)
        if self._still is not None:
            clip["unchanged"] = still_cells(latents)
        return {
            "tokens": tokens,
            "magnitude": drawn["magnitude"],
            "swept": drawn["swept"].float(),
            "first_frame": self._condition(latents[:, :, 0], drawn["mask"].float(), generator),
            **clip,
            "still_tokens": captions,
            **{f"still_{key}": value for key, value in still.items()},
        }

    def loss(self, batch: Chunk) -> tuple[Tensor, dict[str, Tensor]]:
        clip_loss, figures = self._clip_loss(batch)
        # Compiled too, these few pictures would double the compilation: they have shapes of their own.
        with torch.compiler.set_stance("force_eager"):
            stills = {key[6:]: value for key, value in batch.items() if key[:6] == "still_"}
            still_loss = image_loss(self.module, stills)
        figures |= {"clip": clip_loss.detach(), "image": still_loss.detach()}
        return clip_loss + self.params.image_weight * still_loss, figures

    def _clip_loss(self, batch: Chunk) -> tuple[Tensor, dict[str, Tensor]]:
        num_frames = batch["x_t"].shape[2]
        context = self.module.text(batch["tokens"])
        conditioning = MotionConditioning(num_frames, context, batch["magnitude"], batch["first_frame"])
        timesteps = batch["t"].repeat_interleave(num_frames)
        with self.attachment.conditioned(conditioning, timesteps), self._watching():
            v = self.module.unet(fold_frames(batch["x_t"]), timesteps, context.repeat_interleave(num_frames, dim=0))
        error = (v.float() - fold_frames(batch["v"]).float()).square().mean(dim=1)
        swept = batch["swept"].float().repeat_interleave(num_frames, dim=0)[:, 0]
        weight = 1 + self.params.region_weight * swept
        # Parts around large objects may hold nothing else.
        inside = (error * swept).sum() / swept.sum().clamp(min=1)
        outside = (error * (1 - swept)).sum() / (1 - swept).sum().clamp(min=1)
        loss, figures = (error * weight).sum() / weight.sum(), {"inside": inside.detach(), "outside": outside.detach()}
        if self._correspondence is not None:
            lost = self._correspondence(batch["place"], batch["origin"], v.shape[-1])
            loss, figures["correspondence"] = loss + self.params.correspondence_weight * lost, lost.detach()
        if self._still is not None:
            lost = self._still(batch["unchanged"])
            loss, figures["still"] = loss + self.params.still_weight * lost, lost.detach()
        return loss, figures

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        watchers = [each for each in (self._correspondence, self._still) if each is not None]
        for each in watchers:
            each.recording = True
        try:
            yield
        finally:
            for each in watchers:
                each.recording = False

    def _condition(self, first: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        masked = torch.rand(len(first), device=first.device, generator=generator) < self.params.masked_share
        first = mask_first_frame(first, masked.float() * self.params.mask_ratio, generator)
        return first_frame_condition(first, mask, self.preset.motion.trained_frames, self.preset.motion.layout)

    @torch.no_grad()
    def _make_chunk(self, seed: int) -> Chunk:
        scenes: SceneBatch | ShardBatch = self.scenes.sample(self.params.chunk_size, seed=seed)
        latents = encode_frames(self.autoencoder, scenes.frames)
        size = latents.shape[-2:]
        generator = step_generator(latents.device, seed, salt=3)
        watched = self._correspondence is not None
        origins = {"origins": scenes.origins.half()} if watched and isinstance(scenes, SceneBatch) else {}
        return origins | {
            "latents": latents.bfloat16(),
            "mask": resize_mask(roughen_mask(scenes.mask, generator), size).bfloat16(),
            "swept": F.adaptive_max_pool2d(scenes.swept, size).bfloat16(),
            "magnitude": scenes.magnitude.float(),
            "tokens": tokenize(scenes.motion_prompts).to(latents.device),
            "captions": tokenize(scenes.captions).to(latents.device),
        }


def watch_gate(motion: MotionModel, params: MotionTrainParams) -> StillLoss | None:
    """The loss of a motion model's still gate, where there is one and `params` asks for it."""
    return StillLoss(motion.still_gate) if motion.still_gate is not None and params.still_weight else None


def crop_around_object(clips: Chunk, side: int, generator: torch.Generator) -> Chunk:
    """A random square part of each clip, in whose middle half lies a place of the object in frame 0.

    Args:
        clips: Tensors on the latents' grid: latents b 4 f h w, mask and swept b 1 h w, maybe origins b 2 f h w
            (pixels of frame 0), which then count from the part's corner.
        side: Cells; h and w at most.
    """
    height, width = clips["mask"].shape[-2:]
    device = clips["mask"].device
    # Some cell of the mask; of an empty one, any.
    weights = clips["mask"].float().clamp(min=0).flatten(1) + 1e-6
    # By the Gumbel-max trick, since torch.multinomial waits for the GPU.
    draw = torch.rand(weights.shape, device=device, generator=generator).clamp(1e-7, 1 - 1e-7)
    anchor = (weights.log() - (-draw.log()).log()).argmax(1)
    before = side // 4 + torch.rand((2, len(anchor)), device=device, generator=generator) * (side - side // 2)
    top = (anchor // width - before[0].long()).clamp(0, height - side)
    left = (anchor % width - before[1].long()).clamp(0, width - side)
    steps = torch.arange(side, device=device)
    rows, columns = top[:, None] + steps, left[:, None] + steps
    cells = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)

    def part(whole: Tensor) -> Tensor:
        index = cells.reshape(len(cells), *[1] * (whole.dim() - 3), -1).expand(*whole.shape[:-2], -1)
        return whole.flatten(-2).gather(-1, index).unflatten(-1, (side, side))

    cropped = {name: part(clips[name]) for name in ("latents", "mask", "swept", "origins") if name in clips}
    if "origins" in cropped:
        corner = torch.stack([left, top], 1) * LATENT_SCALE
        cropped["origins"] = cropped["origins"] - corner[:, :, None, None, None].to(cropped["origins"])
    return cropped


def diffuse(
    x_0: Tensor, schedule: NoiseSchedule, generator: torch.Generator, noisy_share: float = 0.0, noisy_from: int = 0
) -> Chunk:
    """Noisy latents x_t at random timesteps t, and the velocity v that the model is to predict.

    Args:
        noisy_share: Share of the samples whose t is drawn from `noisy_from` on; of the others any t is as likely.
    """
    steps = schedule.params.num_train_timesteps
    t = torch.randint(steps, (len(x_0),), device=x_0.device, generator=generator)
    if noisy_share:
        noisy = torch.rand(len(x_0), device=x_0.device, generator=generator) < noisy_share
        t = torch.where(noisy, noisy_from + t * (steps - noisy_from) // steps, t)
    noise = torch.randn(x_0.shape, device=x_0.device, generator=generator)
    return {"x_t": schedule.add_noise(x_0, noise, t), "t": t, "v": schedule.velocity(x_0, noise, t)}


def image_loss(model: Generative, batch: Chunk) -> Tensor:
    """v-prediction loss of single frames under their captions; no motion model takes part."""
    v = model.unet(fold_frames(batch["x_t"]), batch["t"], model.text(batch["tokens"]))
    return F.mse_loss(v.float(), fold_frames(batch["v"]).float())


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
