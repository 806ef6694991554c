"""The screenshots and the recording in docs/, taken with --take-pictures (make pictures)."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"
LINK = [[1, 1, 0, 2, 0, "IMAGE"]]
ON_ROCKET, ON_TOWER = (0.5, 0.45), (0.3, 0.45)
LARGEST = 600_000  # bytes
# A screenshot has no mouse pointer, so one is drawn.
POINTER = """
() => {
  const pointer = document.createElement('div');
  pointer.innerHTML = '<svg width="26" height="26" viewBox="0 0 26 26"><path d="M4 2v19l5-4.6 3 7 3.6-1.6-3-6.8h6.8z"' +
    ' fill="#fff" stroke="#000" stroke-width="1.4"/></svg>';
  pointer.style.cssText = 'position:fixed;z-index:2147483647;pointer-events:none;left:-99px;top:0';
  document.body.append(pointer);
  window.addEventListener('pointermove', ({ clientX, clientY }) => {
    pointer.style.left = `${clientX - 4}px`;
    pointer.style.top = `${clientY - 2}px`;
  }, true);
}
"""


def scene(page, kit, value: object = "[]"):
    node = kit.click_to_mask(2, 1, value, at=(320, 0))
    page.load([kit.load_image(1, "rocket.jpg", {0: [1]}), node], LINK, offset=(90, 120))
    return page.editor(2).wait_for_picture()


def shot(page) -> Image.Image:
    """The two nodes, and a little of what lies around them."""
    x, y = page.run_js(
        """() => {
          const { left, top } = app.canvas.canvas.getBoundingClientRect();
          return [left + app.canvas.ds.offset[0], top + app.canvas.ds.offset[1]];
        }"""
    )
    clip = {"x": x - 24, "y": y - 54, "width": 788, "height": 644}
    return Image.open(io.BytesIO(page.page.screenshot(clip=clip))).convert("RGB")


def save(path: Path, frames: list[Image.Image], milliseconds: list[int], quality: int) -> None:
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, quality=quality, method=6
    )
    assert path.stat().st_size < LARGEST


def test_take_a_screenshot(page, kit, setup):
    editor = scene(page, kit)
    with editor.next_masks():
        editor.click(*ON_ROCKET)
    editor.find(".followclick-prompt").fill("launch")
    editor.find(".followclick-slider").fill("9")
    editor.press("Another object")
    with editor.next_masks():
        editor.click(*ON_TOWER)
    with editor.next_masks():
        editor.press("Smaller mask")
    editor.find(".followclick-prompt").fill("shake")
    editor.find(".followclick-slider").fill("5")
    page.run_js("() => { document.activeElement.blur(); app.canvas.deselectAll(); }")
    page.page.mouse.move(1300, 700)
    page.wait_for_frames(3)
    name = re.sub(r"\W+", "_", setup.name)
    save(DOCS / f"editor_{name}.webp", [shot(page)], [0], quality=88)


@pytest.fixture
def film(page, kit, setup):
    if not setup.nodes_2:
        pytest.skip("one recording is enough")
    page.run_js(POINTER)
    return Film(page, scene(page, kit))


class Film:
    """Does things as a hand does them, and takes a picture of each moment."""

    def __init__(self, page, editor):
        self.page, self.editor = page, editor
        self.frames: list[Image.Image] = []
        self.milliseconds: list[int] = []
        self.at = (640.0, 560.0)

    def take(self, milliseconds: int = 90) -> None:
        self.page.wait_for_frames()
        self.frames.append(shot(self.page))
        self.milliseconds.append(milliseconds)

    def move(self, to: tuple[float, float], steps: int = 6) -> None:
        start = self.at
        for step in range(1, steps + 1):
            share = step / steps
            share = share * share * (3 - 2 * share)
            self.at = tuple(a + (b - a) * share for a, b in zip(start, to, strict=True))
            self.page.page.mouse.move(*self.at)
            self.take()

    def click(self, x: float, y: float, button: str = "left") -> None:
        self.move(self.editor.place(x, y))
        with self.editor.next_masks():
            self.page.page.mouse.click(*self.at, button=button)
        self.take(800)

    def press(self, name: str) -> None:
        box = self.editor.find(f'button[aria-label^="{name}"]').bounding_box()
        self.move((box["x"] + box["width"] / 2, box["y"] + box["height"] / 2))
        self.page.page.mouse.click(*self.at)
        self.take(500)

    def write(self, text: str) -> None:
        box = self.editor.find(".followclick-prompt").bounding_box()
        self.move((box["x"] + 60, box["y"] + 14))
        self.page.page.mouse.click(*self.at)
        for letter in text:
            self.page.page.keyboard.type(letter)
            self.take(110)
        self.take(500)

    def slide(self, to: float) -> None:
        box = self.editor.find(".followclick-slider").bounding_box()
        y = box["y"] + box["height"] / 2
        value = float(self.editor.find(".followclick-slider").input_value())
        self.move((box["x"] + 7 + (box["width"] - 14) * value / 32, y))
        self.page.page.mouse.down()
        self.move((box["x"] + 7 + (box["width"] - 14) * to / 32, y))
        self.page.page.mouse.up()
        self.take(700)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.move(self.editor.place(*start))
        self.page.page.mouse.down()
        for step in range(1, 9):
            share = step / 8
            place = [a + (b - a) * share for a, b in zip(start, end, strict=True)]
            self.at = self.editor.place(*place)
            self.page.page.mouse.move(*self.at)
            self.page.page.wait_for_timeout(120)
            self.take()
        self.page.page.mouse.up()
        self.page.page.wait_for_timeout(200)
        self.take(700)


def test_take_the_recording(film):
    film.take(600)
    film.click(*ON_ROCKET)
    film.press("Smaller mask")
    film.press("Larger mask")
    film.write("launch")
    film.slide(11)
    film.press("Another object")
    film.click(*ON_TOWER)
    film.press("Smaller mask")
    film.write("shake")
    film.take(1500)
    small = [frame.resize((630, 515), Image.Resampling.LANCZOS) for frame in film.frames]
    save(DOCS / "click_editor.webp", small, film.milliseconds, quality=55)
