"""The mask that is painted while one clicks is the mask of the run, pixel for pixel."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

ON_ROCKET = (0.5, 0.54)
ON_TOWER = (0.13, 0.5)


def run_masks(page, node_id: int = 2) -> np.ndarray:
    """The masks that the graph's Click to Mask makes when it runs, n h w, through the API form of the page."""
    graph = copy.deepcopy(page.api_form())
    graph["mask"] = {"class_type": "MaskToImage", "inputs": {"mask": [str(node_id), 0]}}
    graph["save"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["mask", 0], "filename_prefix": "browser-test-mask"},
    }
    files = page.server.run(graph).outputs["save"]
    return np.stack([np.asarray(Image.open(file).convert("L")) > 127 for file in files])


def test_the_mask_appears_without_queueing_and_is_that_of_the_run(editor):
    with editor.next_masks() as found:
        editor.click(*ON_ROCKET)
    (masks,) = found
    assert masks.bits.shape == (427, 640)
    assert 0.002 < masks.of(1).mean() < 0.6
    assert not editor.on.asked("/prompt")
    (run,) = run_masks(editor.on)
    assert np.array_equal(masks.of(1), run)


def test_each_object_has_its_mask_and_the_run_has_the_same(editor):
    editor.click(*ON_ROCKET)
    editor.press("Another object")
    with editor.next_masks() as found:
        editor.click(*ON_TOWER)
    (masks,) = found
    run = run_masks(editor.on)
    assert len(run) == 2
    for number, mask in enumerate(run, start=1):
        assert np.array_equal(masks.of(number), mask)


def test_part_whole_and_more_are_stepped_through_and_the_choice_is_kept_for_the_run(editor):
    with editor.next_masks() as found:
        editor.click(*ON_ROCKET)
    (first,) = found
    assert first.info[0]["candidates"] == 3
    with editor.next_masks() as found:
        editor.press("Larger mask")
    (second,) = found
    assert second.info[0]["candidate"] != first.info[0]["candidate"]
    assert editor.clicks[0]["candidate"] == second.info[0]["candidate"]
    assert editor.find(".followclick-candidate").text_content() in ("part", "whole", "more")
    (run,) = run_masks(editor.on)
    assert np.array_equal(second.of(1), run)
    sizes = {second.of(1).sum()}
    for _ in range(2):
        with editor.next_masks() as found:
            editor.key("c")
        sizes.add(found[0].of(1).sum())
    assert len(sizes) == 3
    assert editor.clicks[0]["candidate"] == first.info[0]["candidate"], "the third step leads back to the first"


def test_what_is_painted_is_the_mask_in_the_object_s_colour(page, kit):
    without_arrow = {"image_size": [640, 427], "clicks": [], "objects": {"1": {"motion_magnitude": 0}}}
    nodes = [kit.load_image(1, "rocket.jpg", {0: [1]}), kit.click_to_mask(2, 1, without_arrow)]
    page.load(nodes, [[1, 1, 0, 2, 0, "IMAGE"]])
    editor = page.editor(2).wait_for_picture()
    places = [(x / 24, y / 24) for x in range(1, 24) for y in range(1, 24)]
    before = editor.colours_at(places)
    with editor.next_masks() as found:
        editor.click(*ON_ROCKET)
    after = editor.colours_at(places)
    mask, inside, told = found[0].of(1), 0, 0
    for (x, y), old, new in zip(places, before, after, strict=True):
        column, row = int(x * 640), int(y * 427)
        around = mask[max(row - 5, 0) : row + 6, max(column - 5, 0) : column + 6]
        if around.any() != around.all() or np.hypot(x - ON_ROCKET[0], (y - ON_ROCKET[1]) * 0.67) < 0.04:
            continue  # on the line around it, or under the click
        assert (np.abs(new - old).max() > 12) == around.all(), (x, y)
        told, inside = told + 1, inside + bool(around.all())
    assert told > 200
    assert inside > 2


