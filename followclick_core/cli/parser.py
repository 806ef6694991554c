"""Every command's arguments and help. Nothing heavy is imported here: --help must not wait for torch."""

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from ..version import VERSION
from . import ablate, build_dataset, commands, evaluate, train
from .values import count, guidance_options, seed

PROGRAM = "python -m followclick_core"

DESCRIPTION = f"""\
Click an object in a photo, say a verb, and get a clip in which only that object moves.

  {PROGRAM} animate photo.jpg --click 320,200 --motion "launch" --output out.webp
  {PROGRAM} segment photo.jpg --click 320,200 --output mask.png
  {PROGRAM} measure out.webp --mask mask.png
"""

ANIMATE = f"""\
Animate the clicked object of a photo. Clicks count pixels from the photo's upper left corner, as image viewers show it.

  {PROGRAM} animate eagle.jpg --click 512,300 --motion "flap" --output eagle.webp
  {PROGRAM} animate street.jpg --click 90,210 --exclude 90,260 --motion "move left" --magnitude 12 \\
      --output street.mp4 --mask-output mask.png --report report.json
  {PROGRAM} animate pond.jpg --click 90,210 --motion "swim" --also 300,180 "sway" 4 --frames 48 --loop \\
      --output pond.webp

The output's suffix chooses the format: .webp, .gif, .mp4, .png (numbered frames), or none for a folder of frames.
"""

SEGMENT = f"""\
Turn clicks into a mask, a PNG that is white where the object is. One click can mean a part or the whole of an object;
--candidate takes the second or third best guess instead, and further clicks say what belongs to it.

  {PROGRAM} segment photo.jpg --click 320,200 --output mask.png
  {PROGRAM} segment photo.jpg --click 320,200 --exclude 320,90 --grow 4 --output mask.png
"""

MEASURE = f"""\
Measure how much a clip moves inside a mask and outside it, by optical flow.

  {PROGRAM} measure out.webp --mask mask.png
  {PROGRAM} measure frames/ --mask mask.png --report motion.json

The unit is that of --magnitude: pixels per frame at 512 pixels of width. The mask is the object in the first frame.
"""

BUILD_ART = f"""\
Pack the emoji and photos that training scenes are made of. They come from packages that install by name, which
CONTRIBUTING.md lists; `make art` fetches them and runs this.

  {PROGRAM} build-art --packages node_modules --output build/art.zip
"""


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one sentence that points to the help."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")


def build_parser() -> argparse.ArgumentParser:
    # Raw: the examples' line breaks are meant.
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog=PROGRAM, description=DESCRIPTION, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"followclick {VERSION}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, summary, description, add_arguments, run in (
        ("animate", "photo + clicks + verb -> clip", ANIMATE, _animate, commands.animate),
        ("segment", "photo + clicks -> mask", SEGMENT, _segment, commands.segment),
        ("measure", "clip + mask -> motion inside and outside", MEASURE, _measure, commands.measure),
        ("train", "train a model, on generated scenes or on shards", train.HELP, train.add_arguments, train.run),
        (
            "build-dataset",
            "videos -> training shards",
            build_dataset.HELP,
            build_dataset.add_arguments,
            build_dataset.run,
        ),
        ("build-art", "collect the art for the scenes", BUILD_ART, _build_art, commands.build_art),
        ("evaluate", "measure a model on held-out scenes", evaluate.HELP, evaluate.add_arguments, evaluate.run),
        ("ablate", "the paper's ablations at demo scale", ablate.HELP, ablate.add_arguments, ablate.run),
    ):
        subparser = subparsers.add_parser(name, help=summary, description=description, formatter_class=layout)
        add_arguments(subparser)
        subparser.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
        subparser.set_defaults(run=run)
    return parser


