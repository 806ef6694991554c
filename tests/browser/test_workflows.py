"""The example workflows, opened in each front end: nothing is lost, and no node lies over another."""

import json
from pathlib import Path

import pytest

PACK = Path(__file__).parents[2]
WORKFLOWS = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
OF_OTHER_PACKS = {"OpenposePreprocessor"}
# The dialogs about missing nodes and models would lie over the page; what they are told is tested without a browser.
QUIET = ("Comfy.Workflow.ShowMissingModelsWarning", "Comfy.Workflow.ShowMissingNodesWarning")
BOXES = """() => (app.rootGraph ?? app.graph)._nodes.map(
  ({ id, pos, size }) => ({ id: Number(id), x: pos[0], y: pos[1] - 30, width: size[0], height: size[1] + 30 }),
)"""


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_opens_as_the_graph_that_its_api_form_is(page, server, name):
    for setting in QUIET:
        server.post(f"/settings/{setting}", False)
    page.load_workflow(json.loads((PACK / "workflows" / f"{name}.json").read_text()))
    expected = json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text())
    page.wait_until(lambda: len(page.run_js(BOXES)) == len(expected) + 1)  # and the note
    page.wait_for_frames(5)
    found = page.api_form()
    for number, node in expected.items():
        if node["class_type"] in OF_OTHER_PACKS:
            continue
        assert found[number]["class_type"] == node["class_type"]
        for key, value in node["inputs"].items():
            assert found[number]["inputs"][key] == value, (number, node["class_type"], key)
    boxes = page.run_js(BOXES)
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            assert not overlap(one, other), (one, other)


def overlap(one: dict, other: dict) -> bool:
    apart_x = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
    apart_y = one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]
    return not (apart_x or apart_y)