def test_an_excluded_part_leaves_the_mask(editor):
    with editor.next_masks() as found:
        editor.click(*ON_ROCKET)
    rows, columns = np.nonzero(found[0].of(1))
    x, y = (columns[0] + 0.5) / 640, (rows[0] + 0.5) / 427
    with editor.next_masks() as found:
        editor.click(x, y, button="right")
    assert found[0].info[0]["candidates"] == 1
    (run,) = run_masks(editor.on)
    assert np.array_equal(found[0].of(1), run)


# Holds each request for a while, so that more than one could be in flight; an aborted one no longer is.
COUNT_IN_FLIGHT = """
() => {
  const send = app.api.fetchApi;
  let [now, most] = [0, 0];
  window.stopCounting = () => {
    app.api.fetchApi = send;
    return most;
  };
  app.api.fetchApi = async function (path, options) {
    if (!path.startsWith('/followclick/segment')) return send.call(this, path, options);
    most = Math.max(most, ++now);
    let left = () => {
      now--;
      left = () => {};
    };
    options.signal?.addEventListener('abort', () => left());
    try {
      const answer = await send.call(this, path, options);
      await new Promise((done) => setTimeout(done, 150));
      return answer;
    } finally {
      left();
    }
  };
}
"""


def test_dragging_asks_for_one_mask_at_a_time_and_ends_with_the_last(editor):
    editor.click(*ON_ROCKET)
    editor.on.page.wait_for_timeout(400)
    editor.on.requests.clear()
    editor.on.run_js(COUNT_IN_FLIGHT)
    with editor.next_masks():
        editor.drag(ON_ROCKET, (0.3, 0.7), steps=40)
    editor.wait_until(lambda one: not one.find(".followclick-working"))
    editor.on.page.wait_for_timeout(600)
    asked = [request.post_data_json for request in editor.on.asked_for_masks()]
    assert 1 < len(asked) < 40
    assert editor.on.run_js("() => window.stopCounting()") == 1
    last = asked[-1]["clicks"]["clicks"][0]
    assert last["x"] == editor.clicks[0]["x"]
    assert last["y"] == editor.clicks[0]["y"]


def test_a_mask_drawn_in_the_mask_editor_is_refined_by_clicks(page, kit):
    nodes = [kit.load_image(1, "drawn.png", {0: [1], 1: [2]}), kit.click_to_mask(2, 1)]
    page.load(nodes, [[1, 1, 0, 2, 0, "IMAGE"]])
    editor = page.editor(2).wait_for_picture()
    with editor.next_masks() as found:
        editor.wire(1, 1, "drawn_mask")
    assert found[0].request["drawn_mask"]["filename"] == "drawn.png"
    assert found[0].of(1).sum() == 80 * 100
    with editor.next_masks() as found:
        editor.click(*ON_ROCKET)
    (masks,) = found
    assert masks.of(1)[250:330, 40:140].all(), "what was drawn is still selected"
    assert masks.of(1)[int(427 * ON_ROCKET[1]), 320]
    (run,) = run_masks(page)
    assert np.array_equal(masks.of(1), run)


def test_the_hole_of_a_drawn_mask_does_not_show_in_the_picture(page, kit):
    page.load([kit.load_image(1, "drawn.png", {0: [1]}), kit.click_to_mask(2, 1)], [[1, 1, 0, 2, 0, "IMAGE"]])
    editor = page.editor(2).wait_for_picture()
    photo = np.asarray(Image.open(page.server.folder / "input" / "rocket.jpg")).astype(float)
    assert np.abs(editor.colour_at(90 / 640, 290 / 427) - photo[286:294, 86:94].mean((0, 1))).max() < 40


def test_growing_the_mask_shows_at_once_and_in_the_run(editor):
    with editor.next_masks() as found:
        editor.click(*ON_ROCKET)
    before = found[0].of(1).sum()
    with editor.next_masks() as found:
        editor.on.run_js(
            f"""() => {{
              const node = {editor.node_js};
              const grow = node.widgets.find(({{ name }}) => name === 'grow');
              grow.value = 8;
              grow.callback?.(8);
              app.canvas.setDirty(true, true);
            }}"""
        )
    assert found[0].request["grow"] == 8
    assert found[0].of(1).sum() > before
    (run,) = run_masks(editor.on)
    assert np.array_equal(found[0].of(1), run)


