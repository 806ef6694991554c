"""What several regions cost: the time of a clip with two regions, blended and separate, over that with one region.

    python benchmarks/regions.py --rounds 5 --size 128 --steps 4

The ways take turns in every round, so what else the machine does meets all of them alike; the ratios are of medians. On
a CPU it is processor time that is measured, which other programs do not lengthen as they do the time on the clock.
Random weights of a preset do: what is computed does not depend on them.
"""

import argparse
import statistics
import time

import torch

from followclick_core.generate import SamplingParams, generate_latents
from followclick_core.models.bundle import ModelBundle, load_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=128, help="side of the clip in pixels")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    bundle = load_bundle().to(torch.device(arguments.device))
    seconds: dict[str, list[float]] = {"one": [], "blended": [], "separate": []}
    for index in range(arguments.rounds + 1):  # the first one warms up
        for name, times in seconds.items():
            taken = clip_seconds(bundle, name, arguments)
            if index:
                times.append(taken)
    base = statistics.median(seconds["one"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:<9}{median:8.2f} s   {median / base:5.2f} of one region   (fastest {min(times):.2f} s)")


def clip_seconds(bundle: ModelBundle, name: str, arguments: argparse.Namespace) -> float:
    """How long sampling takes; without decoding, which is the same for all."""
    size = arguments.size
    picture = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(1, 2, size, size)
    masks[:, 0, size // 4 : size // 2, size // 8 : size // 3] = 1
    masks[:, 1, size // 3 : size // 2, size // 2 : -size // 8] = 1
    prompts, magnitudes = [["move left", "move up"]], [[6.0, 9.0]]
    if name == "one":
        masks, prompts, magnitudes = masks[:, :1], [["move left"]], [[6.0]]
    mode = "blended" if name == "one" else name
    params = SamplingParams(arguments.frames, arguments.steps, region_mode=mode)
    clock = time.process_time if bundle.device.type == "cpu" else time.perf_counter
    started = clock()
    generate_latents(bundle, picture, masks, prompts, magnitudes, [0], params)
    if bundle.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


if __name__ == "__main__":
    main()
