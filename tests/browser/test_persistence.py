"""Clicks survive whatever one does with a graph."""

import json

import pytest

VALUE = {
    "image_size": [640, 427],
    "clicks": [
        {"x": 0.5, "y": 0.54, "label": 1, "object": 1},
        {"x": 0.2, "y": 0.3, "label": 0, "object": 1},
        {"x": 0.8, "y": 0.3, "label": 1, "object": 2},
    ],
    "objects": {"1": {"motion_prompt": "launch", "motion_magnitude": 8}},
}
LINK = [[1, 1, 0, 2, 0, "IMAGE"]]


@pytest.fixture
def filled(page, kit):
    page.load([kit.load_image(1, "rocket.jpg", {0: [1]}), kit.click_to_mask(2, 1, VALUE)], LINK)
    return page.editor(2).wait_for_picture()


def values(page) -> list[dict]:
    """The values of all editors in the graph that is shown."""
    return [
        json.loads(node["widgets_values"][0])
        for node in page.run_js("() => JSON.parse(JSON.stringify(app.canvas.graph.serialize().nodes))")
        if node["type"] == "FollowClick_ClickToMask"
    ]


def wait_for_counts(page, *counts: int) -> None:
    """Until the editors in the graph have so many clicks."""
    wanted = sorted(counts)
    page.wait_until(lambda: sorted(len(value["clicks"]) for value in values(page)) == wanted, lambda: values(page))


def test_a_saved_graph_is_the_same_after_the_page_was_loaded_again(filled):
    filled.click(0.3, 0.7)
    saved, text = filled.on.serialize(), filled.text
    filled.on.reload()
    filled.on.load_workflow(saved)
    again = filled.on.editor(2).wait_for_picture()
    assert again.text == text
    assert len(again.clicks) == 4


def test_the_api_form_has_the_clicks_as_one_text(filled):
    filled.click(0.3, 0.7)
    inputs = filled.on.api_form()["2"]["inputs"]
    assert inputs["clicks"] == filled.text
    assert json.loads(inputs["clicks"])["objects"] == VALUE["objects"]
    assert set(inputs) == {"image", "clicks", "grow", "feather"}


def test_a_workflow_of_before_the_editor_loads(page, kit):
    old = '[{"x": 0.5, "y": 0.4, "label": 1}]'
    page.load([kit.load_image(1, "rocket.jpg", {0: [1]}), kit.click_to_mask(2, 1, old)], LINK)
    editor = page.editor(2).wait_for_picture()
    assert editor.text == old
    editor.click(0.2, 0.2)
    assert (editor.clicks[0]["x"], editor.clicks[0]["y"]) == (0.5, 0.4)


def test_a_copied_node_has_clicks_of_its_own(filled):
    page = filled.on
    page.run_js(
        f"""() => {{
          app.canvas.selectItems?.([{filled.node_js}]) ?? app.canvas.selectNode({filled.node_js});
          app.canvas.copyToClipboard();
          app.canvas.pasteFromClipboard();
        }}"""
    )
    page.wait_until(lambda: values(page) == [VALUE, VALUE], lambda: values(page))
    filled.click(0.3, 0.7)
    wait_for_counts(page, 3, 4)


def test_the_graph_s_undo_and_redo_take_a_click_along(filled):
    page = filled.on
    page.page.wait_for_timeout(300)
    filled.click(0.3, 0.7)
    page.page.wait_for_timeout(300)
    page.page.mouse.click(1200, 800)  # the empty graph has the keyboard now
    page.page.wait_for_timeout(300)
    page.page.keyboard.press("Control+z")
    wait_for_counts(page, 3)
    page.page.wait_for_timeout(300)  # the host is still loading the graph that it went back to
    page.page.keyboard.press("Control+y")
    wait_for_counts(page, 4)
    page.editor(2).wait_for_picture()