def test_an_object_with_nothing_but_excluding_clicks_is_pointed_out(editor):
    editor.click(*ON_ROCKET, button="right")
    editor.wait_until(lambda one: "only excluding clicks" in one.message)
    assert not editor.on.asked_for_masks()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"status": 500, "json": {"error": "The segmenter fell over."}}, "The segmenter fell over."),
        (None, "The server does not answer"),
    ],
    ids=["refused", "gone"],
)
def test_what_goes_wrong_is_said_in_the_node_and_the_clicks_stay(editor, answer, text):
    page = editor.on
    page.page.route("**/followclick/segment", lambda route: route.fulfill(**answer) if answer else route.abort())
    editor.click(*ON_ROCKET)
    editor.wait_until(lambda one: text in one.message)
    assert len(editor.clicks) == 1
    assert editor.find(".followclick-message").get_attribute("data-kind") == "fault"
    page.page.unroute_all()
    with editor.next_masks():
        editor.click(*ON_TOWER)
    assert text not in editor.message
    # The browser itself notes a failed request; that is no noise of ours.
    page.messages[:] = [message for message in page.messages if "Failed to load resource" not in message]


def test_while_the_device_is_busy_the_mask_follows_when_the_queue_is_empty(editor):
    page = editor.on
    page.run_js(
        "() => { app.api.dispatchEvent(new CustomEvent('status', { detail: { exec_info: { queue_remaining: 1 } } })); }"
    )
    page.page.route("**/followclick/segment", lambda route: route.fulfill(**BUSY))
    editor.click(*ON_ROCKET)
    editor.wait_until(lambda one: "when the queue is empty" in one.message)
    page.page.unroute_all()
    page.requests.clear()
    page.page.wait_for_timeout(1500)
    assert not page.asked_for_masks(), "nothing may poll"
    with editor.next_masks() as found:
        page.server.run({"1": {"class_type": "EmptyImage", "inputs": SIZE}, "2": PREVIEW})
    assert found[0].of(1).any()
    page.messages[:] = [message for message in page.messages if "Failed to load resource" not in message]


def test_a_busy_server_is_asked_again_while_nothing_runs(editor):
    page, answers = editor.on, [BUSY, BUSY]
    page.page.route(
        "**/followclick/segment", lambda route: route.fulfill(**answers.pop()) if answers else route.continue_()
    )
    page.requests.clear()
    with editor.next_masks() as found:
        editor.click(*ON_ROCKET)
    assert found[0].of(1).any()
    assert not answers
    assert "when the queue is empty" not in editor.message
    page.messages[:] = [message for message in page.messages if "Failed to load resource" not in message]


def test_a_wired_mask_that_is_known_only_in_the_run_is_pointed_out(page, kit):
    solid = kit.node(3, "SolidMask", {}, {"MASK": ("MASK", [2])}, [1.0, 640, 427], at=(0, 400))
    page.load([kit.load_image(1, "rocket.jpg", {0: [1]}), solid, kit.click_to_mask(2, 1)], [[1, 1, 0, 2, 0, "IMAGE"]])
    editor = page.editor(2).wait_for_picture()
    editor.wire(3, 0, "drawn_mask")
    editor.wait_until(lambda one: "wired mask joins" in one.message)


BUSY = {"status": 503, "json": {"error": "busy"}, "headers": {"Retry-After": "1"}}
SIZE = {"width": 8, "height": 8, "batch_size": 1, "color": 0}
PREVIEW = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}


def test_the_route_is_asked_as_json_with_a_name_for_the_editor(editor):
    with editor.next_masks() as found:
        editor.click(*ON_ROCKET)
    (request,) = editor.on.asked_for_masks()
    assert request.headers["content-type"] == "application/json"
    body = found[0].request
    assert body["image"] == {"filename": "rocket.jpg", "subfolder": "", "type": "input"}
    assert body["segmenter"] == "demo"
    assert len(body["editor"]) == 36
    assert json.loads(editor.text)["clicks"] == body["clicks"]["clicks"]
