"""Runs the example workflows on a ComfyUI server that has the pack, and makes their pictures from what comes out.

    python workflows/make_thumbnails.py [http://127.0.0.1:8188]

Each picture shows the clip's first frame with the clicked region outlined, and two later frames.
"""

import io
import json
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
        graph = json.loads(path.read_text())
        # A clip as animated WebP, whatever the workflow saves: Pillow reads its frames.
        frames_from = next(link for node in graph.values() if (link := _frames_input(node)))
        graph["frames"] = {
            "class_type": "SaveAnimatedWEBP",
            "inputs": {"images": frames_from, "filename_prefix": "thumbnail", "fps": 8.0, "lossless": True}
            | {"quality": 100, "method": "default"},
        }
        outputs = run(server, graph)
        mask_node = next(number for number, node in graph.items() if node["class_type"] == "MaskPreview")
        picture = strip(outputs["frames"], outputs[mask_node])
        picture.save(path.parents[1] / f"{path.stem}.jpg", quality=88, optimize=True)
        print(path.parents[1] / f"{path.stem}.jpg")


def _frames_input(node: dict) -> list | None:
    return node["inputs"].get("images") if node["class_type"] in ("CreateVideo", "SaveAnimatedWEBP") else None


def run(server: str, graph: dict) -> dict[str, Image.Image]:
    """The first picture that each output node of the graph writes."""
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
        for file in output.get("images", [])[:1]:
            if not file["filename"].endswith(".mp4"):
                with urllib.request.urlopen(f"{server}/view?{urllib.parse.urlencode(file)}") as answer:
                    pictures[node] = Image.open(io.BytesIO(answer.read()))
    return pictures


def strip(clip: Image.Image, mask: Image.Image) -> Image.Image:
    frames = []
    for index in (0, clip.n_frames // 2, clip.n_frames - 1):
        clip.seek(index)
        frames.append(clip.convert("RGB").resize((round(HEIGHT * clip.width / clip.height), HEIGHT), Image.LANCZOS))
    region = mask.convert("L").resize(frames[0].size).point(lambda level: 255 * (level >= 128))
    edge = np.asarray(region.filter(ImageFilter.MaxFilter(5))) != np.asarray(region)
    first = np.array(frames[0])
    first[edge] = OUTLINE
    return Image.fromarray(np.concatenate([first, *(np.asarray(frame) for frame in frames[1:])], axis=1))


if __name__ == "__main__":
    main()
