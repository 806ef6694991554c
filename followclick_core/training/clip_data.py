"""Training samples from shards: which clip, which noise, which dropouts follow from the sample's place alone.

A place is a number that counts samples over the whole stage; step s of a batch of 32 has the places 32 s to 32 s + 31,
however they are shared out among ranks and micro-batches. So a resumed run sees what an uninterrupted one would have
seen, and two ranks see what one would.
"""

import io
import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditioning import first_frame_condition, mask_first_frame
from ..data.shards import DamagedClipError, ShardBatch, ShardClips, ShardParams
from ..dataset.tars import TarIndex
from ..diffusion.schedule import NoiseSchedule
from ..generate import LATENT_SCALE
from ..models.sd_autoencoder import AnyAutoencoder
from ..models.text_encoder import tokenize
from .clip_params import CAPTIONS, ClipTrainParams
from .loop import step_generator
from .stages import drop_text, roughen_mask

WINDOW = 2048  # clips that are shuffled among each other: as many as the shards whose indices are kept in memory
LATENTS_DIFFER = 0.1  # relative; float16 and another device's rounding are a hundredth of it
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sample:
    """One clip, still in pixels, or with its stored latents."""

    frames: Tensor  # 3 f h w, 0..1
    latents: Tensor | None  # 4 f h/8 w/8
    mask: Tensor  # 1 h w
    swept: Tensor
    magnitude: float
    text: str
    caption: str


