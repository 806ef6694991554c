"""What a run shows of itself: TensorBoard, plots of the losses, and the held-out clips, animated as they now would be.

runs/own/<stage>/losses.png                    training and validation loss
runs/own/<stage>/validation/step-000500.png    a contact sheet: each held-out clip, and below it the model's
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from ..diffusion.guidance import guide
from ..diffusion.samplers import sample_ddim
from ..diffusion.schedule import NoiseSchedule, trailing_timesteps
from ..files import atomic_path
from ..generate import DECODED_AT_ONCE, initial_noise
from ..models.sd_autoencoder import AnyAutoencoder
from ..models.text_encoder import tokenize
from ..shapes import fold_frames
from .clip_data import Sample, SampleMaker
from .clip_stage import ClipStage
from .ema import EMA
from .engine import AccelerateStep, is_sharded
from .run_dir import RunDir

VALIDATION_TIMESTEPS = (100, 300, 500, 700, 900)
PAPER_GUIDANCE_SCALE = 7.5  # section 5.1
SHEET_FRAMES = 8  # of a clip, evenly
VALIDATION_PLACE = 2**40  # far from every place that training reaches


class Watcher:
    """Called after every step; validates with the averaged weights, and writes from the first process."""

    def __init__(
        self, stage: ClipStage, engine: AccelerateStep, maker: SampleMaker, autoencoder: AnyAutoencoder, run: RunDir
    ):
        self._stage, self._engine, self._maker, self._autoencoder, self._run = stage, engine, maker, autoencoder, run
        self._params = stage.params
        self._samples: list[Sample] | None = None
        self.steps = 0  # that this command has done

    def __call__(self, step: int, ema: EMA) -> None:
        self.steps += 1
        params = self._params
        if step % params.validation_every == 0 or step == params.loop.steps:
            self.validate(step, ema)
        every = params.loop.checkpoint_every or params.validation_every
        if self._engine.is_main and (step % every == 0 or step == params.loop.steps):
            self.report()

    @torch.no_grad()
    def validate(self, step: int, ema: EMA) -> None:
        """The loss of the held-out clips at fixed timesteps and noise, and their contact sheet."""
        # A sharded model runs only if all processes call it.
        if not (self._engine.is_main or is_sharded(self._engine.accelerator)) or not self._params.validation_clips:
            return
        self._samples = self._samples or self._stage.held_out()
        self._engine.model.eval()
        with ema.applied():
            losses = [self._loss(index, sample) for index, sample in enumerate(self._samples)]
            rows = [row for index, sample in enumerate(self._samples) for row in self._rows(index, sample)]
        self._engine.model.train()
        if not self._engine.is_main:
            return
        self._run.log(self._stage.name, {"step": step, "validation_loss": round(sum(losses) / len(losses), 5)})
        folder = self._run.stage(self._stage.name) / "validation"
        folder.mkdir(exist_ok=True)
        with atomic_path(folder / f"step-{step:06d}.png") as temporary:
            PillowImage.fromarray(contact_sheet(rows)).save(temporary)

    def report(self) -> None:
        """Plot the losses and hand them to TensorBoard, all from the log: so a resumed run has no step twice."""
        records = self._run.read_log(self._stage.name)
        folder = self._run.stage(self._stage.name)
        if records:
            plot_losses(records, folder / "losses.png")
            write_tensorboard(records, folder / "tensorboard")

    def _loss(self, index: int, sample: Sample) -> float:
        total = 0.0
        for t in VALIDATION_TIMESTEPS:
            batch = self._maker.batch([sample], [VALIDATION_PLACE + index], timesteps=t)
            total += float((self._engine.predict(batch).float() - batch["target"]).square().mean())
        return total / len(VALIDATION_TIMESTEPS)

    def _rows(self, index: int, sample: Sample) -> list[np.ndarray]:
        """Frames f h w 3 of the clip and of the model's, both as the autoencoder shows them."""
        true = self._maker.latents([sample])
        device = true.device
        first_frame = self._maker.condition(true[:, :, 0], sample.mask[None]).repeat(2, 1, 1, 1, 1)
        tokens = tokenize([sample.text, ""]).to(device)
        magnitude = torch.full((2,), sample.magnitude, device=device)
        schedule = NoiseSchedule(self._params.schedule).to(device)

        def predict_v(x_t: Tensor, t: Tensor) -> Tensor:
            both, t = x_t.repeat(2, 1, 1, 1, 1), t.repeat(2)
            inputs = {"x_t": both, "t": t, "tokens": tokens, "magnitude": magnitude, "first_frame": first_frame}
            v = schedule.as_velocity(self._engine.predict(inputs).float(), both, t)
            return guide(v[:1], v[1:], PAPER_GUIDANCE_SCALE)

        noise = initial_noise(tuple(true.shape[1:]), [index]).to(device)
        made = sample_ddim(predict_v, schedule, noise, trailing_timesteps(self._params.validation_steps))
        return [self._decode(latents) for latents in (true, made)]

    def _decode(self, latents: Tensor) -> np.ndarray:
        pixels = torch.cat([self._autoencoder.decode(part) for part in fold_frames(latents).split(DECODED_AT_ONCE)])
        return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def contact_sheet(clips: Sequence[np.ndarray]) -> np.ndarray:
    """One picture: a row per clip (f h w 3), its frames from left to right, SHEET_FRAMES of them at most."""
    rows = []
    for clip in clips:
        chosen = np.linspace(0, len(clip) - 1, min(SHEET_FRAMES, len(clip))).round().astype(int)
        rows.append(np.concatenate(list(clip[chosen]), axis=1))
    return np.concatenate(rows)


def plot_losses(records: Sequence[dict], path: Path) -> None:
    """Training and validation loss over the steps, on a logarithmic axis, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for key, marker, label in (("loss", "", "training"), ("validation_loss", "o", "validation, averaged weights")):
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, label=label)
    axes.set(xlabel="step", ylabel="mean squared error", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def write_tensorboard(records: Sequence[dict], folder: Path) -> None:
    """All figures of the log as one event file, which takes the place of the last one."""
    from torch.utils.tensorboard import SummaryWriter

    old = list(folder.glob("events.*"))
    with SummaryWriter(str(folder)) as writer:
        for record in records:
            for key, value in record.items():
                if key not in ("step", "time"):
                    writer.add_scalar(key, value, record["step"], walltime=record["time"])
    for path in old:
        path.unlink(missing_ok=True)
