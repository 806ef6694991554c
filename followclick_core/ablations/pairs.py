"""Two objects, two motions: each region's prediction where it is nearest, against one pass with both in one prompt.

Paper section 5.4 shows several regions at once and leaves open how; `separate` is the nodes' mode of that
name (regions.region_shares), here at the latents' size and without OpenCV.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..conditioning import first_frame_condition, resize_mask
from ..diffusion.guidance import guide
from ..diffusion.samplers import sample_ddim
from ..diffusion.schedule import NoiseSchedule, trailing_timesteps
from ..generate import decode_clip, initial_noise
from ..models.attach import Attachment, MotionConditioning, attach
from ..models.bundle import ModelBundle
from ..regions import SEAM_WIDTH
from ..shapes import Masks, OtherVideo, PerSample, Timesteps, Video, fold_frames, unfold_frames
from .clips import HeldOutClips
from .scenes import DIRECTIONS
from .scoring import Rows, ScoringParams, obedience
from .tracking import track, velocities

MAGNITUDE = 8.0
# Of the picture; a smaller second object cannot be followed.
LEAST_AREA = 0.015
# Between the two objects' middles, in frame widths.
LEAST_DISTANCE = 0.3
LATENT_SEAM = SEAM_WIDTH / 8

Point = Float[Tensor, "b 2"]


@dataclass(frozen=True)
class Region:
    """One object of each clip and what it is to do."""

    masks: Masks
    verbs: list[str]

    @property
    def directions(self) -> Point:
        return torch.tensor([DIRECTIONS[verb] for verb in self.verbs], device=self.masks.device)


@torch.inference_mode()
def score_pairs(bundle: ModelBundle, clips: HeldOutClips, params: ScoringParams) -> Rows:
    """Per clip with two objects far enough from each other: whether the first and the second obeys, and both."""
    first, second, chosen = find_pairs(clips)
    if not chosen:
        return {}
    photos = clips["frames"][chosen, :, 0]
    joined = Region(
        torch.maximum(first.masks, second.masks),
        [f"{one} and {other}" for one, other in zip(first.verbs, second.verbs, strict=True)],
    )
    rows: Rows = {"pairs_clip": chosen}
    for name, regions in (("separate", (first, second)), ("joined", (joined,))):
        frames = _sample(bundle, photos, regions, clips["latents"].shape[2], params)
        obeys = [_obeys(frames, region) for region in (first, second)]
        rows |= {f"pairs_{name}": torch.stack(obeys, dim=1).tolist()}
    return rows


def find_pairs(clips: HeldOutClips) -> tuple[Region, Region, list[int]]:
    """Clicked object, still object and clip number of each clip that suits.

    The first goes the clip's own way, the second where it has the most room, but another way.
    """
    masks, others = clips["silhouette"], clips["distractor"]
    distance = (_middles(masks) - _middles(others)).norm(dim=1)
    suits = (others.mean((1, 2, 3)) >= LEAST_AREA) & (distance >= LEAST_DISTANCE)
    chosen = suits.nonzero()[:, 0].tolist()
    ways = clips["direction"][chosen].tolist()
    own = [next(verb for verb, way in DIRECTIONS.items() if list(way) == direction) for direction in ways]
    middles = _middles(others)[chosen].tolist()
    second = [_roomiest(x, y, but=verb) for (x, y), verb in zip(middles, own, strict=True)]
    return Region(masks[chosen], own), Region(others[chosen], second), chosen


def latent_shares(masks: Sequence[Masks], size: tuple[int, int]) -> Float[Tensor, "n b 1 h_out w_out"]:
    """`regions.region_shares` of each clip at the latents' size."""
    grid = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in size))
    distances = []
    for mask in masks:
        cells = resize_mask(mask, size).flatten(1).cpu()
        inside = [(row >= min(0.5, float(row.max()))).nonzero()[:, 0] for row in cells]
        distances.append(torch.stack([torch.cdist(grid, grid[at]).amin(1) for at in inside]))
    shares = torch.softmax(torch.stack(distances) * (-4 / LATENT_SEAM), dim=0)
    return shares.unflatten(-1, (1, *size)).to(masks[0].device)


