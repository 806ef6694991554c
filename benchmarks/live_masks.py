"""How long the click editor waits for its masks: the server's side, on a real ComfyUI on the CPU.

    python benchmarks/live_masks.py

Prints each figure with its bar, and ends with 1 if one is missed. It needs a ComfyUI, which it finds as the tests do.
"""

import importlib.util
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from PIL import Image

PACK = Path(__file__).parents[1]
FIRST_MASK_BAR = 1.5  # seconds, on a new picture of 1024 x 1024
CLICK_BAR = 0.060  # of the 0.150 that a click may take, browser included
DRAG_BAR = 0.100  # ten masks a second
CLICKS = 20


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PACK / "tests" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def new_pictures(folder: Path, size: tuple[int, int]) -> Iterator[str]:
    """Names of pictures that no server has seen: crops of the example photo."""
    with Image.open(PACK / "web" / "examples" / "rocket.jpg") as photo:
        for number in range(100):
            name = f"{size[0]}x{size[1]}-{number}.png"
            picture = photo.crop((number, 0, 427 + number, 427)).resize(size, Image.Resampling.BICUBIC)
            picture.save(folder / name, compress_level=1)
            yield name


class Stopwatch:
    """Asks a server for masks, and says how long each answer took."""

    def __init__(self, editor: object):
        self._editor = editor

    def mask(self, name: str, x: float, objects: int = 1, **more: object) -> float:
        """A click at x on the last one of some objects; the others stay as they are."""
        others = [{"x": 0.1 * index, "y": 0.2, "label": 1, "object": index} for index in range(1, objects)]
        clicks = [*others, {"x": x, "y": 0.5, "label": 1, "object": objects}]
        start = time.perf_counter()
        answer = self._editor.segment(clicks, image=name, **more)
        seconds = time.perf_counter() - start
        assert answer.status == 200, answer.body
        with Image.open(io.BytesIO(answer.body)) as picture:
            assert picture.size == tuple(more.get("size") or map(int, name.split("-")[0].split("x")))
        return seconds

    def clicks(self, name: str, **more: object) -> float:
        """The median over clicks at many places."""
        return statistics.median(self.mask(name, 0.3 + 0.4 * index / CLICKS, **more) for index in range(CLICKS))

    def first_mask(self, names: Iterator[str]) -> float:
        """The median over new pictures."""
        return statistics.median(self.mask(next(names), 0.5) for _ in range(5))


def main() -> int:
    comfyui, reason = _load("find_comfyui").find_comfyui()
    if comfyui is None:
        sys.exit(f"The benchmark needs ComfyUI, and {reason}.")
    with (
        tempfile.TemporaryDirectory() as folder,
        _load("comfyui_server").running_server(comfyui, Path(folder)) as server,
    ):
        watch = Stopwatch(_load("editor_client").EditorClient(server.url))
        names = new_pictures(Path(folder) / "input", (1024, 1024))
        large = new_pictures(Path(folder) / "input", (4000, 3000))
        figures = {
            "first mask of the server, 1024x1024": (watch.mask(next(names), 0.5), FIRST_MASK_BAR),
            "first mask on a new picture, 1024x1024": (watch.first_mask(names), FIRST_MASK_BAR),
            "a further click, 1024x1024": (watch.clicks(name := next(names)), CLICK_BAR),
            "a further click, on one of 8 objects": (watch.clicks(name, objects=8), CLICK_BAR),
            "a further click, grown by 8": (watch.clicks(name, grow=8), CLICK_BAR),
            "while dragging, painted at 512x512": (watch.clicks(name, size=[512, 512]), DRAG_BAR),
            "first mask on a new picture, 12 megapixels": (watch.mask(photo := next(large), 0.5), FIRST_MASK_BAR),
            "while dragging on 12 megapixels, at 800x600": (watch.clicks(photo, size=[800, 600]), DRAG_BAR),
        }
    for name, (seconds, bar) in figures.items():
        print(f"{name:45} {seconds * 1000:7.0f} ms   bar {bar * 1000:5.0f} ms   {'' if seconds <= bar else 'MISSED'}")
    print(json.dumps({name: round(seconds, 4) for name, (seconds, _) in figures.items()}))
    return int(any(seconds > bar for seconds, bar in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