def test_converting_to_a_subgraph_and_back_keeps_the_clicks(filled):
    page = filled.on
    page.run_js(f"() => {{ app.canvas.graph.convertToSubgraph(new Set([{filled.node_js}])); }}")
    page.wait_until(lambda: page.serialize().get("definitions", {}).get("subgraphs"))
    (definition,) = page.serialize()["definitions"]["subgraphs"]
    (inner,) = [node for node in definition["nodes"] if node["type"] == "FollowClick_ClickToMask"]
    assert json.loads(inner["widgets_values"][0]) == VALUE
    page.run_js(
        """() => {
          const node = [...app.canvas.graph.nodes].find((node) => node.subgraph);
          app.canvas.graph.unpackSubgraph(node);
        }"""
    )
    page.wait_until(lambda: values(page) == [VALUE], lambda: values(page))


def test_the_clicks_can_go_on_within_a_subgraph(filled):
    page = filled.on
    page.run_js(
        f"""() => {{
          const {{ node }} = app.canvas.graph.convertToSubgraph(new Set([{filled.node_js}]));
          app.canvas.openSubgraph(node.subgraph, node);
        }}"""
    )
    page.wait_until(lambda: len(values(page)) == 1, "the subgraph does not open")
    page.page.wait_for_timeout(500)  # the host looks at the whole subgraph first
    page.look(1, (80, 80))
    inner_id = page.run_js(
        "() => String([...app.canvas.graph.nodes].find((node) => node.type === 'FollowClick_ClickToMask').id)"
    )
    page.run_js(
        "(id) => { [...app.canvas.graph.nodes].find((node) => String(node.id) === id).pos = [340, 0]; }", inner_id
    )
    page.page.wait_for_timeout(300)
    inner = page.editor(inner_id).wait_for_picture()
    inner.click(0.3, 0.7)
    inner.wait_until(lambda one: len(one.clicks) == 4)
    (prompt,) = [node for node in page.api_form().values() if node["class_type"] == "FollowClick_ClickToMask"]
    assert prompt["inputs"]["clicks"] == inner.text


def test_another_tab_and_back_keeps_clicks_and_picture(filled):
    page = filled.on
    filled.click(0.3, 0.7)
    text = filled.text
    command = "async (name) => { await app.extensionManager.command.execute(name); }"
    page.run_js(command, "Comfy.NewBlankWorkflow")
    page.wait_until(lambda: values(page) == [], lambda: values(page))
    page.run_js(command, "Workspace.PreviousOpenedWorkflow")
    page.wait_until(lambda: len(values(page)) == 1, lambda: values(page))
    again = page.editor(2).wait_for_picture()
    assert again.text == text


def test_an_image_of_other_proportions_warns_and_keeps_the_clicks(filled):
    page = filled.on
    page.run_js(
        """() => {
          const loader = [...app.graph.nodes].find((node) => node.type === 'LoadImage');
          const [file] = loader.widgets;
          file.value = 'narrow.png';
          file.callback?.('narrow.png');
        }"""
    )
    filled.wait_until(lambda editor: "other proportions" in editor.message)
    assert filled.find(".followclick-message").get_attribute("data-kind") == "warning"
    assert filled.value == VALUE
    filled.click(0.5, 0.9, size=(320, 427))
    assert len(filled.clicks) == 4
    assert filled.value["image_size"] == [320, 427]
    assert "other proportions" not in filled.message


def test_clicks_on_animate_region_are_kept_too(page, kit):
    simple = kit.node(2, "FollowClick_AnimateRegion", {"image": ("IMAGE", 1)}, {}, at=(330, 0))
    simple |= {"size": [420, 640], "widgets_values": ["[]", "launch", 8, 4, 1, 7.5, 0, "fixed"]}
    page.load([kit.load_image(1, "rocket.jpg", {0: [1]}), simple], LINK)
    editor = page.editor(2).wait_for_picture()
    assert editor.find(".followclick-motion") is None, "the node has a prompt and a magnitude of its own"
    with editor.next_masks() as found:
        editor.click(0.5, 0.54)
    assert found[0].of(1).any()
    inputs = page.api_form()["2"]["inputs"]
    assert inputs["clicks"] == editor.text
    assert (inputs["motion_prompt"], inputs["motion_magnitude"], inputs["steps"]) == ("launch", 8, 1)
