"""Zoomed graphs, dense screens, several editors, removed ones, and what goes on while nothing goes on."""

import pytest

ON_ROCKET = (0.5, 0.54)
LINK = [[1, 1, 0, 2, 0, "IMAGE"]]


@pytest.mark.parametrize(("scale", "offset"), [(0.55, (300, 250)), (1.6, (-200, 20)), (1.0, (-200, 60))])
def test_a_click_hits_in_a_zoomed_and_panned_graph(page, kit, scale, offset):
    nodes = [kit.load_image(1, "rocket.jpg", {0: [1]}), kit.click_to_mask(2, 1)]
    page.load(nodes, LINK, scale, offset)
    editor = page.editor(2).wait_for_picture()
    for x, y in (ON_ROCKET, (0.02, 0.03), (0.97, 0.96)):
        editor.click(x, y)
        click = editor.clicks[-1]
        assert abs(click["x"] - x) < 0.006, (click, x)
        assert abs(click["y"] - y) < 0.006, (click, y)
    editor.click(*ON_ROCKET)
    assert len(editor.clicks) == 2, "the point was not hit"


def test_a_dense_screen_gets_dense_pixels(editor):
    editor.use_device_pixels(2)
    try:
        pixels, inner = editor.canvas.evaluate("(canvas) => [canvas.width, canvas.clientWidth]")
        assert pixels == pytest.approx(2 * inner, abs=2)
        with editor.next_masks() as found:
            editor.click(*ON_ROCKET)
        assert found[0].of(1).any()
        (click,) = editor.clicks
        assert (click["x"], click["y"]) == pytest.approx(ON_ROCKET, abs=0.004)
    finally:
        editor.use_device_pixels(1)


def test_two_editors_in_one_graph_keep_to_themselves(page, kit):
    first, second = kit.click_to_mask(2, 1), kit.click_to_mask(3, 2, at=(780, 0))
    page.load([kit.load_image(1, "rocket.jpg", {0: [1, 2]}), first, second], [*LINK, [2, 1, 0, 3, 0, "IMAGE"]], 0.85)
    one, two = page.editor(2).wait_for_picture(), page.editor(3).wait_for_picture()
    with one.next_masks():
        one.click(*ON_ROCKET)
    with two.next_masks() as found:
        two.click(0.13, 0.5)
    assert [len(one.clicks), len(two.clicks)] == [1, 1]
    assert len({request.post_data_json["editor"] for request in page.asked_for_masks()}) == 2
    assert found[0].of(1).any()
    two.key("Control+z")
    assert [len(one.clicks), len(two.clicks)] == [1, 0]
    assert one.find(".followclick-stepper").is_visible()


def watched(page) -> dict:
    return page.run_js(
        """() => ({
          listeners: [...window.watched.listeners.values()],
          frames: window.watched.frames,
          timers: window.watched.timers,
          hooked: String(app.canvas.onDrawForeground ?? '').includes('drawListeners'),
        })"""
    )


def test_a_removed_node_leaves_no_listener_request_or_timer(editor):
    page = editor.on
    assert sorted(watched(page)["listeners"]) == ["change", "status"]  # the screen's density, and the queue
    editor.click(*ON_ROCKET)
    page.page.route("**/followclick/segment", lambda route: None)  # never answered
    with page.page.expect_request("**/followclick/segment"):
        editor.click(0.13, 0.5)
    page.page.wait_for_timeout(100)
    with page.page.expect_event("requestfailed", lambda request: request.url.endswith("/segment")):
        page.run_js(f"() => {{ app.canvas.graph.remove({editor.node_js}); }}")
    page.page.wait_for_timeout(300)
    page.requests.clear()
    after = watched(page)
    assert after["listeners"] == []
    assert not page.page.query_selector(".followclick-editor")
    page.run_js("() => { app.canvas.setDirty(true, true); }")
    page.page.wait_for_timeout(400)
    assert watched(page) == after
    assert not page.asked("/followclick/")


def test_removing_the_node_closes_its_large_editor(editor):
    node_js = editor.node_js
    editor.press("Open large")
    assert editor.on.page.query_selector("dialog.followclick-large")
    editor.on.run_js(f"() => {{ app.canvas.graph.remove({node_js}); }}")
    editor.on.page.wait_for_timeout(300)
    assert not editor.on.page.query_selector("dialog.followclick-large")


def test_nothing_goes_on_while_nothing_goes_on(editor):
    page = editor.on
    with editor.next_masks():
        editor.click(*ON_ROCKET)
    page.page.mouse.move(700, 5)
    page.page.wait_for_timeout(800)
    page.requests.clear()
    before = watched(page)
    page.page.wait_for_timeout(2000)
    assert watched(page) == before
    assert not page.asked("/followclick/")
    assert not page.asked("/view")


def test_the_node_s_height_stays_as_it_is(editor):
    size = f"() => [...{editor.node_js}.size]"
    editor.on.page.wait_for_timeout(300)
    before = editor.on.run_js(size)
    for place in (ON_ROCKET, (0.13, 0.5), (0.8, 0.2)):
        editor.click(*place)
    editor.press("Another object")
    editor.on.page.wait_for_timeout(500)
    assert editor.on.run_js(size) == before


def test_all_controls_have_names(editor):
    for control in editor.root.query_selector_all("button, input, canvas"):
        assert control.get_attribute("aria-label")
