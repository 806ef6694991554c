"""How quickly the click editor answers, browser included: make editor-latency.

Measured in Chromium over a ComfyUI on the CPU, on a new picture of 1024x1024 pixels, in each front end. A time ends
when the frame with the mask has been shown. Exit code 1 if a bar is missed.
"""

import importlib.util
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

TESTS = Path(__file__).parents[1] / "tests"
SIDE, CLICKS, DRAG_SECONDS, IDLE_SECONDS = 1024, 20, 4, 5
LINK = [[1, 1, 0, 2, 0, "IMAGE"]]
BARS = {
    "first picture after wiring, ms": lambda found: found <= 300,
    "first mask on a new picture, ms": lambda found: found <= 1500,
    "further clicks, median ms": lambda found: found <= 150,
    "masks a second while dragging": lambda found: found >= 10,
    "requests, frames and timers while idle": lambda found: found == 0,
}
# From the release of the button to the frame after the one in which the mask was drawn.
STOPWATCH = """
() => {
  const body = document.querySelector('.followclick-body');
  window.addEventListener('pointerup', () => {
    const released = performance.now();
    const observer = new MutationObserver(() => {
      if (body.classList.contains('followclick-working')) return;
      observer.disconnect();
      requestAnimationFrame(() => requestAnimationFrame(() => { window.lastLatency = performance.now() - released; }));
    });
    window.lastLatency = null;
    observer.observe(body, { attributes: true, attributeFilter: ['class'] });
  }, true);
}
"""
WIRE = """
async () => {
  const find = (id) => [...app.canvas.graph.nodes].find((node) => String(node.id) === id);
  const canvas = document.querySelector('.followclick-canvas');
  const started = performance.now();
  find('1').connect(0, find('2'), 0);
  const shown = () => new Promise((done) => requestAnimationFrame(done));
  while (!canvas.classList.contains('followclick-ready')) await shown();
  await shown();
  await shown();
  return performance.now() - started;
}
"""


def _load(path: str):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), TESTS / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


browser_tests, kit = _load("browser/conftest"), _load("browser/editor_page")


def make_picture(server, name: str) -> None:
    """A photo that this server has not seen."""
    photo = Image.open(TESTS.parent / "web" / "examples" / "rocket.jpg").resize((SIDE, SIDE))
    noise = np.random.default_rng(abs(hash(name)) % 2**32).integers(-4, 5, (SIDE, SIDE, 3))
    Image.fromarray(np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8)).save(
        server.folder / "input" / name, quality=92
    )


def timed_click(page, editor, x: float, y: float, button: str = "left") -> float:
    page.page.mouse.move(*editor.place(x, y, (SIDE, SIDE)))
    page.page.mouse.down(button=button)
    page.page.mouse.up(button=button)
    page.wait_for_js("() => window.lastLatency !== null")
    return page.run_js("() => window.lastLatency")


def masks_while_dragging(page, editor) -> float:
    answers = []
    page.page.on("response", lambda answer: answers.append(answer) if answer.url.endswith("/segment") else None)
    angles = np.arange(0, 6, 0.06)
    circle = editor.places([(0.5 + 0.3 * np.sin(at), 0.5 + 0.3 * np.cos(at)) for at in angles], (SIDE, SIDE))
    page.page.mouse.move(*circle[0])
    page.page.mouse.down()
    end = time.monotonic() + DRAG_SECONDS
    for place in itertools.cycle(circle):
        page.page.mouse.move(*place)
        page.page.wait_for_timeout(16)  # a mouse reports about as often as the screen shows
        if time.monotonic() > end:
            break
    count = sum(answer.status == 200 for answer in answers)
    page.page.mouse.up()
    return count / DRAG_SECONDS


def measure(page, name: str) -> dict[str, float]:
    page.load([kit.load_image(1, name, {}), kit.click_to_mask(2, None)], [])
    page.page.wait_for_timeout(1500)
    found = {"first picture after wiring, ms": page.run_js(WIRE)}
    editor = page.editor(2).wait_for_picture()
    page.run_js(STOPWATCH)
    x, y = editor.place(0.5, 0.54, (SIDE, SIDE))
    # Not by way of the mouse, whose coming has the server look at the picture ahead.
    first = editor.canvas.evaluate_handle("(canvas) => canvas")
    first.evaluate(
        """(canvas, [x, y]) => {
          for (const type of ['pointerdown', 'pointerup']) {
            const options = { clientX: x, clientY: y, button: 0, pointerId: 9, bubbles: true };
            canvas.dispatchEvent(new PointerEvent(type, options));
          }
        }""",
        [x, y],
    )
    page.wait_for_js("() => window.lastLatency !== null")
    found["first mask on a new picture, ms"] = page.run_js("() => window.lastLatency")
    latencies = []
    places = np.random.default_rng(0).uniform(0.1, 0.9, (CLICKS, 2))
    for place in places:
        editor.key("Control+z")
        page.page.wait_for_timeout(400)
        latencies.append(timed_click(page, editor, *place))
    found["further clicks, median ms"] = statistics.median(latencies)
    editor.key("Control+z")
    page.page.wait_for_timeout(400)
    found["masks a second while dragging"] = masks_while_dragging(page, editor)
    page.page.mouse.move(700, 5)
    page.page.wait_for_timeout(1500)
    page.requests.clear()
    counts = "() => window.watched.frames + window.watched.timers"
    before = page.run_js(counts)
    page.page.wait_for_timeout(1000 * IDLE_SECONDS)
    idle = page.run_js(counts) - before + len(page.asked("/followclick/")) + len(page.asked("/view"))
    return found | {"requests, frames and timers while idle": idle}


def main() -> int:
    if browser_tests.MISSING:
        sys.exit(f"The editor cannot be measured: {browser_tests.MISSING}")
    missed = 0
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser_tests.find_chromium(), args=browser_tests.FLAGS)
        for setup in browser_tests.SETUPS:
            options = ["--front-end-root", str(setup.frontend)] if setup.frontend else []
            with tempfile.TemporaryDirectory() as folder:
                serving = browser_tests._comfyui_server.running_server(browser_tests.COMFYUI, Path(folder), *options)
                with serving as server:
                    make_picture(server, f"{setup.name}.jpg")
                    page = kit.EditorPage(
                        chromium.new_page(viewport={"width": 1400, "height": 900}), server, setup.nodes_2
                    )
                    page.open()
                    found = measure(page, f"{setup.name}.jpg")
            for what, figure in found.items():
                met = BARS[what](figure)
                missed += not met
                print(f"{setup.name:16} {what:40} {figure:8.1f}   {'met' if met else 'MISSED'}", flush=True)
        chromium.close()
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
