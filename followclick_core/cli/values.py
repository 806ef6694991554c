"""Values of options that several commands take."""

import argparse

from ..defaults import GUIDANCE_INTERVAL, GUIDANCE_SCALE, WHOLE_SAMPLING


def seed(text: str) -> int:
    """A whole number that fits 64 bits."""
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give a whole number from 0 to 2**64 - 1")
    return int(text)


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give a whole number from 1")
    return int(text)


def guidance_options(parser: argparse.ArgumentParser) -> None:
    """How strongly the motion prompt guides the sampling, and when."""
    first, last = GUIDANCE_INTERVAL
    parser.add_argument(
        "--cfg",
        type=float,
        default=GUIDANCE_SCALE,
        metavar="X",
        help=f"guidance scale (default {GUIDANCE_SCALE}, which suits the demo model; the paper's is 7.5)",
    )
    parser.add_argument(
        "--cfg-interval",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help=f"guide only in this share of the sampling (default {first:g} {last:g}; the paper's is 0 1)",
    )


def guidance_interval(arguments: argparse.Namespace, whole: bool = False) -> tuple[float, float]:
    """What --cfg-interval says, or else the default; `whole`: the default must be all of the sampling."""
    if arguments.cfg_interval is not None:
        return tuple(arguments.cfg_interval)
    return WHOLE_SAMPLING if whole else GUIDANCE_INTERVAL
