"""The whole method behind one object: a photo, clicks, a motion prompt and a magnitude in; a clip out."""

import hashlib
import importlib.metadata
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PillowImage
from torch import Tensor

from . import clip_files
from .clip import Clip
from .defaults import GUIDANCE_INTERVAL, GUIDANCE_SCALE, WHOLE_SAMPLING
from .diffusion.samplers import Callback
from .flow.magnitude import measure_motion
from .generate import DEMO_SAMPLING, LATENT_SCALE, SamplingParams, decode_clip, fastest_dtype, generate_latents
from .images import to_rgb_uint8
from .models.bundle import ModelBundle, load_bundle, weights_path
from .segment import ImageEmbedding, MaskCandidates, Segmenter, clicks_from_pixels, load_segmenter
from .shapes import Frames8, Image, Mask, MasksOfOtherSize, Video

DEMO = "demo"
MAX_MAGNITUDE = 64.0
MAX_FRAMES = clip_files.MAX_FRAMES
# A longer side ratio would leave fewer latents across than the model's lowest level needs.
MAX_ASPECT = 6.0

Progress = Callable[[str, int, int], None]  # (stage, done, total); what it raises ends the run


@dataclass(frozen=True)
class Canvas:
    """The size at which a photo is animated: the model's pixel count at the photo's aspect ratio, then padded.

    Args:
        width, height: The clip's size.
        padded_width, padded_height: What the UNet needs; the padding repeats the border and is cut off again.
    """

    width: int
    height: int
    padded_width: int
    padded_height: int

    @staticmethod
    def fit(image_size: tuple[int, int], model_size: int, multiple: int) -> "Canvas":
        """The canvas of a photo (width, height) for a model trained at model_size² pixels.

        Raises:
            ValueError: one side is over MAX_ASPECT times the other.
        """
        width, height = image_size
        if max(width / height, height / width) > MAX_ASPECT:
            raise ValueError(
                f"The image is {width}x{height}; a side may be at most {MAX_ASPECT:g} times the other: crop it first."
            )
        scale = model_size / math.sqrt(width * height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        return Canvas(width, height, -(-width // multiple) * multiple, -(-height // multiple) * multiple)

    def place(self, image: Image) -> Tensor:
        """The image as the model reads it: float 0..1, 1 3 h w, padded."""
        resized = PillowImage.fromarray(image).resize((self.width, self.height), PillowImage.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255
        return self._pad(pixels)

    def place_mask(self, mask: Mask) -> Tensor:
        """The mask as the model reads it: share of each pixel that moves, 1 1 h w, padded."""
        # In floats: a few pixels of a huge photo would round to nothing in eight bits.
        resized = PillowImage.fromarray(mask.astype(np.float32)).resize(
            (self.width, self.height), PillowImage.Resampling.BOX
        )
        values = torch.from_numpy(np.array(resized))[None, None]
        return F.pad(values, (0, self.padded_width - self.width, 0, self.padded_height - self.height))

    def cut(self, video: Video) -> np.ndarray:
        """Pixels 0..1, 1 3 f h w, without the padding, as uint8 frames."""
        frames = video[0, :, :, : self.height, : self.width]
        return (frames.permute(1, 2, 3, 0).float() * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    def cut_mask(self, region: MasksOfOtherSize) -> Mask:
        """Of a placed mask the clip's pixels at least half of which move, or else the one of which most does."""
        shares = region[0, 0, : self.height, : self.width]
        return (shares >= min(0.5, float(shares.max()))).numpy()

    def _pad(self, pixels: Tensor) -> Tensor:
        padding = (0, self.padded_width - self.width, 0, self.padded_height - self.height)
        return F.pad(pixels, padding, mode="replicate")


@dataclass(frozen=True, eq=False)
class MovingObject:
    """An object of a photo, and how it moves.

    Args:
        mask: Bool h w, like the photo.
        motion: A short motion prompt.
        magnitude: Pixels per frame at 512 pixels of width.
        clicks: Those that selected it, for the report.
    """

    mask: Mask
    motion: str
    magnitude: float = 6.0
    clicks: Sequence[tuple[float, float, int]] = ()


class Animator:
    """Animates what is clicked.

    >>> animator = Animator.load("demo")
    >>> clip = animator.animate(photo, [(320, 200, 1)], motion="run", magnitude=6)
    >>> clip.save("out.webp")
    """

    def __init__(self, bundle: ModelBundle, segmenter: Segmenter, name: str = DEMO):
        self.bundle = bundle
        self.segmenter = segmenter
        self.name = name
        self._embedding: tuple[bytes, ImageEmbedding] | None = None

    @classmethod
    def load(cls, name: str | Path = DEMO, device: str | torch.device | None = None) -> "Animator":
        """Load a model.

        Args:
            name: "demo" is the best model shipped; otherwise the `weights` folder of a training run.
            device: Default: CUDA or Apple's GPU where there is one, else the CPU.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            CheckpointError: a file is damaged or of another model.
        """
        device = torch.device(device) if device is not None else best_device()
        folder = None if str(name) == DEMO else Path(name)
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(
                f"There is no model {name!s}; give {DEMO!r} or the weights folder of a training run."
            )
        bundle = load_bundle(folder).to(device)
        segmenter = load_segmenter(weights_path("segmenter", folder), device)
        return cls(bundle, segmenter, str(name))

    def digest(self) -> str:
        """A short name for these very weights, by which clips of other ones can be told."""
        return self.bundle.digest()

    def segment(self, image: Image, clicks: Sequence[tuple[float, float, int]]) -> MaskCandidates:
        """Candidate masks of the clicked object, best first; the image is embedded once and remembered.

        Args:
            image: uint8 h w 3.
            clicks: (x, y, label) in the image's pixels; label 1 includes, 0 excludes.

        Raises:
            ValueError: no click, a click outside the image, or only excluding ones.
        """
        image = to_rgb_uint8(image)
        normalised = clicks_from_pixels(clicks, (image.shape[1], image.shape[0]))
        key = hashlib.sha256(image.tobytes() + str(image.shape).encode()).digest()
        if self._embedding is None or self._embedding[0] != key:
            self._embedding = (key, self.segmenter.embed(image))
        return self.segmenter.predict(self._embedding[1], normalised)

    def animate(
        self,
        image: Image,
        clicks: Sequence[tuple[float, float, int]],
        motion: str,
        magnitude: float = 6.0,
        num_frames: int = 16,
        steps: int = 25,
        guidance_scale: float = GUIDANCE_SCALE,
        seed: int = 0,
        progress: Progress | None = None,
        guidance_interval: tuple[float, float] = GUIDANCE_INTERVAL,
    ) -> Clip:
        """Click to clip.

        Args:
            image: The photo, uint8 h w 3.
            clicks: (x, y, label) in the image's pixels; label 1 includes, 0 excludes.
            motion: A short motion prompt, such as "flap the wings".
            magnitude: How strongly: mean flow in the region, pixels per frame at 512 pixels of width.
            guidance_scale, guidance_interval: See SamplingParams; the defaults suit the demo model (defaults.py).
            seed: The same seed gives the same clip.
            progress: Told (stage, done, total); the stages are "segment", "sample", "decode" and "measure".

        Raises:
            ValueError: a value that makes no sense, said in one sentence.
        """
        check_request(motion, magnitude, num_frames, steps, guidance_scale)
        seconds: dict[str, float] = {}
        objects = self.select(image, [(clicks, motion, magnitude)], progress, seconds)
        params = SamplingParams(num_frames, steps, guidance_scale, guidance_interval=guidance_interval)
        return self.animate_objects(image, objects, params, seed, progress, seconds)

    def select(
        self,
        image: Image,
        asked: Sequence[tuple[Sequence[tuple[float, float, int]], str, float]],
        progress: Progress | None = None,
        seconds: dict[str, float] | None = None,
    ) -> list[MovingObject]:
        """Clicks, motion and magnitude of each object to the objects themselves, for `animate_objects`."""
        image = to_rgb_uint8(image)
        with _Stage("segment", {} if seconds is None else seconds, progress):
            return [
                MovingObject(self.segment(image, clicks).best, motion, magnitude, clicks)
                for clicks, motion, magnitude in asked
            ]

    def animate_mask(
        self,
        image: Image,
        mask: Mask,
        motion: str,
        magnitude: float = 6.0,
        num_frames: int = 16,
        steps: int = 25,
        guidance_scale: float = GUIDANCE_SCALE,
        seed: int = 0,
        progress: Progress | None = None,
        seconds: dict[str, float] | None = None,
        clicks: Sequence[tuple[float, float, int]] = (),
        guidance_interval: tuple[float, float] = GUIDANCE_INTERVAL,
    ) -> Clip:
        """`animate` with the region at hand, bool h w like the image; `seconds` and `clicks` go into the report."""
        params = SamplingParams(num_frames, steps, guidance_scale, guidance_interval=guidance_interval)
        moving = MovingObject(mask, motion, magnitude, clicks)
        return self.animate_objects(image, [moving], params, seed, progress, seconds)

    def animate_objects(
        self,
        image: Image,
        objects: Sequence[MovingObject],
        params: SamplingParams | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        seconds: dict[str, float] | None = None,
    ) -> Clip:
        """`animate_mask` for one or several objects, each with a motion of its own, and for every way to sample.

        Clips of more frames than the model was trained on are sampled in windows (SamplingParams.context_length). What
        is measured and the clip's mask are of all objects together.
        """
        params, seconds = params or DEMO_SAMPLING, {} if seconds is None else seconds
        params = replace(params, autocast=params.autocast or fastest_dtype(self.bundle.device))
        image = to_rgb_uint8(image)
        if not objects:
            raise ValueError("Nothing is to move; name at least one object.")
        for each in objects:
            check_request(each.motion, each.magnitude, params.num_frames, params.steps, params.guidance_scale)
            check_region(each.mask, image)
        canvas = self.canvas(image)
        pixels = canvas.place(image)
        regions = torch.cat([canvas.place_mask(each.mask) for each in objects], dim=1)
        # The model sees the padding as part of the width that magnitudes refer to.
        magnitudes = [each.magnitude * canvas.width / canvas.padded_width for each in objects]
        prompts = [each.motion.strip() for each in objects]
        with _Stage("sample", seconds, progress) as callback:
            latents = generate_latents(self.bundle, pixels, regions, [prompts], [magnitudes], [seed], params, callback)
        with _Stage("decode", seconds, progress) as callback:
            frames = canvas.cut(decode_clip(self.bundle, latents, callback))
        small_mask = np.any([canvas.cut_mask(region[None]) for region in regions.movedim(1, 0)], axis=0)
        with _Stage("measure", seconds, progress):
            measured = self._measure(frames, small_mask)
        report = {
            "asked": _asked(objects, params, seed),
            "measured": measured,
            "model": {"name": self.name, "preset": self.bundle.preset.name, "device": str(self.bundle.device)},
            "image_size": [image.shape[1], image.shape[0]],
            "model_size": [canvas.padded_width, canvas.padded_height],
            "clip_size": [canvas.width, canvas.height],
            "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
            "versions": versions(),
        }
        return Clip(frames=frames, mask=small_mask, report=report)

    def canvas(self, image: Image) -> Canvas:
        """The size at which this model animates the image."""
        multiple = LATENT_SCALE * self.bundle.unet.params.size_multiple
        return Canvas.fit((image.shape[1], image.shape[0]), self.bundle.preset.size, multiple)

    @torch.inference_mode()
    def autoencode(self, image: Image) -> np.ndarray:
        """The image through the autoencoder and back, at the clip's size: the best that a first frame can be."""
        canvas = self.canvas(image)
        pixels = canvas.place(to_rgb_uint8(image)).to(self.bundle.device)
        return canvas.cut(decode_clip(self.bundle, self.bundle.autoencoder.encode(pixels)[:, :, None]))[0]

    def _measure(self, frames: Frames8, mask: Mask) -> dict:
        """Motion inside and outside the region, by optical flow; a single frame has none."""
        measured: dict = {"mask_area": round(float(mask.mean()), 4)}
        if len(frames) > 1:
            measured |= measure_motion(frames, mask).to_dict()
        return measured


def _asked(objects: Sequence[MovingObject], params: SamplingParams, seed: int) -> dict:
    """What was asked, for the report."""
    # Plain numbers: NumPy's, which clicks and settings often come as, are not JSON.
    moving = [
        {
            "clicks": [[float(x), float(y), int(label)] for x, y, label in each.clicks],
            "motion": each.motion,
            "magnitude": float(each.magnitude),
        }
        for each in objects
    ]
    asked = {
        **moving[0],
        "num_frames": int(params.num_frames),
        "steps": int(params.steps),
        "guidance_scale": float(params.guidance_scale),
        "seed": int(seed),
    }
    if len(objects) > 1:
        asked |= {"also": moving[1:], "region_mode": params.region_mode}
    if params.guidance_interval != WHOLE_SAMPLING:
        asked |= {"guidance_interval": list(params.guidance_interval)}
    if params.reuse is not None:
        asked |= {"reuse_features": params.reuse.interval}
    if params.crop_context is not None:
        asked |= {"only_region": params.crop_context}
    return asked | ({"loop": True} if params.loop else {})


def best_device() -> torch.device:
    """CUDA, then Apple's Metal, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def check_request(motion: str, magnitude: float, num_frames: int, steps: int, guidance_scale: float) -> None:
    """ValueError, in one sentence, for what cannot be animated."""
    if not motion.strip():
        raise ValueError('The motion prompt is empty; say what the object does, such as "run" or "flap the wings".')
    if not math.isfinite(magnitude) or not 0 <= magnitude <= MAX_MAGNITUDE:
        raise ValueError(
            f"The motion magnitude is {magnitude}; give pixels per frame at 512 pixels of width, "
            f"from 0 to {MAX_MAGNITUDE:g}."
        )
    if not 1 <= num_frames <= MAX_FRAMES:
        raise ValueError(f"A clip has from 1 to {MAX_FRAMES} frames, not {num_frames}; 16 is what the model learned.")
    if not 1 <= steps <= 1000:
        raise ValueError(f"Sampling takes from 1 to 1000 steps, not {steps}; 25 is usual.")
    if not math.isfinite(guidance_scale) or not 1 <= guidance_scale <= 100:
        raise ValueError(f"The guidance scale is {guidance_scale}; give 1 (none) to 100, {GUIDANCE_SCALE:g} is usual.")


def check_region(mask: Mask, image: Image) -> None:
    """ValueError for a mask of another size, or one in which nothing is to move."""
    if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
        raise ValueError(
            f"The mask is {mask.dtype} of {mask.shape}, the image is {image.shape[:2]}: give a bool mask of its size."
        )
    if not mask.any():
        raise ValueError("The mask is empty, so nothing would move; click on the object, or draw a mask over it.")


def versions() -> dict[str, str]:
    """Versions of what a clip depends on."""
    names = ("followclick", "torch", "torchvision", "segment-anything", "numpy")
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # a pack that is only copied into the host's folder
        return "not installed"


class _Stage:
    """Times a stage into `seconds`, and tells `progress` of its start, steps and end."""

    def __init__(self, name: str, seconds: dict[str, float], progress: Progress | None):
        self.name, self.seconds, self.progress = name, seconds, progress

    def __enter__(self) -> Callback:
        self.started = time.perf_counter()
        self.report(0, 1)
        return self.report

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.seconds[self.name] = time.perf_counter() - self.started
        if error is None:
            self.report(1, 1)

    def report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(self.name, done, total)
