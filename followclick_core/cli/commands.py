"""What each command does: check all that can be checked, then work, then write.

Imports are inside the functions: torch takes seconds, which --help and a mistyped option should not cost.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..clip import Clip
    from ..shapes import Image, Mask


def animate(arguments: argparse.Namespace) -> None:
    from ..clip import check_clip_output
    from ..files import check_writable, write_json
    from ..images import check_mask_name, load_image, save_mask
    from ..segment import clicks_from_pixels
    from .progress import StageBars

    # Everything that can be wrong with the outputs is found out before the minute of sampling.
    _keep_inputs(arguments.photo, arguments.output, arguments.mask_output, arguments.report)
    check_clip_output(arguments.output)
    if arguments.mask_output:
        check_mask_name(arguments.mask_output)
        check_writable(arguments.mask_output)
    if arguments.report:
        check_writable(arguments.report)
    image, clicks = load_image(arguments.photo), _clicks(arguments)
    clicks_from_pixels(clicks, _size(image))

    from ..animator import Animator

    with StageBars(arguments.quiet) as progress:
        progress("loading the model", 0, 1)
        animator = Animator.load(arguments.model, _device(arguments.device))
        progress("loading the model", 1, 1)
        clip = animator.animate(
            image,
            clicks,
            arguments.motion,
            magnitude=arguments.magnitude,
            num_frames=arguments.frames,
            steps=arguments.steps,
            guidance_scale=arguments.cfg,
            seed=arguments.seed,
            progress=progress,
        )
    clip.save(arguments.output)
    if arguments.mask_output:
        save_mask(arguments.mask_output, clip.mask)
    if arguments.report:
        write_json(arguments.report, clip.report)
    if not arguments.quiet:
        print(_summary(arguments.output, clip))


def segment(arguments: argparse.Namespace) -> None:
    from ..files import check_writable
    from ..images import check_mask_name, load_image, save_mask
    from ..segment import clicks_from_pixels, feather_mask, grow_mask, load_segmenter
    from .progress import StageBars

    _keep_inputs(arguments.photo, arguments.output)
    check_mask_name(arguments.output)
    check_writable(arguments.output)
    candidate = _candidate(arguments.candidate)
    image = load_image(arguments.photo)
    clicks = clicks_from_pixels(_clicks(arguments), _size(image))
    with StageBars(arguments.quiet) as progress:
        progress("finding the object", 0, 3)
        segmenter = load_segmenter(arguments.segmenter, _device(arguments.device))
        progress("finding the object", 1, 3)
        embedding = segmenter.embed(image)
        progress("finding the object", 2, 3)
        candidates = segmenter.predict(embedding, clicks)
        progress("finding the object", 3, 3)
    mask = grow_mask(candidates.pick(candidate), arguments.grow)
    if not mask.any():
        raise ValueError("The mask is empty; click on the middle of an object, try another --candidate or --grow less.")
    save_mask(arguments.output, feather_mask(mask, arguments.feather) if arguments.feather else mask)
    if not arguments.quiet:
        rank = candidate or 0
        print(
            f"{arguments.output}: {mask.mean():.1%} of the picture, "
            f"candidate {rank} of 0 to {len(candidates) - 1}, estimated quality {candidates.scores[rank]:.2f}"
        )


def measure(arguments: argparse.Namespace) -> None:
    from ..clip import load_frames
    from ..files import check_writable, write_json
    from ..flow import load_raft, measure_motion
    from ..images import load_mask

    if arguments.report:
        _keep_inputs(arguments.clip, arguments.report)
        check_writable(arguments.report)
    mask, frames = load_mask(arguments.mask), load_frames(arguments.clip)
    _require_same_size(frames[0], mask, arguments)
    estimator = load_raft(Path(arguments.raft), _device("auto")) if arguments.raft else None
    report = measure_motion(frames, mask, estimator)
    if arguments.report:
        write_json(arguments.report, report.to_dict())
    if not arguments.quiet:
        print("pixels per frame at 512 pixels of width\n\nframes    inside   outside")
        rows = zip(report.per_frame_inside, report.per_frame_outside, strict=True)
        for index, (inside, outside) in enumerate(rows):
            print(f"{f'{index}-{index + 1}':<8}{inside:>8.2f}{outside:>10.2f}")
        print(f"{'mean':<8}{report.inside:>8.2f}{report.outside:>10.2f}")
        print(f"\n{report.energy_share:.0%} of the motion's energy lies in the region that the object sweeps.")


def train(arguments: argparse.Namespace) -> None:
    from ..training.run import train as train_preset

    overrides = {} if arguments.steps is None else {"steps": arguments.steps}
    train_preset(
        arguments.preset,
        Path(arguments.art),
        Path(arguments.run_dir),
        arguments.stage or ["all"],
        arguments.max_seconds,
        _device(arguments.device),
        overrides,
    )


def build_art(arguments: argparse.Namespace) -> None:
    from ..data.art_build import build_art_pack
    from ..files import check_writable

    check_writable(arguments.output)
    photos = {"photo_folders": [Path(folder) for folder in arguments.photos]} if arguments.photos else {}
    pack = build_art_pack(arguments.packages or ["node_modules"], arguments.output, **photos)
    if not arguments.quiet:
        print(
            f"{arguments.output}: {len(pack.sprites)} sprites, {len(pack.animations)} animations, {len(pack.photos)} photos"
        )


def evaluate(arguments: argparse.Namespace) -> None:
    raise NotImplementedError


def _clicks(arguments: argparse.Namespace) -> list[tuple[float, float, int]]:
    return [(x, y, 1) for x, y in arguments.click] + [(x, y, 0) for x, y in arguments.exclude]


def _candidate(text: str) -> int | None:
    if text == "best":
        return None
    if not text.isdecimal():
        raise ValueError(f"--candidate is {text!r}; give best, 0, 1 or 2.")
    return int(text)


def _size(image: "Image") -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def _device(name: str) -> str | None:
    """A device that torch knows and this machine has; None lets the model choose.

    Raises:
        ValueError: Torch does not know it, or it is not there.
    """
    if name == "auto":
        return None
    import torch

    try:
        torch.zeros(1, device=name)
    # Torch asserts that it was built with CUDA, and raises RuntimeError for a name or a number that is not there.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The device {name!r} is not to be had here; give auto, cpu, cuda or mps.") from error
    return name


def _keep_inputs(source: str, *outputs: str | None) -> None:
    """Raise ValueError if an output would replace the file it is made from, or another output."""
    paths = [Path(path).resolve() for path in (source, *outputs) if path]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise ValueError(
                f"{path.name} is named twice, so one file would replace the other; give each its own name."
            )


def _require_same_size(frame: "Image", mask: "Mask", arguments: argparse.Namespace) -> None:
    if frame.shape[:2] != mask.shape:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, frame.shape)]
        raise ValueError(
            f"The mask {arguments.mask} has {sizes[0]} pixels, the clip {arguments.clip} {sizes[1]}; make them one size."
        )


def _summary(output: str, clip: "Clip") -> str:
    raise NotImplementedError
