"""What approximate accelerations cost and bring: held-out scenes sampled exactly and approximately, from equal seeds.

    python benchmarks/approximations.py --art build/art.zip --scenes 20 --device auto --workers 8

For every way to sample, a row with how far its clips are from the exact ones,

    latents   root mean square of the difference, over the exact latents' deviation
    PSNR      of the decoded frames against the exact clip's, in dB; then of the object's own pixels in frame 0

with what `evaluate` measures on them, which is what such an error means,

    energy, leak, size, verbs, still   flow energy in the swept region, motion outside it and inside the object (pixels
                                       per frame at 512 of width), verbs recognised, background against frame 0 in dB

and with the time of sampling over the exact one's. The ways take turns in every scene, so what else the machine does
meets them alike, the --workers that measure the clips included; on a CPU it is processor time that counts. The last
lines say by how much of the exact figure each figure is worse.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from followclick_core.acceleration.feature_reuse import ReuseParams
from followclick_core.animator import Animator
from followclick_core.data.art import ArtPack
from followclick_core.defaults import GUIDANCE_SCALE
from followclick_core.evaluation.scenes import held_out_scenes
from followclick_core.evaluation.scoring import SceneScore, score_scene
from followclick_core.evaluation.takes import HeldOutScene, SceneTakes, Take
from followclick_core.evaluation.workers import in_workers
from followclick_core.flow.magnitude import psnr
from followclick_core.generate import SamplingParams, decode_clip, generate_latents
from followclick_core.shapes import Mask

EXACT = "exact"
REUSE = [(2, 0), (3, 0), (3, 1), (4, 0), (6, 0)]
CROPS = [2.5, 4.0]


@dataclass
class Way:
    """One way to sample, and what was measured of it so far."""

    params: SamplingParams
    seconds: list[float] = field(default_factory=list)
    latents: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    psnr_object: list[float] = field(default_factory=list)
    scores: list[SceneScore] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Means over scenes of what evaluate measures."""
        scores = self.scores
        still = [score.background_psnr for score in scores if score.background_psnr is not None]
        return {
            "energy": statistics.mean(score.energy_share for score in scores),
            "leak": statistics.mean(score.leak for score in scores),
            "size": statistics.mean(score.magnitude for score in scores),
            "verbs": statistics.mean(score.recognised == score.verb for score in scores),
            "still": statistics.mean(still) if still else float("nan"),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", default="build/art.zip")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument(
        "--cfg", type=float, default=GUIDANCE_SCALE, help="throughout, as features can only be reused so"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1, help="processes that measure the clips")
    arguments = parser.parse_args()
    animator = Animator.load(arguments.model, None if arguments.device == "auto" else arguments.device)
    ways = all_ways(animator, arguments)
    scenes = held_out_scenes(ArtPack.load(arguments.art), arguments.scenes, arguments.seed, animator.bundle.preset.size)
    takes = sample_all(animator, scenes, ways, arguments.seed)
    for way, score in zip(cycle(ways.values()), in_workers(score_scene, takes, arguments.workers), strict=False):
        way.scores.append(score)
        print(f"scene {len(way.scores)} of {arguments.scenes}", end="\r", flush=True)
    print_table(ways)


def sample_all(
    animator: Animator, scenes: Iterator[HeldOutScene], ways: dict[str, Way], seed: int
) -> Iterator[SceneTakes]:
    """Every scene in every way, in this order; what needs no optical flow is noted in the ways meanwhile."""
    warm = False
    for scene in scenes:
        region = animator.segment(scene.image, [(*scene.click, 1)]).best if scene.click else scene.mask
        if not region.any():
            continue  # nothing is sampled then
        if not warm:
            warm = True
            for way in ways.values():
                sample(animator, scene, region, way.params, seed)
        yield from measure(animator, scene, region, ways, seed)


