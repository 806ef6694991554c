"""The picture is there before any run, whatever lies between it and the editor."""

import numpy as np
import pytest
from PIL import Image

IMAGE = "IMAGE"
BYPASSED = 4


def painted_like(editor, photo: np.ndarray) -> bool:
    """Whether the canvas shows this picture, compared at a few places; a mask or a click may lie on one of them."""
    (height, width), alike = photo.shape[:2], 0
    for x, y in ((0.06, 0.06), (0.2, 0.2), (0.8, 0.35), (0.94, 0.15)):
        row, column = int(y * height), int(x * width)
        near = photo[max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5].astype(float)
        alike += np.abs(editor.colour_at(x, y, size=(width, height)) - near.mean((0, 1))).max() < 45
    return alike >= 3


@pytest.fixture
def photo(server) -> np.ndarray:
    return np.asarray(Image.open(server.folder / "input" / "rocket.jpg"))


def between(page, kit, middle: dict, mode: int = 0):
    """Load Image → a node → Click to Mask."""
    nodes = [kit.load_image(1, "rocket.jpg", {0: [1]}), {**middle, "mode": mode}, kit.click_to_mask(2, 2, at=(520, 0))]
    page.load(nodes, [[1, 1, 0, 3, 0, IMAGE], [2, 3, 0, 2, 0, IMAGE]])
    return page.editor(2)


def test_load_image_is_shown_as_soon_as_it_is_wired(page, kit, photo):
    page.load([kit.load_image(1, "rocket.jpg", {}), kit.click_to_mask(2, None)], [])
    editor = page.editor(2)
    assert "Connect a picture" in editor.hint
    editor.wire(1, 0, "image")
    editor.wait_for_picture()
    assert painted_like(editor, photo)
    assert not page.asked("/prompt")


def test_a_picture_shows_through_a_reroute(page, kit, photo):
    reroute = kit.node(3, "Reroute", {"": ("*", 1)}, {"": (IMAGE, [2])}, at=(300, 40))
    editor = between(page, kit, reroute).wait_for_picture()
    assert painted_like(editor, photo)


def test_a_picture_shows_through_a_bypassed_node(page, kit, photo):
    invert = kit.node(3, "ImageInvert", {"image": (IMAGE, 1)}, {IMAGE: (IMAGE, [2])}, at=(290, 0))
    editor = between(page, kit, invert, BYPASSED).wait_for_picture()
    assert painted_like(editor, photo)
    assert "before" not in editor.message


def test_a_muted_node_lets_no_picture_through(page, kit):
    invert = kit.node(3, "ImageInvert", {"image": (IMAGE, 1)}, {IMAGE: (IMAGE, [2])}, at=(290, 0))
    editor = between(page, kit, invert, 2)
    editor.wait_until(lambda one: "Queue once" in one.hint)


def test_before_a_node_has_run_its_input_stands_in_and_after_the_run_the_exact_frame_is_there(page, kit, photo):
    invert = kit.node(3, "ImageInvert", {"image": (IMAGE, 1)}, {IMAGE: (IMAGE, [2])}, at=(290, 0))
    editor = between(page, kit, invert).wait_for_picture()
    assert painted_like(editor, photo)
    editor.click(0.5, 0.54)
    assert "before “Invert Image”" in editor.message
    page.run_js(
        """() => {
          const preview = LiteGraph.createNode('MaskPreview');
          preview.pos = [1000, 0];
          app.graph.add(preview);
          [...app.graph.nodes].find((node) => String(node.id) === '2').connect(0, preview, 0);
        }"""
    )
    page.run()
    editor.wait_until(lambda one: "before" not in one.message)
    editor.wait_until(lambda one: painted_like(one, 255 - photo), "the frame that the node received is not shown")
    # Another picture upstream, and the frame of the last run is out of date.
    page.run_js(
        """() => {
          const loader = [...app.graph.nodes].find((node) => node.type === 'LoadImage');
          const [file] = loader.widgets;
          file.value = 'narrow.png';
          file.callback?.('narrow.png');
        }"""
    )
    editor.wait_until(lambda one: "other proportions" in one.message)
    assert painted_like(editor, photo[:, 100:420])
    assert len(editor.clicks) == 1, "the clicks are kept"


