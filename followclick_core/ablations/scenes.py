"""The ablations' scenes: one object moves straight and evenly, in one of four directions, at several frame rates.

An even motion of `speed` pixels per second filmed at `fps` moves speed / fps per frame: so frame rate and magnitude are
related but differ, as in videos of the web, without a frame more being drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..data.art import ArtPack
from ..data.scenes import SceneGenerator, SceneParams
from ..flow.motion_mask import motion_regions

# Unit vector of each verb, x right and y down.
DIRECTIONS = {"move left": (-1.0, 0.0), "move right": (1.0, 0.0), "move up": (0.0, -1.0), "move down": (0.0, 1.0)}
SWEEP_MAGNITUDES = (4.0, 8.0, 12.0, 16.0)
# Seeds of the sets lie far apart.
SETS = {"train": 0, "held-out": 1, "sweep": 2, "pairs": 3}


@dataclass(frozen=True)
class ClipParams:
    """How clips are made.

    Args:
        size: Side in pixels.
        fps: Frame rates, each as often as the others.
        speeds: Range of the speed in pixels per second at 512 pixels of width, drawn log-uniformly.
        captioned: Share of the long captions that name the motion.
        train, held_out, sweep, pairs: Clips of each set; the last three are of sprites and photos held out.
    """

    size: int = 64
    num_frames: int = 16
    fps: tuple[int, ...] = (4, 8, 12, 16)
    speeds: tuple[float, float] = (16.0, 96.0)
    scales: tuple[float, float] = (0.2, 0.5)
    max_distractors: int = 3
    captioned: float = 1 / 3
    train: int = 6000
    held_out: int = 96
    sweep: int = 48
    pairs: int = 48

    def count(self, name: str) -> int:
        return {"train": self.train, "held-out": self.held_out, "sweep": self.sweep, "pairs": self.pairs}[name]


class ClipScenes(Dataset):
    """Clip `index` of a set, the same in every process: tensors and texts, ready to cross to another process."""

    def __init__(self, art: ArtPack, params: ClipParams, name: str):
        self._params, self._name = params, name
        pairs = name == "pairs"
        scene_params = SceneParams(
            size=params.size,
            num_frames=params.num_frames,
            max_distractors=1 if pairs else params.max_distractors,
            scales=(0.2, 0.35) if pairs else params.scales,
            verbs=tuple(DIRECTIONS),
        )
        self._scenes = SceneGenerator(art, scene_params, "cpu", split="train" if name == "train" else "test")

    def __len__(self) -> int:
        return self._params.count(self._name)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([SETS[self._name], index])
        verb = tuple(DIRECTIONS)[index % len(DIRECTIONS)]
        fps = self._params.fps[index // len(DIRECTIONS) % len(self._params.fps)]
        low, high = np.log(self._params.speeds)
        magnitude = float(np.exp(rng.uniform(low, high))) / fps
        if self._name == "sweep":  # so that the object has the room to move at every magnitude asked
            magnitude = max(SWEEP_MAGNITUDES)
        scene = self._scenes.sample(1, SETS[self._name] * 1_000_003 + index, [verb], [magnitude])
        caption, prompt = scene.captions[0], scene.motion_prompts[0]
        flows = scene.flow[0].permute(1, 2, 3, 0).numpy()
        # The scenes' flow is exact, so neither a floor nor a moving camera has to be thought of.
        regions = motion_regions(flows, ("union", "majority"), floor_px=0, subtract_median=False)
        return {
            "frames": (scene.frames[0] * 255).round().to(torch.uint8),
            "silhouette": scene.object_masks[0, :1] > 0.5,
            "swept": scene.swept[0] > 0.5,
            "distractor": scene.distractor_mask > 0.5,
            **{rule: torch.from_numpy(region.mask)[None] for rule, region in regions.items()},
            "magnitude": scene.magnitude[0],
            "fps": torch.tensor(float(fps)),
            "direction": torch.tensor(DIRECTIONS[verb]),
            "prompt": prompt,
            "caption": caption,
            "long_caption": f"{caption}, {prompt}" if rng.random() < self._params.captioned else caption,
        }


def scene_batches(scenes: ClipScenes, indices: range, batch_size: int, workers: int) -> Iterator[dict[str, Any]]:
    """Batches of clips `indices` of a set, made by `workers` processes; none: in this one."""
    return iter(DataLoader(scenes, batch_size, sampler=indices, num_workers=workers))  # type: ignore[arg-type]