def _sample(
    bundle: ModelBundle,
    photos: Float[Tensor, "b 3 h w"],
    regions: Sequence[Region],
    num_frames: int,
    params: ScoringParams,
) -> Video:
    made = []
    for start in range(0, len(photos), params.batch):
        rows = slice(start, start + params.batch)
        part = [Region(region.masks[rows], region.verbs[rows]) for region in regions]
        with torch.autocast(photos.device.type, torch.bfloat16, enabled=photos.device.type == "cuda"):
            latents = _sample_latents(bundle, photos[rows], part, num_frames, params, first_seed=start)
        made.append(decode_clip(bundle, latents.float()))
    return torch.cat(made)


def _sample_latents(
    bundle: ModelBundle,
    photos: Float[Tensor, "b 3 h w"],
    regions: Sequence[Region],
    num_frames: int,
    params: ScoringParams,
    first_seed: int,
) -> OtherVideo:
    """`generate.generate_latents` with a prediction per region, mixed by shares."""
    count = len(photos)
    schedule = NoiseSchedule(bundle.motion.schedule).to(photos.device)
    z_0 = bundle.autoencoder.encode(photos).float()
    magnitude = torch.full((2 * count,), MAGNITUDE, device=photos.device)
    conditionings = []
    for region in regions:
        context = bundle.text.encode([*region.verbs, *[""] * count])
        condition = first_frame_condition(z_0, region.masks, num_frames, bundle.motion.layout)
        conditionings.append(MotionConditioning(num_frames, context, magnitude, condition.repeat(2, 1, 1, 1, 1)))
    height, width = z_0.shape[-2:]
    shares = latent_shares([region.masks for region in regions], (height, width))[:, :, :, None]
    attachment = attach(bundle.unet, bundle.motion)

    def predict_v(x_t: Video, t: Timesteps) -> Video:
        guided = [_guided(bundle, attachment, one, x_t, t, params.guidance_scale) for one in conditionings]
        return (torch.stack(guided) * shares).sum(0)

    x_t = initial_noise((4, num_frames, height, width), range(first_seed, first_seed + count)).to(photos.device)
    try:
        return sample_ddim(predict_v, schedule, x_t, trailing_timesteps(params.steps))
    finally:
        attachment.detach()


def _guided(
    bundle: ModelBundle,
    attachment: Attachment,
    conditioning: MotionConditioning,
    x_t: Video,
    t: Timesteps,
    scale: float,
) -> Video:
    frames = conditioning.num_frames
    assert conditioning.context is not None
    context = conditioning.context.repeat_interleave(frames, dim=0)
    timesteps = t.repeat(2).repeat_interleave(frames)
    with attachment.conditioned(conditioning, timesteps):
        v = bundle.unet(fold_frames(x_t.repeat(2, 1, 1, 1, 1)), timesteps, context)
    v_cond, v_uncond = unfold_frames(v.float(), 2 * len(x_t)).chunk(2)
    return guide(v_cond, v_uncond, scale)


def _obeys(frames: Video, region: Region) -> PerSample:
    velocity = velocities(track(frames, region.masks)) * (512 / frames.shape[-1])
    return obedience(velocity, region.directions, torch.full_like(velocity[:, 0], MAGNITUDE))


def _middles(masks: Masks) -> Point:
    """Centre of mass (x, y) in frame widths; of an empty mask the corner."""
    height, width = masks.shape[-2:]
    xs = (torch.arange(width, device=masks.device) + 0.5) / width
    ys = (torch.arange(height, device=masks.device) + 0.5) / width
    area = masks.sum((1, 2, 3)).clamp(min=1)
    return torch.stack([(masks * xs).sum((1, 2, 3)) / area, (masks * ys[:, None]).sum((1, 2, 3)) / area], dim=1)


def _roomiest(x: float, y: float, but: str) -> str:
    """The way with the farthest edge, other than one verb's."""
    rooms = {"move left": x, "move right": 1 - x, "move up": y, "move down": 1 - y}
    return max((verb for verb in rooms if verb != but), key=lambda verb: rooms[verb])
