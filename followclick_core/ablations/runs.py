"""One run: a variant trained from the same weights as all others, for the same number of steps, and scored."""

import gc
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..diffusion.schedule import NoiseSchedule
from ..files import write_json
from ..models.attach import attach
from ..models.autoencoder import Autoencoder, load_autoencoder
from ..models.bundle import ModelBundle, weights_path
from ..models.motion_model import MotionParams
from ..models.text_encoder import load_text_encoder
from ..models.unet import load_unet
from ..presets import Preset
from ..training.loop import Limits, LoopParams, run_stage
from ..training.params import MotionTrainParams
from ..training.pool import Chunk
from ..training.run_dir import RunDir
from ..training.stages import Generative, MotionStage, watch_gate
from ..training.train_step import TrainStep
from .clips import HeldOutClips, TrainingClips
from .pairs import score_pairs
from .scenes import ClipParams
from .scoring import ScoringParams, score
from .variants import BASE, Variant

# Steps between the random numbers of two seeds; no run is longer.
SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class RunParams:
    """What all runs have in common: the budget, and how it is used."""

    batch_size: int = 16
    image_batch: int = 4
    learning_rate: float = 6e-4
    warmup: int = 50
    decay_from: float = 0.5
    ema_decay: float = 0.995
    scoring: ScoringParams = field(default_factory=ScoringParams)

    def training(self, variant: Variant, steps: int) -> MotionTrainParams:
        loop = LoopParams(
            steps,
            self.learning_rate,
            warmup=self.warmup,
            decay_from=self.decay_from,
            ema_decay=self.ema_decay,
            log_every=200,
            # Only where a run is cut short: the states of many small runs would be most of what they write.
            checkpoint_seconds=float("inf"),
        )
        return MotionTrainParams(
            loop,
            self.batch_size,
            chunk_size=self.batch_size,
            mask_ratio=variant.mask_ratio,
            masked_share=variant.masked_share,
            image_batch=self.image_batch,
        )


class VariantStage(MotionStage):
    """MotionStage on clips that lie in memory, as a variant reads them: nothing is drawn or encoded meanwhile."""

    def __init__(
        self,
        model: Generative,
        params: MotionTrainParams,
        preset: Preset,
        clips: TrainingClips,
        variant: Variant,
        seed: int,
    ):
        self.module, self.params, self.preset = model, params, preset
        self.schedule = NoiseSchedule(preset.motion.schedule).to(clips.device)
        self.attachment = attach(model.unet, model.motion)
        self._still = watch_gate(model.motion, params)
        self.scenes = clips  # type: ignore[assignment]  # asked for its device alone
        self.pool = _Drawn(clips, variant)  # type: ignore[assignment]
        self.prepare, self.prefetch = _nothing, _nothing
        self._first_step = seed * SEED_STRIDE

    def batch(self, step: int) -> Chunk:
        return super().batch(self._first_step + step)


class _Drawn:
    """The clips under the one name by which a stage asks for a batch."""

    def __init__(self, clips: TrainingClips, variant: Variant):
        self._clips, self._variant = clips, variant

    def draw(self, batch_size: int, step: int) -> Chunk:
        return self._clips.draw(batch_size, step, self._variant)


def _nothing(step: int) -> None:
    pass


