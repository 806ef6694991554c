"""The example workflows, run by a real ComfyUI server as a user's browser would have it."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from followclick_core.clip import load_frames
from followclick_core.flow import measure_motion
from followclick_core.images import load_mask

PACK = Path(__file__).parents[2]
TOO_STRONG = '{"image_size": [4, 3], "clicks": [{"x": 0.5, "y": 0.5}], "objects": {"1": {"motion_magnitude": 1000}}}'
WORKFLOWS = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))


def node_of(graph: dict, kind: str) -> str:
    """The id of the only node of that kind."""
    (found,) = (number for number, node in graph.items() if node["class_type"] == kind)
    return found


def outputs_of(run, graph: dict, kind: str) -> list[Path]:
    return run.outputs[node_of(graph, kind)]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def plain_picture() -> dict:
    """Text to image on the MODEL of Load Demo Model, with stock nodes; the latent is saved with all its bits."""
    return {
        "1": {"class_type": "FollowClick_LoadDemoModel", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "an eagle, photo of a meadow"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 2}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": 1,
                "steps": 4,
                "cfg": 5.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "SaveLatent", "inputs": {"samples": ["5", 0], "filename_prefix": "plain"}},
    }


def latent_of(server, run) -> np.ndarray:
    return safetensors.numpy.load((server.folder / "output" / run.outputs["6"][0].name).read_bytes())["latent_tensor"]


def in_browser_form_as_api(workflow: dict, node_infos: dict) -> dict:
    """What the front end would send for a saved workflow: links by slot, widget values by position."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    api = {}
    for node in workflow["nodes"]:
        if node["type"] not in node_infos:  # notes live in the front end only
            continue
        values = iter(node.get("widgets_values", []))
        inputs = {}
        for slot in node["inputs"]:
            if "widget" in slot:
                inputs[slot["name"]] = next(values)
                if _option(node_infos[node["type"]], slot["name"], "control_after_generate"):
                    next(values)
            if slot["link"] is not None:
                inputs[slot["name"]] = links[slot["link"]]
        api[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return api


def _option(info: dict, name: str, option: str) -> object:
    declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}.get(name, [None, {}])
    return name == "seed" or (declared[1] if len(declared) > 1 else {}).get(option)


def test_every_workflow_exists_in_both_forms():
    assert set(WORKFLOWS) == {path.stem for path in (PACK / "workflows" / "api").glob("*.json")}
    assert {"animate_region_simple", "click_to_animate", "two_objects", "photo_crop_and_stitch"} < set(WORKFLOWS)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_and_its_api_form_are_the_same_graph(server, graphs, name):
    workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text())
    assert workflow["version"] == 0.4
    infos = json.loads(server.get("/object_info"))
    found = in_browser_form_as_api(workflow, infos)
    expected = {number: node for number, node in graphs[name].items() if node["class_type"] in infos}
    others = {node["class_type"] for node in graphs[name].values()} - infos.keys()
    assert others <= {"OpenposePreprocessor"}  # of another pack, which the graph's note names
    assert found.keys() == expected.keys()
    for number, node in expected.items():
        assert found[number]["class_type"] == node["class_type"]
        for key, value in node["inputs"].items():
            assert found[number]["inputs"][key] == value, (number, key)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_template_browser_shows_the_workflow_with_a_picture(server, name):
    listed = json.loads(server.get("/workflow_templates"))
    assert name in listed["followclick-under-test"]
    place = f"/api/workflow_templates/followclick-under-test/{name}"
    assert json.loads(server.get(f"{place}.json"))["version"] == 0.4
    assert server.get(f"{place}.jpg")[:3] == b"\xff\xd8\xff"


def test_the_help_panel_finds_a_page_for_every_node(server):
    infos = json.loads(server.get("/object_info"))
    own = [name for name in infos if name.startswith("FollowClick_")]
    assert own
    for name in own:
        page = server.get(f"/extensions/followclick-under-test/docs/{name}.md").decode()
        assert page.startswith(f"# {infos[name]['display_name']}")


def check_clip(frames: np.ndarray, mask: np.ndarray) -> None:
    """16 frames in which the clicked object moves, and much more than the rest; the model card has the figures."""
    assert len(frames) == 16
    height, width = frames.shape[1:3]
    small = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    motion = measure_motion(frames, small)
    assert motion.inside > 1.0
    assert motion.inside > 3 * motion.outside


def test_click_to_animate_makes_a_video_in_which_the_clicked_object_moves(server, graphs):
    graph = graphs["click_to_animate"]
    run = server.run(graph)
    (video,), (mask,) = outputs_of(run, graph, "SaveVideo"), outputs_of(run, graph, "MaskPreview")
    check_clip(load_frames(video), load_mask(mask))


def test_animate_region_simple_makes_a_clip_in_which_the_clicked_object_moves(server, graphs):
    graph = graphs["animate_region_simple"]
    run = server.run(graph)
    (clip,), (mask,) = outputs_of(run, graph, "SaveAnimatedWEBP"), outputs_of(run, graph, "MaskPreview")
    check_clip(load_frames(clip), load_mask(mask))


def test_plain_pictures_before_and_after_a_clip_are_bit_identical(server, graphs):
    before = server.run(plain_picture())
    clip = copy.deepcopy(graphs["click_to_animate"])
    # The same loader in the same place: the host keeps its MODEL from run to run.
    loader = node_of(clip, "FollowClick_LoadDemoModel")
    clip[node_of(clip, "KSampler")]["inputs"] |= {"steps": 2, "seed": 5}
    server.run(clip)
    after = server.run(plain_picture() | {"1": clip[loader]})
    assert "5" not in after.cached, "the picture was not sampled again, so nothing was compared"
    assert np.array_equal(latent_of(server, before), latent_of(server, after))


def test_a_cancelled_clip_leaves_the_model_as_it_was(server, graphs):
    before = latent_of(server, server.run(plain_picture()))
    clip = copy.deepcopy(graphs["click_to_animate"])
    clip[node_of(clip, "KSampler")]["inputs"] |= {"steps": 1000, "seed": 6}
    prompt_id = server.queue(clip)
    wait_for(lambda: "/1000 [" in (server.folder / "log.txt").read_text())  # the sampler's progress bar
    server.post("/interrupt", {})
    with pytest.raises(RuntimeError, match="interrupted"):
        server.wait(prompt_id)
    assert np.array_equal(before, latent_of(server, server.run(plain_picture())))


@pytest.mark.parametrize(
    ("kind", "inputs", "text"),
    [
        ("FollowClick_ClickToMask", {"clicks": "[]"}, "There is no click; click on the object that should move."),
        ("FollowClick_ClickToMask", {"clicks": '[{"x": 2, "y": 0, "label": 1}]'}, "outside the image"),
        ("FollowClick_ClickToMask", {"clicks": TOO_STRONG}, "The motion magnitude is 1000"),
    ],
)
def test_the_node_shows_what_is_wrong_in_the_same_words(server, graphs, kind, inputs, text):
    graph = copy.deepcopy(graphs["click_to_animate"])
    graph[node_of(graph, kind)]["inputs"] |= inputs
    with pytest.raises(RuntimeError, match=text):
        server.run(graph)