def test_another_crop_after_the_run_is_not_shown_as_the_exact_frame(page, kit, photo):
    crop = kit.node(3, "ImageCrop", {"image": (IMAGE, 1)}, {IMAGE: (IMAGE, [2])}, [320, 427, 0, 0], at=(290, 0))
    editor = between(page, kit, crop).wait_for_picture()
    page.run_js(
        """() => {
          const preview = LiteGraph.createNode('MaskPreview');
          preview.pos = [1000, 0];
          app.graph.add(preview);
          [...app.graph.nodes].find((node) => String(node.id) === '2').connect(0, preview, 0);
        }"""
    )
    editor.click(0.5, 0.54)
    page.run()
    editor.wait_until(lambda one: "before" not in one.message)
    set_x = """(x) => {
      const node = [...app.graph.nodes].find((node) => node.type === 'ImageCrop');
      const widget = node.widgets.find(({ name }) => name === 'x');
      widget.value = x;
      widget.callback?.(x);
      app.canvas.setDirty(true, true);
    }"""
    page.run_js(set_x, 200)
    editor.wait_until(lambda one: "before" in one.message, "the old frame still counts as exact")
    page.run_js(set_x, 0)
    editor.wait_until(lambda one: "before" not in one.message)


def test_the_example_photo_is_shown(page, kit, photo):
    example = kit.node(1, "FollowClick_ExamplePhoto", {}, {"image": (IMAGE, [1])}, ["rocket"])
    page.load([example, kit.click_to_mask(2, 1)], [[1, 1, 0, 2, 0, IMAGE]])
    editor = page.editor(2).wait_for_picture()
    assert painted_like(editor, photo)
    with editor.next_masks() as found:
        editor.click(0.5, 0.54)
    assert found[0].request["image"] == {"example": "rocket"}


def test_what_a_preview_beside_has_shown_is_shown(page, kit):
    empty = kit.node(31, "EmptyImage", {}, {IMAGE: (IMAGE, [1, 2])}, [64, 32, 1, 0xFF0000])
    preview = kit.node(32, "PreviewImage", {"images": (IMAGE, 1)}, {}, at=(240, 0))
    links = [[1, 31, 0, 32, 0, IMAGE], [2, 31, 0, 33, 0, IMAGE]]
    page.load([empty, preview, kit.click_to_mask(33, 2, at=(600, 0))], links)
    editor = page.editor(33)
    assert "Queue once" in editor.hint
    graph = page.api_form()
    page.run_js(
        "(graph) => app.api.queuePrompt(0, { output: graph, workflow: {} })", {"31": graph["31"], "32": graph["32"]}
    )
    editor.wait_for_picture()
    assert list(editor.colour_at(0.5, 0.5, size=(64, 32))) == pytest.approx([255, 0, 0], abs=6)


def test_within_a_subgraph_the_picture_outside_is_shown_and_from_within_to_the_outside(page, kit, photo):
    page.load([kit.load_image(1, "rocket.jpg", {0: [1]}), kit.click_to_mask(2, 1)], [[1, 1, 0, 2, 0, IMAGE]])
    page.editor(2).wait_for_picture()
    to_subgraph(page, 2)
    enter_subgraph(page)
    inner = page.editor(inner_id(page))
    inner.wait_for_picture()
    assert painted_like(inner, photo)
    # The other way round: Load Image inside, the editor outside.
    page.load([kit.load_image(1, "rocket.jpg", {0: [1]}), kit.click_to_mask(2, 1)], [[1, 1, 0, 2, 0, IMAGE]])
    page.editor(2).wait_for_picture()
    to_subgraph(page, 1)
    outer = page.editor(2).wait_for_picture()
    assert painted_like(outer, photo)


def to_subgraph(page, node_id: int) -> None:
    page.run_js(
        """(id) => {
          const graph = app.canvas.graph;
          const node = [...graph.nodes].find((node) => String(node.id) === String(id));
          graph.convertToSubgraph(new Set([node]));
        }""",
        node_id,
    )
    page.wait_until(lambda: page.run_js("() => [...app.canvas.graph.nodes].some((node) => node.subgraph)"))
    page.wait_for_frames(3)


def enter_subgraph(page) -> None:
    page.run_js(
        """() => {
          const node = [...app.canvas.graph.nodes].find((node) => node.subgraph);
          app.canvas.openSubgraph(node.subgraph, node);
        }"""
    )
    page.wait_until(lambda: page.run_js("() => app.canvas.graph !== (app.rootGraph ?? app.graph)"))
    page.wait_for_frames(3)


def inner_id(page) -> str:
    return page.run_js(
        "() => String([...app.canvas.graph.nodes].find((node) => node.type === 'FollowClick_ClickToMask').id)"
    )


def test_a_file_that_is_gone_is_said_so(page, kit):
    page.load([kit.load_image(1, "gone.png", {0: [1]}), kit.click_to_mask(2, 1)], [[1, 1, 0, 2, 0, IMAGE]])
    editor = page.editor(2)
    editor.wait_until(lambda one: "cannot be loaded" in one.hint)
