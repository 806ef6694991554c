"""Values of options that several commands take."""

import argparse


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
    parser.add_argument("--cfg", type=float, default=7.5, metavar="X", help="guidance scale (default 7.5)")
    parser.add_argument(
        "--cfg-interval",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("FROM", "TO"),
        help="guide only in this share of the sampling (default 0 1)",
    )