class ClipData:
    """The clips of a set of shards, some of which are held out for validation."""

    def __init__(self, folder: str | Path, params: ClipTrainParams, workers: int, report: Path | None = None):
        """
        Args:
            workers: Threads that read ahead; 0 reads when a sample is needed.
            report: A file to name the clips in that are passed over, a line of JSON each.

        Raises:
            FileNotFoundError: There are no shards.
            ValueError: They hold no clip with a text, too small or too short ones, or lack wanted latents.
        """
        self._params, self._size, self._frames = params, params.size, params.num_frames
        texts = "caption" if params.text == CAPTIONS else "motion"
        self._folder = Path(folder)
        self._clips = ShardClips(folder, ShardParams(params.size, params.num_frames, texts=texts))
        self.passed_over: dict[int, str] = {}  # clip -> why it is not trained on
        held_out = min(params.validation_clips, len(self._clips) // 2)
        self.held_out, self.trained = range(held_out), range(held_out, len(self._clips))
        self._count = len(self.trained)
        self._report, self._reporting = report, threading.Lock()
        self._threads = ThreadPoolExecutor(workers) if workers else None
        self._ahead: dict[int, Future[Sample]] = {}
        self._order = lru_cache(maxsize=4)(partial(_permutation, params.seed))
        self.load(self.trained.start)

    def __len__(self) -> int:
        """Clips that are trained on."""
        return self._count

    def prefetch(self, places: Sequence[int]) -> None:
        if self._threads is not None:
            for place in places:
                self._ahead.setdefault(place, self._threads.submit(self._at, place))

    def take(self, place: int) -> Sample:
        ahead = self._ahead.pop(place, None)
        return ahead.result() if ahead is not None else self._at(place)

    def load(self, index: int) -> Sample:
        """Clip number `index`, or the next one that can be used: of those held out, or of those trained on.

        Raises:
            ValueError: None can be.
        """
        among = self.held_out if index in self.held_out else self.trained
        for further in range(len(among)):
            sample = self._usable(among[(index - among.start + further) % len(among)])
            if sample is not None:
                return sample
        reasons = ", ".join(sorted(set(self.passed_over.values())))
        raise ValueError(f"No clip in {self._folder} can be trained on ({reasons}); build the shards again.")

    def load_held_out(self) -> list[Sample]:
        """The validation clips; where none is held out or can be used, the first that is trained on."""
        samples = [sample for index in self.held_out if (sample := self._usable(index)) is not None]
        return samples or [self.load(self.trained.start)]

    def _usable(self, index: int) -> Sample | None:
        if index in self.passed_over:
            return None
        try:
            return self._sample(self._clips.take([index]))
        # What else is wrong with a shard, TarIndex says itself.
        except (OSError, KeyError, DamagedClipError, _UnusableError) as error:
            self._pass_over(index, str(error) or type(error).__name__)
            return None

    def _pass_over(self, index: int, reason: str) -> None:
        with self._reporting:
            if index in self.passed_over:
                return
            self.passed_over[index] = reason
            if self._report is None:
                return
            # Another rank, or the command before this one, may have met the same clip.
            line = json.dumps({"clip": self._clips.key(index), "reason": reason}) + "\n"
            known = self._report.read_text(encoding="utf-8") if self._report.is_file() else ""
            if line not in known:
                with self._report.open("a", encoding="utf-8") as file:
                    file.write(line)

    def index_at(self, place: int) -> int:
        """Which clip a place has: every clip once an epoch, in an order that keeps near what lies near."""
        epoch, offset = divmod(place, self._count)
        windows = -(-self._count // WINDOW)
        for window in self._order(epoch, -1, windows).tolist():
            size = min(WINDOW, self._count - window * WINDOW)
            if offset < size:
                inner = int(self._order(epoch, window, size)[offset])
                return len(self.held_out) + window * WINDOW + inner
            offset -= size
        raise AssertionError("every offset lies in a window")

    def _at(self, place: int) -> Sample:
        return self.load(self.index_at(place))

    def _sample(self, batch: ShardBatch) -> Sample:
        text, frames = batch.motion_prompts[0], batch.frames[0]
        if not text.strip():
            raise _UnusableError("without a text")
        if batch.records[0]["size"] < self._size:
            raise ValueError(
                f"The clips in {self._folder} are {batch.records[0]['size']} px wide, and training wants {self._size}; "
                "build them larger, or train at another --size."
            )
        if frames.shape[1] < self._frames:
            raise _UnusableError(f"only {frames.shape[1]} frames, not {self._frames}")
        latents = self._stored_latents(batch.records[0]["key"]) if self._params.stored_latents else None
        return Sample(
            frames, latents, batch.mask[0], batch.swept[0], float(batch.magnitude[0]), text, batch.captions[0]
        )

    def _stored_latents(self, key: str) -> Tensor:
        # A clip's key begins with the number of its part.
        folder = self._folder / "shards" if (self._folder / "shards").is_dir() else self._folder
        stored = _index(folder / f"part-{key.partition('-')[0]}.tar").read(key, "latents.npy")
        if not stored:
            raise ValueError(f"{self._folder} holds no latents; leave --stored-latents out, or build with latents.")
        try:
            latents = torch.from_numpy(np.load(io.BytesIO(stored["latents.npy"]), allow_pickle=False)).float()
        except (ValueError, TypeError, EOFError) as error:
            raise _UnusableError(f"damaged latents: {error}") from error
        wanted = self._size // LATENT_SCALE
        if latents.shape[0] != 4 or latents.shape[-2:] != (wanted, wanted):
            raise ValueError(
                f"The latents in {self._folder} are {latents.shape[-1]} cells wide, not {wanted}; "
                "leave --stored-latents out, or build with another --size."
            )
        return latents[:, : self._frames]


class SampleMaker:
    """Turns clips into what the model and its loss read; randomness is drawn on the CPU, from a sample's place."""

    def __init__(self, autoencoder: AnyAutoencoder, params: ClipTrainParams, device: torch.device):
        self._autoencoder, self._params, self._frames, self._device = autoencoder, params, params.num_frames, device
        self._schedule = NoiseSchedule(params.schedule).to(device)

    def check_latents(self, sample: Sample) -> None:
        """ValueError if a sample's stored latents are not what this autoencoder makes of its frames."""
        if sample.latents is None:
            return
        own = self._encode(sample.frames[None, :, :1])[0, :, 0].cpu()
        stored = sample.latents[:, 0]
        difference = float((own - stored).norm() / own.norm())
        if difference > LATENTS_DIFFER:
            raise ValueError(
                f"The latents in the shards were made by another autoencoder (they differ by {difference:.0%}); "
                "leave --stored-latents out, or build them with this model's weights."
            )

    def batch(
        self, samples: Sequence[Sample], places: Sequence[int], timesteps: int | None = None
    ) -> dict[str, Tensor]:
        """One micro-batch on the device.

        Args:
            timesteps: All at this one, and without dropouts and stills, as validation wants it; None: random.
        """
        validating = timesteps is not None
        generators = [step_generator(CPU, place, salt=4 + self._params.seed) for place in places]
        if not validating:
            samples = [self._still(*pair) for pair in zip(samples, generators, strict=True)]
        latents = self.latents(samples)
        rows = [
            self._draws(sample, latent, generator, validating)
            for sample, latent, generator in zip(samples, latents.cpu(), generators, strict=True)
        ]
        batch = {key: torch.stack([row[key] for row in rows]).to(self._device) for key in rows[0]}
        t = torch.full_like(batch["t"], timesteps) if timesteps is not None else batch["t"]
        noise = batch.pop("noise")
        return {
            "x_t": self._schedule.add_noise(latents, noise, t),
            "target": self._schedule.target(latents, noise, t),
            "magnitude": torch.tensor([sample.magnitude for sample in samples], device=self._device),
            **batch,
            "t": t,
        }

    def latents(self, samples: Sequence[Sample]) -> Tensor:
        """Of whole clips, b 4 f h w, on the device."""
        if all(sample.latents is not None for sample in samples):
            return torch.stack([sample.latents for sample in samples if sample.latents is not None]).to(self._device)
        return torch.cat([self._encode(sample.frames[None]) for sample in samples])

    def condition(self, latents: Tensor, masks: Tensor) -> Tensor:
        """The five extra channels as inference gives them, of latents b 4 h w."""
        return first_frame_condition(latents, masks.to(latents.device), self._frames, self._params.layout)

    def _still(self, sample: Sample, generator: torch.Generator) -> Sample:
        """The sample, or one of its frames held for the whole clip."""
        draw, place = torch.rand(2, generator=generator).tolist()
        if draw >= self._params.still_share:
            return sample
        frame = int(place * self._frames)

        def held(video: Tensor) -> Tensor:
            return video[:, frame : frame + 1].expand_as(video)

        return replace(
            sample,
            frames=held(sample.frames),
            latents=None if sample.latents is None else held(sample.latents),
            mask=torch.zeros_like(sample.mask),
            swept=torch.zeros_like(sample.swept),
            magnitude=0.0,
            text=sample.caption or sample.text,
        )

    def _draws(
        self, sample: Sample, latents: Tensor, generator: torch.Generator, validating: bool
    ) -> dict[str, Tensor]:
        """One sample's timestep, noise, first-frame condition and tokens."""
        params = self._params
        steps = self._schedule.params.num_train_timesteps
        t = torch.randint(steps, (), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        noise = noise + params.noise_offset * torch.randn(len(latents), 1, 1, 1, generator=generator)
        mask = roughen_mask(sample.mask[None], generator) if not validating else sample.mask[None]
        first = latents[None, :, 0]
        tokens = tokenize([sample.text])
        if not validating:
            first = mask_first_frame(first, params.mask_ratio.draw(generator)[None], generator)
            level = params.condition_noise * t / (steps - 1)
            first = first + level * torch.randn(first.shape, generator=generator)
            tokens = drop_text(tokens, params.text_dropout, params.word_dropout, generator)
        condition = first_frame_condition(first, mask, self._frames, params.layout)
        if not validating and float(torch.rand((), generator=generator)) < params.condition_dropout:
            condition = torch.zeros_like(condition)
        return {
            "t": t,
            "noise": noise,
            "tokens": tokens[0],
            "first_frame": condition[0],
            "swept": F.adaptive_max_pool2d(sample.swept, latents.shape[-2:]),
        }

    @torch.no_grad()
    def _encode(self, frames: Tensor) -> Tensor:
        """Pixels b 3 f h w to latents b 4 f h w, float32; frame by frame, for encoding at 512 px takes gigabytes."""
        parts = []
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._params.precision == "bf16"):
            for frame in frames.unbind(dim=2):
                pixels = frame.to(self._device).contiguous(memory_format=torch.channels_last)
                parts.append(self._autoencoder.encode(pixels).float())
        return torch.stack(parts, dim=2)


class _UnusableError(Exception):
    """A clip that training cannot use; the text says why."""


def _permutation(seed: int, epoch: int, window: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, window + 1]).permutation(count)


_index = lru_cache(maxsize=64)(TarIndex)