def join_negative_values(argv: Sequence[str]) -> list[str]:
    """["--click", "-5,10"] -> ["--click=-5,10"]: argparse takes a value with a leading minus for an unknown option,
    where the user should be told that the click lies outside the photo."""
    joined: list[str] = []
    for argument in argv:
        follows_option = bool(joined) and re.fullmatch(r"--[a-z-]+", joined[-1]) is not None
        if follows_option and re.match(r"-[\d.,]|-(inf|nan)", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _animate(parser: argparse.ArgumentParser) -> None:
    _photo_and_clicks(parser)
    parser.add_argument("--motion", required=True, metavar="VERB", help='what the object does, such as "run"')
    parser.add_argument(
        "--magnitude",
        type=float,
        default=6.0,
        metavar="PX",
        help="how fast: mean motion in pixels per frame at 512 pixels of width, 0 to 32 (default 6)",
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        nargs="+",
        metavar="X,Y VERB [PX]",
        help="another object that moves: a point on it, what it does, and how fast; repeat it at will",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the clip: .webp, .gif, .mp4, .png or a folder")
    parser.add_argument("--mask-output", metavar="PNG", help="also write the mask that the clicks selected")
    parser.add_argument("--report", metavar="JSON", help="also write what was asked and what was measured")
    parser.add_argument("--frames", type=int, default=16, metavar="N", help="length of the clip (default 16)")
    parser.add_argument("--loop", action="store_true", help="the last frame runs into the first")
    parser.add_argument("--steps", type=int, default=25, metavar="N", help="sampling steps (default 25)")
    guidance_options(parser)
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="another seed, another clip (default 0)")
    faster = parser.add_argument_group("faster, and a little off (benchmarks/RESULTS.md says how far)")
    faster.add_argument(
        "--reuse-features",
        type=count,
        default=1,
        metavar="N",
        help="compute the whole model only at every N-th step, guided throughout (default 1: whole at each)",
    )
    faster.add_argument(
        "--only-region",
        type=float,
        metavar="X",
        help="sample only the part around the objects, X times their size; the rest stays the photo",
    )
    parser.add_argument("--model", default="demo", metavar="NAME", help="which model (default demo)")
    _device(parser)


def _segment(parser: argparse.ArgumentParser) -> None:
    _photo_and_clicks(parser)
    parser.add_argument("--output", required=True, metavar="PNG", help="the mask")
    parser.add_argument(
        "--candidate",
        default="best",
        metavar="best|0|1|2",
        help="which of the masks that the clicks can mean, 0 being the best (default best)",
    )
    parser.add_argument("--grow", type=int, default=0, metavar="PX", help="widen the mask; negative: narrow it")
    parser.add_argument("--feather", type=float, default=0.0, metavar="PX", help="soften its edge (blur radius)")
    parser.add_argument(
        "--segmenter",
        default="demo",
        metavar="FILE",
        help="a SAM ViT-B, -L or -H checkpoint (default: the embedded one)",
    )
    _device(parser)


def _measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clip", metavar="CLIP", help=".webp, .gif, .mp4, or a folder of frames")
    parser.add_argument("--mask", required=True, metavar="PNG", help="the object in the first frame, white")
    parser.add_argument("--report", metavar="JSON", help="write the figures, frame by frame, to this file")
    parser.add_argument("--raft", metavar="FILE", help="torchvision's RAFT weights, for flow by RAFT instead of DIS")


def _build_art(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--packages", action="append", metavar="FOLDER", help="where the emoji packages lie (default node_modules)"
    )
    parser.add_argument(
        "--photos", action="append", metavar="FOLDER", help="where photos lie (default: the system's wallpapers)"
    )
    parser.add_argument("--emoji-font", metavar="TTF", help="NotoColorEmoji.ttf (default: the system's)")
    parser.add_argument("--output", default="build/art.zip", metavar="ZIP", help="the art pack (default build/art.zip)")


def _photo_and_clicks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", metavar="PHOTO", help="any picture file, 16 pixels to 80 megapixels")
    parser.add_argument(
        "--click",
        action="append",
        required=True,
        type=_point,
        metavar="X,Y",
        help="a point on the object; repeat it at will",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        type=_point,
        metavar="X,Y",
        help="a point that is not part of the object",
    )


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, mps")


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y; give two numbers of pixels, such as 320,200") from None
    return x, y
