"""The example workflows with small random models in the place of the files that they name, and what they say."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from followclick_core.clip import load_frames

PACK = Path(__file__).parents[2]
WITH_FILES = {
    "sd15_animatediff": "animatediff_v3.safetensors",
    "sd15_pia": "pia.safetensors",
    "pose_controlnet": "animatediff_v3.safetensors",
    "pose_controlnet_folder": "animatediff_v3.safetensors",
}
FILES = (".safetensors", ".ckpt", ".pth", ".pt")


def opened(name: str) -> dict:
    return json.loads((PACK / "workflows" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", WITH_FILES)
def test_every_file_that_a_workflow_wants_can_be_fetched_from_what_it_says(rig, name):
    folders = json.loads(rig.get("/models"))
    nodes = opened(name)["nodes"]
    (note,) = (node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    wanted = 0
    for node in nodes:
        models = {model["name"]: model for model in node["properties"].get("models", [])}
        for value in node.get("widgets_values", []):
            if node["type"] == "MarkdownNote" or not str(value).endswith(FILES):
                continue
            model = models.pop(value)
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(f"/{value}")
            assert model["directory"] in folders
            assert f"[{value}]({model['url']}) → `models/{model['directory']}`" in note
            wanted += 1
        assert models == {}, "an entry that no widget has is never offered"
    assert wanted >= 2


def small(graph: dict, kit, motion_file: str) -> dict:
    """The same graph, short, with what the tests have in the place of downloads."""
    graph = copy.deepcopy(graph)
    (base,) = (number for number, node in graph.items() if node["class_type"] == "CheckpointLoaderSimple")
    graph[base] = {"class_type": "FollowClick_LoadDemoModel", "inputs": {}}
    random_model = {"channels": kit.TINY_CHANNELS, "text_width": 128}
    graph["random"] = {"class_type": "Testing_RandomModel", "inputs": random_model}
    for node in graph.values():
        inputs = node["inputs"]
        inputs |= {key: ["random", 0] for key, value in inputs.items() if value == [base, 0]}
        replaced = {"steps": kit.STEPS, "length": kit.FRAMES, "control_net_name": "openpose_tiny.safetensors"}
        inputs |= {key: value for key, value in replaced.items() if key in inputs}
        if node["class_type"] == "FollowClick_LoadMotionModel":
            inputs["name"] = motion_file
        if node["class_type"] == "OpenposePreprocessor":
            node |= {"class_type": "ImageInvert", "inputs": {"image": inputs["image"]}}
    return graph


@pytest.fixture(scope="module")
def poses(rig, kit):
    """The pose frames as a folder and as a video in the server's input folder."""
    folder = rig.folder / "input" / "poses"
    folder.mkdir()
    graph = kit.Graph()
    images = None
    for index in range(kit.FRAMES):
        shutil.copy(rig.folder / "input" / f"pose{index}.png", folder)
        image = graph.add("LoadImage", image=f"pose{index}.png")
        images = image if images is None else graph.add("ImageBatch", image1=images, image2=image)
    video = graph.add("CreateVideo", images=images, fps=8.0)
    saved = graph.add("SaveVideo", video=video, filename_prefix="driving", format="mp4", codec="h264")
    (path,) = rig.run(graph.nodes).outputs[saved[0]]
    shutil.copy(path, rig.folder / "input" / "driving.mp4")


@pytest.mark.parametrize(("name", "motion_file"), WITH_FILES.items())
def test_a_workflow_runs_with_small_models_in_the_place_of_its_files(rig, kit, graphs, poses, name, motion_file):
    graph = small(graphs[name], kit, motion_file)
    run = rig.run(graph)
    (video,) = (number for number, node in graph.items() if node["class_type"] == "SaveVideo")
    frames = load_frames(run.outputs[video][0])
    assert frames.shape == (kit.FRAMES, 128, 192, 3)
    assert frames.std() > 1


def test_a_clip_that_was_stitched_into_its_photo_is_the_photo_around_it(rig, kit, graphs):
    graph = copy.deepcopy(graphs["photo_crop_and_stitch"])
    for node in graph.values():
        shortened = {"steps": kit.STEPS, "length": kit.FRAMES}
        node["inputs"] |= {key: value for key, value in shortened.items() if key in node["inputs"]}
    (frames_from,) = (n["inputs"]["images"] for n in graph.values() if n["class_type"] == "CreateVideo")
    graph["frames"] = {"class_type": "SaveImage", "inputs": {"images": frames_from, "filename_prefix": "stitched"}}
    (photo_from,) = (number for number, node in graph.items() if node["class_type"] == "FollowClick_ExamplePhoto")
    graph["photo"] = {"class_type": "SaveImage", "inputs": {"images": [photo_from, 0], "filename_prefix": "photo"}}
    run = rig.run(graph)
    photo = np.asarray(Image.open(run.outputs["photo"][0])).astype(int)[:426]
    frames = np.stack([np.asarray(Image.open(path)).astype(int) for path in run.outputs["frames"]])
    same = (np.abs(frames - photo) <= 1).all(axis=(0, 3))
    assert len(frames) == kit.FRAMES and 0.2 < same.mean() < 0.98
    assert same[:, :40].all() and same[:, -40:].all()
    (video,) = (number for number, node in graph.items() if node["class_type"] == "SaveVideo")
    assert load_frames(run.outputs[video][0]).shape[1:3] == (426, 640)


def test_two_objects_get_two_regions_with_their_own_motion(rig, kit, graphs):
    graph = copy.deepcopy(graphs["two_objects"])
    for node in graph.values():
        shortened = {"steps": kit.STEPS, "length": kit.FRAMES}
        node["inputs"] |= {key: value for key, value in shortened.items() if key in node["inputs"]}
    (where,) = (number for number, node in graph.items() if node["class_type"] == "FollowClick_ClickToMask")
    (masks,) = (number for number, node in graph.items() if node["class_type"] == "MaskPreview")
    run = rig.run(graph)
    left, right = (np.asarray(Image.open(path).convert("L")) > 128 for path in run.outputs[masks])
    assert left[:, :192].sum() == left.sum() > 1000 and right[:, 192:].sum() == right.sum() > 1000
    said = json.loads(graph[where]["inputs"]["clicks"])["objects"]
    assert said["1"]["motion_prompt"] != said["2"]["motion_prompt"]
