"""A motion report as a picture: how far the object and everything else move, from frame to frame."""

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from ..shapes import Image
from .magnitude import MotionReport

SIZE = (640, 360)
_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 48, 16, 44
_PAPER, _GRID, _INK = (255, 255, 255), (225, 225, 225), (70, 70, 70)
_INSIDE, _OUTSIDE = (213, 94, 0), (0, 114, 178)  # told apart by the colour-blind too
_STEPS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # between the lines of the grid


def plot_motion(report: MotionReport) -> Image:
    """Magnitude inside and outside the object for each pair of frames, with their means; uint8 h w 3."""
    picture = PillowImage.new("RGB", SIZE, _PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    highest = max(*report.per_frame_inside, *report.per_frame_outside, 1.0)
    step = next((step for step in _STEPS if highest / step <= 5), _STEPS[-1])
    top = step * -(-highest // step)
    count = len(report.per_frame_inside)

    def x(pair: int) -> float:
        return _LEFT + (pair + 0.5) / count * (SIZE[0] - _LEFT - _RIGHT)

    def y(magnitude: float) -> float:
        return SIZE[1] - _BOTTOM - magnitude / top * (SIZE[1] - _TOP - _BOTTOM)

    for value in np.arange(0, top + step / 2, step):
        draw.line([(_LEFT, y(value)), (SIZE[0] - _RIGHT, y(value))], _GRID)
        draw.text((_LEFT - 8, y(value)), f"{value:g}", _INK, font, anchor="rm")
    for pair in range(0, count, max(1, count // 8)):
        draw.text((x(pair), SIZE[1] - _BOTTOM + 6), f"{pair + 1}", _INK, font, anchor="mt")
    draw.text((SIZE[0] / 2, SIZE[1] - 8), "frame", _INK, font, anchor="mb")
    draw.text((_LEFT, 8), "pixels per frame, at 512 pixels of width", _INK, font, anchor="lt")
    _curve(draw, [(x(i), y(value)) for i, value in enumerate(report.per_frame_outside)], _OUTSIDE)
    _curve(draw, [(x(i), y(value)) for i, value in enumerate(report.per_frame_inside)], _INSIDE)
    draw.text((_LEFT, 26), f"the object: {report.inside:.1f}", _INSIDE, font, anchor="lt")
    draw.text((_LEFT + 150, 26), f"the rest: {report.outside:.1f}", _OUTSIDE, font, anchor="lt")
    return np.array(picture)


def _curve(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
    if len(points) > 1:
        draw.line(points, colour, width=3, joint="curve")
    for x, y in points:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