class Workshop:
    """What every run of a process uses: the clips on the device, and the weights that runs begin with."""

    def __init__(self, weights: Path, clips: Path, clip_params: ClipParams, params: RunParams, device: torch.device):
        self.weights, self.clip_params, self.params, self.device = weights, clip_params, params, device
        self.autoencoder = frozen_autoencoder(weights, device)
        self.training = TrainingClips(clips, clip_params, device)
        self.held_out = HeldOutClips(clips, clip_params, "held-out", device)
        self.sweep = HeldOutClips(clips, clip_params, "sweep", device)
        self.pairs = HeldOutClips(clips, clip_params, "pairs", device)

    def run(self, variant: Variant, seed: int, steps: int, folder: Path, max_seconds: float) -> bool:
        """Train, score, and write `folder`/<variant>-<seed>.json; whether it is done, or left to go on with."""
        # Of the run before: a recorded step keeps its memory until the last reference to it is gone.
        gc.collect()
        work = folder / "unfinished" / f"{variant.name}-{seed}"
        stage, preset = self.stage(variant, seed, steps)
        started = time.monotonic()
        run = RunDir(work)
        try:
            if not run_stage(stage, stage.params.loop, run, self.device, Limits(max_seconds)):
                return False
        finally:
            stage.attachment.detach()
        _synchronize(self.device)
        trained = time.monotonic()
        model = stage.module
        bundle = ModelBundle(preset, model.unet, model.motion, self.autoencoder, model.text)
        expected = self._expected(variant)
        rows = score(bundle, self.held_out, self.sweep, variant, expected, self.params.scoring)
        if variant == BASE:
            rows |= score_pairs(bundle, self.pairs, self.params.scoring)
        result: dict[str, Any] = {
            "variant": asdict(variant),
            "seed": seed,
            "steps": steps,
            "params": asdict(self.params),
            "clips": asdict(self.clip_params),
            "device": _device_name(self.device),
            "torch": torch.__version__,
            "seconds": {"training": round(trained - started, 1), "scoring": round(time.monotonic() - trained, 1)},
            "log": run.read_log(stage.name),
            "scores": rows,
        }
        write_json(result_path(folder, variant, seed), result)
        shutil.rmtree(work)
        return True

    def seconds_per_step(self, variant: Variant, steps: int = 20) -> float:
        """Measured on this device while nothing else of ours runs there, after a warm-up."""
        stage, _ = self.stage(variant, 0, steps)
        stage.module.train()
        loop = stage.params.loop
        step = TrainStep(stage, loop.learning_rate, loop.weight_decay, loop.clip_norm, self.device)
        started = 0.0
        for index in range(-6, steps):
            if index == 0:
                _synchronize(self.device)
                started = time.monotonic()
            step(stage.batch(index + 6))
        _synchronize(self.device)
        stage.attachment.detach()
        return (time.monotonic() - started) / steps

    def stage(self, variant: Variant, seed: int, steps: int) -> tuple[VariantStage, Preset]:
        """A fresh motion model on the shared spatial weights."""
        unet = load_unet(weights_path("unet", self.weights))
        text = load_text_encoder(weights_path("text_encoder", self.weights))
        motion = MotionParams(
            model_channels=unet.params.model_channels,
            channel_mult=unet.params.channel_mult,
            num_res_blocks=unet.params.num_res_blocks,
            num_heads=unet.params.num_heads,
            context_dim=unet.params.context_dim if variant.motion_attention else None,
            layout=variant.layout,
            trained_frames=self.clip_params.num_frames,
            still_gate=variant.still_gate,
        )
        preset = Preset("ablation", self.clip_params.size, unet.params, motion, text.params)
        torch.manual_seed(seed)
        model = Generative(preset)
        model.unet.load_state_dict(unet.state_dict())
        model.text.load_state_dict(text.state_dict())
        model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        training = self.params.training(variant, steps)
        stage = VariantStage(model, training, preset, self.training, variant, seed)
        return stage, preset

    def _expected(self, variant: Variant) -> dict[float, float]:
        """What the sweep asks this variant for -> the speed that this promises."""
        if variant.condition == "magnitude":
            return {magnitude: magnitude for magnitude in self.params.scoring.sweep}
        rates = sorted(self.clip_params.fps, reverse=True)
        return {float(fps): self.training.mean_magnitude(fps) for fps in rates}


def result_path(folder: Path, variant: Variant, seed: int) -> Path:
    return folder / "runs" / f"{variant.name}-{seed}.json"


def frozen_autoencoder(weights: Path, device: torch.device) -> Autoencoder:
    model = load_autoencoder(weights_path("autoencoder", weights)).requires_grad_(False)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
