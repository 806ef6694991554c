"""What the noise that a clip starts from does to it: held-out scenes from equal seeds, sampled with and without the
noise's mean over time (followclick_core/diffusion/noise.py).

    python benchmarks/noise.py --art build/art.zip --scenes 12 --device auto

For both, the means over scenes: the background's PSNR against the clip's own frame 0 and against the photo, worst
frame, in dB, and the mean squared error against the true clip where the object passes, in 1/1000. Below, the
differences with their 95 % bootstrap intervals.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from followclick_core.animator import best_device
from followclick_core.data.art import ArtPack
from followclick_core.data.scenes import SceneBatch, SceneGenerator, SceneParams
from followclick_core.evaluation.metrics import bootstrap_interval
from followclick_core.generate import SamplingParams, decode_clip, fastest_dtype, generate_latents
from followclick_core.models.bundle import ModelBundle, load_bundle

INDEPENDENT, MEAN_FREE = KINDS = ("independent", "mean-free")
FIGURES = ("against frame 0", "against the photo", "error inside")
FIRST_SEED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", default="build/art.zip")
    parser.add_argument("--model", help="a run's weights folder (default: the shipped model)")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--cfg", type=float, default=7.5)
    parser.add_argument("--cfg-interval", type=float, nargs=2, default=(0.0, 1.0))
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = best_device() if arguments.device == "auto" else torch.device(arguments.device)
    bundle = load_bundle(arguments.model).to(device)
    half = torch.float16 if device.type == "cuda" else fastest_dtype(device)
    params = SamplingParams(
        guidance_scale=arguments.cfg,
        guidance_interval=tuple(arguments.cfg_interval),
        autocast=half,
    )
    art = ArtPack.load(arguments.art)
    scenes = SceneGenerator(art, SceneParams(size=bundle.preset.size), device, split="test")
    rows: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for index in range(arguments.scenes):
        scene = scenes.sample(1, seed=FIRST_SEED + index)
        for kind in KINDS:
            told = replace(params, mean_free_noise=kind == MEAN_FREE)
            rows[kind].append(measure(clip_of(bundle, scene, index, told), scene))
        print(index, {kind: [round(value, 2) for value in rows[kind][-1]] for kind in KINDS}, flush=True)
    print_table({kind: np.array(values) for kind, values in rows.items()})


def clip_of(bundle: ModelBundle, scene: SceneBatch, seed: int, params: SamplingParams) -> Tensor:
    """Decoded frames, 3 f h w."""
    magnitudes, photo = [float(scene.magnitude[0])], scene.frames[:, :, 0]
    latents = generate_latents(bundle, photo, scene.mask, scene.motion_prompts, magnitudes, [seed], params)
    return decode_clip(bundle, latents)[0]


def measure(frames: Tensor, scene: SceneBatch) -> list[float]:
    """FIGURES of one clip."""
    true, swept = scene.frames[0], scene.swept[0, 0] > 0.5
    changed = (frames - frames[:, :1]).square().mean(0)[1:, ~swept].mean(1)
    strange = (frames - true).square().mean(0)[:, ~swept].mean(1)
    inside = (frames - true).square().mean(0)[:, swept].mean()
    return [_psnr(changed.max()), _psnr(strange.max()), 1000 * inside.item()]


def _psnr(error: Tensor) -> float:
    return -10 * error.log10().item()


def print_table(rows: dict[str, np.ndarray]) -> None:
    print(f"\n{'':<26}" + "".join(f"{name:>26}" for name in FIGURES))
    for kind, values in rows.items():
        print(f"{kind:<26}" + "".join(f"{value:>26.2f}" for value in values.mean(0)))
    cells = []
    for differences in (rows[MEAN_FREE] - rows[INDEPENDENT]).T:
        low, high = bootstrap_interval(differences, np.mean)
        cells.append(f"{differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
    print(f"{'difference':<26}" + "".join(f"{cell:>26}" for cell in cells))


if __name__ == "__main__":
    main()