def all_ways(animator: Animator, arguments: argparse.Namespace) -> dict[str, Way]:
    half = torch.float16 if animator.bundle.device.type == "cuda" else None
    exact = SamplingParams(16, arguments.steps, arguments.cfg, autocast=half)
    ways = {EXACT: exact}
    for interval, depth in REUSE:
        ways[f"every {interval}, depth {depth}"] = replace(exact, reuse=ReuseParams(interval, depth))
    for context in CROPS:
        ways[f"part of {context:g}"] = replace(exact, crop_context=context)
    ways["every 3, part of 4"] = replace(exact, reuse=ReuseParams(3), crop_context=4.0)
    return {name: Way(params) for name, params in ways.items()}


def measure(
    animator: Animator, scene: HeldOutScene, region: Mask, ways: dict[str, Way], seed: int
) -> Iterator[SceneTakes]:
    """Sample a scene in every way, the exact one first."""
    exact, exact_frames = torch.empty(0), np.empty(0)
    for name, way in ways.items():
        latents, seconds = sample(animator, scene, region, way.params, seed)
        frames = animator.canvas(scene.image).cut(decode_clip(animator.bundle, latents))
        if name == EXACT:
            exact, exact_frames = latents, frames
        way.seconds.append(seconds)
        way.latents.append(float((latents - exact).square().mean().sqrt() / exact.std()))
        way.psnr.append(psnr(frames, exact_frames))
        way.psnr_object.append(psnr(frames[0][scene.mask], exact_frames[0][scene.mask]))
        take = Take(scene.magnitude, frames, region, seconds, prompt=scene.prompt)
        yield _scene_with(scene, take)


def sample(
    animator: Animator, scene: HeldOutScene, region: Mask, params: SamplingParams, seed: int
) -> tuple[Tensor, float]:
    """The clip's latents, and how long sampling took, without decoding, which is the same for all."""
    canvas, cuda = animator.canvas(scene.image), animator.bundle.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    started = clock()
    latents = generate_latents(
        animator.bundle,
        canvas.place(scene.image),
        canvas.place_mask(region),
        [scene.prompt],
        [scene.magnitude * canvas.width / canvas.padded_width],
        [seed + scene.index],
        params,
    )
    if cuda:
        torch.cuda.synchronize()
    return latents, clock() - started


def _scene_with(scene: HeldOutScene, take: Take) -> SceneTakes:
    # The round trip through the autoencoder matters to no figure that is printed here.
    return SceneTakes(
        scene.index,
        scene.verb,
        scene.prompt,
        scene.click,
        scene.image,
        scene.image,
        scene.mask,
        scene.distractors,
        (take,),
    )


def print_table(ways: dict[str, Way]) -> None:
    exact = ways[EXACT]
    base = exact.figures()
    names = list(base)
    print(f"{'':<20}{'latents':>8}{'PSNR':>7}{'object':>7}" + "".join(f"{name:>8}" for name in names) + "    speed")
    for name, way in ways.items():
        # A ratio for each scene, since parts are of different sizes; of all together, as time adds up.
        speed = sum(exact.seconds) / sum(way.seconds)
        errors = f"{statistics.mean(way.latents):>8.3f}{statistics.mean(way.psnr):>7.1f}"
        errors += f"{statistics.mean(way.psnr_object):>7.1f}"
        figures = "".join(f"{value:>8.3f}" for value in way.figures().values())
        print(f"{name:<20}{errors}{figures}{speed:>9.2f}")
    print("\nworse than exact, in per cent of it (negative: better)")
    for name, way in list(ways.items())[1:]:
        losses = {key: (base[key] - value) * (-1 if key == "leak" else 1) for key, value in way.figures().items()}
        print(f"{name:<20}{'':>22}" + "".join(f"{100 * losses[key] / (base[key] or 1):>8.1f}" for key in names))
    print(f"\n{len(exact.seconds)} scenes, {statistics.mean(exact.seconds):.2f} s each when sampled exactly.")


if __name__ == "__main__":
    main()
