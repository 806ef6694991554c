"""What each command does: check all that can be checked, then work, then write.

Imports are inside the functions: torch takes seconds, which --help and a mistyped option should not cost.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..clip import Clip
    from ..shapes import Image, Mask


def animate(arguments: argparse.Namespace) -> None:
    from ..acceleration.crop import check_context
    from ..acceleration.feature_reuse import ReuseParams
    from ..animator import Animator, check_request
    from ..clip import check_clip_output
    from ..files import check_writable, write_json
    from ..generate import SamplingParams
    from ..images import check_mask_name, load_image, save_mask
    from ..segment import clicks_from_pixels
    from .progress import StageBars
    from .values import guidance_interval

    # Everything that can be wrong with the outputs is found out before the minute of sampling.
    _keep_inputs(arguments.photo, arguments.output, arguments.mask_output, arguments.report)
    check_clip_output(arguments.output)
    if arguments.mask_output:
        check_mask_name(arguments.mask_output)
        check_writable(arguments.mask_output)
    if arguments.report:
        check_writable(arguments.report)
    image = load_image(arguments.photo)
    asked = [(_clicks(arguments), arguments.motion, arguments.magnitude), *map(_also, arguments.also)]
    if arguments.only_region is not None:
        check_context(arguments.only_region)
    params = SamplingParams(
        arguments.frames,
        arguments.steps,
        arguments.cfg,
        guidance_interval=guidance_interval(arguments, whole=arguments.reuse_features > 1),
        loop=arguments.loop,
        reuse=ReuseParams(arguments.reuse_features) if arguments.reuse_features > 1 else None,
        crop_context=arguments.only_region,
    )
    for clicks, motion, magnitude in asked:
        clicks_from_pixels(clicks, _size(image))
        check_request(motion, magnitude, params.num_frames, params.steps, params.guidance_scale)
    device, seconds = chosen_device(arguments.device), {}
    with StageBars(arguments.quiet) as progress:
        progress("load", 0, 1)
        animator = Animator.load(arguments.model, device)
        progress("load", 1, 1)
        objects = animator.select(image, asked, progress, seconds)
        clip = animator.animate_objects(image, objects, params, arguments.seed, progress, seconds)
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
    device = chosen_device(arguments.device)
    with StageBars(arguments.quiet) as progress:
        progress("load", 0, 1)
        segmenter = load_segmenter(arguments.segmenter, device)
        progress("load", 1, 1)
        progress("segment", 0, 1)
        candidates = segmenter.predict(segmenter.embed(image), clicks)
        progress("segment", 1, 1)
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
        _keep_inputs(arguments.clip, arguments.mask, arguments.report)
        check_writable(arguments.report)
    mask, frames = load_mask(arguments.mask), load_frames(arguments.clip)
    _require_same_size(frames[0], mask, arguments)
    estimator = load_raft(Path(arguments.raft)) if arguments.raft else None
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


def build_art(arguments: argparse.Namespace) -> None:
    from ..data.art_build import build_art_pack
    from ..files import check_writable

    check_writable(arguments.output)
    build = partial(build_art_pack, arguments.packages or ["node_modules"], arguments.output)
    if arguments.photos:
        build = partial(build, photo_folders=arguments.photos)
    if arguments.emoji_font:
        build = partial(build, noto_font=arguments.emoji_font)
    pack = build()
    if not arguments.quiet:
        counts = f"{len(pack.sprites)} sprites, {len(pack.animations)} animations, {len(pack.photos)} photos"
        print(f"{arguments.output}: {counts}")


def _clicks(arguments: argparse.Namespace) -> list[tuple[float, float, int]]:
    return [(x, y, 1) for x, y in arguments.click] + [(x, y, 0) for x, y in arguments.exclude]


def _also(words: list[str]) -> tuple[list[tuple[float, float, int]], str, float]:
    """Clicks, motion and magnitude of a further object."""
    example = 'give a point, what it does and how fast, such as --also 300,180 "move left" 8'
    if len(words) not in (2, 3):
        raise ValueError(f"--also has {len(words)} values; {example}.")
    try:
        x, y = (float(part) for part in words[0].split(","))
        return [(x, y, 1)], words[1], float(words[2]) if len(words) > 2 else 6.0
    except ValueError:
        raise ValueError(f"--also {' '.join(words)} holds something that is no number; {example}.") from None


def _candidate(text: str) -> int | None:
    if text == "best":
        return None
    if not text.isdecimal():
        raise ValueError(f"--candidate is {text!r}; give best, 0, 1 or 2.")
    return int(text)


def _size(image: "Image") -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def chosen_device(name: str) -> str | None:
    """A device that torch knows and this machine has; None lets the model choose.

    Raises:
        ValueError: Torch does not know it, or it is not there.
    """
    if name == "auto":
        return None
    import torch

    try:
        torch.zeros(1, device=name).item()  # asked for, since "meta" makes tensors that hold nothing
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
            f"The mask {arguments.mask} has {sizes[0]} pixels, {arguments.clip} has {sizes[1]}; make the sizes equal."
        )


def _summary(output: str, clip: "Clip") -> str:
    measured, (width, height) = clip.report["measured"], clip.report["clip_size"]
    seconds = sum(clip.report["seconds"].values())
    summary = f"{output}: {len(clip.frames)} frames of {width}x{height} in {seconds:.0f} s."
    if "inside" in measured:
        summary += (
            f" The mask, {clip.mask.mean():.1%} of the picture, moves {measured['inside']:.1f} px per frame at 512 px "
            f"of width ({clip.report['asked']['magnitude']:g} were asked for), elsewhere {measured['outside']:.1f}."
        )
    return summary
