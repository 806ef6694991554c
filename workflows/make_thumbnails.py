"""Runs the example workflows on a ComfyUI server that has the pack, and makes their pictures from what comes out.

    python workflows/make_thumbnails.py [http://127.0.0.1:8188 [workflow ...]]

Each picture shows the clip's first frame with the clicked region outlined, and two later frames. Of a workflow that
wants files which do not come with the pack it shows the graph itself, in the host's front end (with playwright and a
Chromium, which CHROMIUM may name).
"""

import io
import json
import os
import shutil
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

HERE = Path(__file__).parent
HEIGHT = 288
OUTLINE = (255, 64, 64)


def main() -> None:
    server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188"
    for path in sorted((HERE / "api").glob("*.json")):
        if sys.argv[2:] and path.stem not in sys.argv[2:]:
            continue
        graph = json.loads(path.read_text())
        if any(node["class_type"] == "CheckpointLoaderSimple" for node in graph.values()):
            picture = screenshot(server, HERE / path.name)
            picture.save(HERE / f"{path.stem}.jpg", quality=88, optimize=True)
            print(HERE / f"{path.stem}.jpg")
            continue
        # A clip as animated WebP, whatever the workflow saves: Pillow reads its frames.
        frames_from = next(link for node in graph.values() if (link := _frames_input(node)))
        graph["frames"] = {
            "class_type": "SaveAnimatedWEBP",
            "inputs": {"images": frames_from, "filename_prefix": "thumbnail", "fps": 8.0, "lossless": True}
            | {"quality": 100, "method": "default"},
        }
        outputs = run(server, graph)
        mask_node = next(number for number, node in graph.items() if node["class_type"] == "MaskPreview")
        picture = strip(outputs["frames"][0], outputs[mask_node])
        picture.save(path.parents[1] / f"{path.stem}.jpg", quality=88, optimize=True)
        print(path.parents[1] / f"{path.stem}.jpg")


def _frames_input(node: dict) -> list | None:
    return node["inputs"].get("images") if node["class_type"] in ("CreateVideo", "SaveAnimatedWEBP") else None


def run(server: str, graph: dict) -> dict[str, list[Image.Image]]:
    """The pictures that each output node of the graph writes."""
    body = json.dumps({"prompt": graph}).encode()
    request = urllib.request.Request(f"{server}/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        prompt_id = json.load(answer)["prompt_id"]
    while not (entry := json.load(urllib.request.urlopen(f"{server}/history/{prompt_id}")).get(prompt_id)):
        time.sleep(1)
    if entry["status"]["status_str"] != "success":
        sys.exit(f"The graph failed: {entry['status']['messages'][-1]}")
    pictures = {}
    for node, output in entry["outputs"].items():
        for file in output.get("images", []):
            if not file["filename"].endswith(".mp4"):
                with urllib.request.urlopen(f"{server}/view?{urllib.parse.urlencode(file)}") as answer:
                    pictures.setdefault(node, []).append(Image.open(io.BytesIO(answer.read())))
    return pictures


def strip(clip: Image.Image, masks: list[Image.Image]) -> Image.Image:
    frames = []
    for index in (0, clip.n_frames // 2, clip.n_frames - 1):
        clip.seek(index)
        frames.append(clip.convert("RGB").resize((round(HEIGHT * clip.width / clip.height), HEIGHT), Image.LANCZOS))
    first = np.array(frames[0])
    for mask in masks:
        region = mask.convert("L").resize(frames[0].size).point(lambda level: 255 * (level >= 128))
        first[np.asarray(region.filter(ImageFilter.MaxFilter(5))) != np.asarray(region)] = OUTLINE
    return Image.fromarray(np.concatenate([first, *(np.asarray(frame) for frame in frames[1:])], axis=1))


LOAD = """
async (workflow) => {
  await app.loadGraphData(workflow, true, true);
  const nodes = app.graph._nodes;
  const left = Math.min(...nodes.map((node) => node.pos[0])), top = Math.min(...nodes.map((node) => node.pos[1])) - 30;
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset[0] = 40 - left;
  app.canvas.ds.offset[1] = 40 - top;
  app.canvas.setDirty(true, true);
  const right = Math.max(...nodes.map((node) => node.pos[0] + node.size[0]));
  const bottom = Math.max(...nodes.map((node) => node.pos[1] + node.size[1]));
  const { left: x, top: y } = app.canvas.canvas.getBoundingClientRect();
  return { x, y, width: right - left + 80, height: bottom - top + 80 };
}
"""
# What would lie over the graph.
QUIET = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False, "Comfy.Minimap.Visible": False}
QUIET |= {"Comfy.Workflow.ShowMissingModelsWarning": False, "Comfy.Workflow.ShowMissingNodesWarning": False}
QUIET |= {
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.UseNewMenu": "Disabled",
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}


def screenshot(server: str, path: Path) -> Image.Image:
    """The workflow as the front end shows it, at twice the thumbnails' height."""
    from playwright.sync_api import sync_playwright

    for name, value in QUIET.items():
        body = json.dumps(value).encode()
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{server}/settings/{name}", body, headers)).close()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 3300, "height": 1700})
        page.goto(server)
        page.wait_for_function("window.app?.graph && window.app.canvas?.ds", timeout=60_000)
        page.wait_for_timeout(2500)
        page.keyboard.press("Escape")
        box = page.evaluate(LOAD, json.loads(path.read_text()))
        page.wait_for_timeout(3000)  # the click editor fetches its picture
        picture = Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB")
        browser.close()
    return picture.resize((round(2 * HEIGHT * picture.width / picture.height), 2 * HEIGHT), Image.LANCZOS)


if __name__ == "__main__":
    main()
