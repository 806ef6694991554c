"""What the mouse and the keys do on the picture, in each front end."""

import pytest

ON_ROCKET = (0.5, 0.54)
PIXEL = pytest.approx


def near(click: dict, x: float, y: float) -> bool:
    return abs(click["x"] - x) < 0.004 and abs(click["y"] - y) < 0.004


def test_a_left_click_includes_what_is_under_the_mouse(editor):
    editor.click(*ON_ROCKET)
    (click,) = editor.clicks
    assert near(click, *ON_ROCKET)
    assert (click["label"], click["object"]) == (1, 1)
    assert editor.value["image_size"] == [640, 427]


@pytest.mark.parametrize("how", [{"button": "right"}, {"alt": True}], ids=["right", "alt"])
def test_a_right_click_or_alt_and_a_click_exclude(editor, how):
    editor.click(*ON_ROCKET)
    editor.click(0.2, 0.3, **how)
    assert [click["label"] for click in editor.clicks] == [1, 0]
    assert near(editor.clicks[1], 0.2, 0.3)


def test_a_right_click_opens_no_menu_of_the_host(editor):
    editor.click(0.2, 0.3, button="right")
    editor.on.page.wait_for_timeout(200)
    menus = ".litecontextmenu, .p-contextmenu, [role=menu]:not([class*='menubar'])"
    assert not [menu for menu in editor.on.page.query_selector_all(menus) if menu.is_visible()]


def test_a_click_on_a_point_removes_it(editor):
    editor.click(*ON_ROCKET)
    editor.click(0.2, 0.3)
    editor.click(*ON_ROCKET)
    (click,) = editor.clicks
    assert near(click, 0.2, 0.3)


def test_a_drag_moves_a_point_and_is_one_step_of_the_history(editor):
    editor.click(*ON_ROCKET)
    editor.drag(ON_ROCKET, (0.7, 0.4))
    (click,) = editor.clicks
    assert near(click, 0.7, 0.4)
    editor.key("Control+z")
    assert near(editor.clicks[0], *ON_ROCKET)


def test_escape_puts_back_what_is_being_dragged(editor):
    editor.click(*ON_ROCKET)
    mouse = editor.on.page.mouse
    mouse.move(*editor.place(*ON_ROCKET))
    mouse.down()
    mouse.move(*editor.place(0.8, 0.2), steps=4)
    assert near(editor.clicks[0], 0.8, 0.2)
    editor.key("Escape")
    mouse.up()
    (click,) = editor.clicks
    assert near(click, *ON_ROCKET)


def test_keys_rest_while_a_click_is_dragged(editor):
    editor.click(*ON_ROCKET)
    editor.click(0.2, 0.3)
    mouse = editor.on.page.mouse
    mouse.move(*editor.place(0.2, 0.3))
    mouse.down()
    mouse.move(*editor.place(0.7, 0.2), steps=4)
    editor.key("Delete", "Control+z", "Tab", "Space", "2", "ArrowLeft")
    mouse.move(*editor.place(0.8, 0.2), steps=4)
    mouse.up()
    assert [near(click, *at) for click, at in zip(editor.clicks, (ON_ROCKET, (0.8, 0.2)), strict=True)] == [True, True]
    assert not [message for message in editor.on.messages if "RangeError" in message]
    assert len(editor.on.serialize()["nodes"]) == 2


def test_the_large_picture_does_not_stick_to_the_mouse(editor):
    editor.press("Open large")
    editor.wait_until(lambda one: one.stage.width > 1200)
    editor.on.wait_for_frames()
    mouse, (x, y) = editor.on.page.mouse, editor.place(*ON_ROCKET)
    mouse.move(x, y)
    mouse.down(button="middle")
    mouse.down()
    mouse.move(x + 60, y + 30, steps=3)
    mouse.up(button="middle")
    mouse.up()  # the one pointerup names the left button
    editor.on.wait_for_frames()
    mouse.click(x, y)
    mouse.move(x - 300, y, steps=3)
    mouse.click(x, y)  # removes the click again, if the picture stayed
    assert editor.clicks == []
    editor.key("Escape", "Escape")


def test_a_drag_stays_on_the_picture(editor):
    editor.click(*ON_ROCKET)
    editor.drag(ON_ROCKET, (1.6, 0.5))
    assert editor.clicks[0]["x"] == 1


def test_undo_and_redo_by_keys_leave_the_rest_of_the_graph_alone(editor):
    editor.click(*ON_ROCKET)
    editor.click(0.2, 0.3)
    nodes = len(editor.on.serialize()["nodes"])
    editor.key("Control+z")
    assert len(editor.clicks) == 1
    editor.key("Control+z")
    assert editor.text == "[]"
    editor.key("Control+z")  # nothing is left to undo here, and the host must not begin
    editor.on.page.wait_for_timeout(200)
    assert len(editor.on.serialize()["nodes"]) == nodes
    editor.key("Control+Shift+z")
    editor.key("Control+y")
    assert len(editor.clicks) == 2


def test_delete_removes_the_selected_point_and_never_the_node(editor):
    editor.click(*ON_ROCKET)
    editor.click(0.2, 0.3)
    editor.key("Delete")
    assert len(editor.clicks) == 1
    editor.key("Delete")  # no point is selected any more
    editor.on.page.wait_for_timeout(200)
    assert len(editor.clicks) == 1
    assert len(editor.on.serialize()["nodes"]) == 2


def test_arrow_keys_nudge_and_a_held_key_is_one_step(editor):
    editor.click(*ON_ROCKET)
    x = editor.clicks[0]["x"]
    editor.key("ArrowRight")
    step = editor.clicks[0]["x"] - x
    assert 0 < step < 0.01
    editor.key("Shift+ArrowRight")
    assert editor.clicks[0]["x"] == PIXEL(x + 11 * step, abs=1e-5)
    for _ in range(4):
        editor.on.page.keyboard.down("ArrowDown")
    editor.on.page.keyboard.up("ArrowDown")
    editor.key("Control+z")
    assert editor.clicks[0]["x"] == PIXEL(x + 11 * step, abs=1e-5)
    assert near(editor.clicks[0], editor.clicks[0]["x"], ON_ROCKET[1])


def test_tab_walks_the_points_and_then_leaves(editor):
    for place in (ON_ROCKET, (0.2, 0.3), (0.8, 0.3)):
        editor.click(*place)
    editor.key("Escape", "Tab", "Tab")
    assert "Click 2 of 3" in editor.find(".followclick-spoken").text_content()
    editor.key("Shift+Tab")
    assert "Click 1 of 3" in editor.find(".followclick-spoken").text_content()
    editor.key("Tab", "Tab", "Delete")
    assert [near(click, *place) for click, place in zip(editor.clicks, (ON_ROCKET, (0.2, 0.3)), strict=True)]
    editor.key("Tab", "Tab", "Tab")
    assert editor.on.run_js("() => document.activeElement.tagName") != "CANVAS"


def test_space_turns_a_click_into_its_opposite(editor):
    editor.click(*ON_ROCKET)
    editor.key("Space")
    assert editor.clicks[0]["label"] == 0


def test_the_wheel_zooms_the_graph(editor):
    before = editor.on.run_js("() => app.canvas.ds.scale")
    editor.on.page.mouse.move(*editor.place(*ON_ROCKET))
    editor.on.page.mouse.wheel(0, -240)
    editor.wait_until(lambda one: one.on.run_js("() => app.canvas.ds.scale") > before, "the graph is not zoomed")
    assert editor.text == "[]"


def test_the_middle_button_moves_the_graph(editor):
    mouse, offset = editor.on.page.mouse, "() => [...app.canvas.ds.offset]"
    before = editor.on.run_js(offset)
    x, y = editor.place(*ON_ROCKET)
    mouse.move(x, y)
    mouse.down(button="middle")
    mouse.move(x + 60, y + 30, steps=5)
    mouse.up(button="middle")
    wanted = [PIXEL(before[0] + 60, abs=3), PIXEL(before[1] + 30, abs=3)]
    editor.wait_until(lambda one: one.on.run_js(offset) == wanted, lambda: editor.on.run_js(offset))
    after = editor.on.run_js(offset)
    mouse.move(x + 200, y, steps=3)
    assert editor.on.run_js(offset) == after, "the graph sticks to the mouse"
    assert editor.text == "[]"


def test_buttons_choose_objects_clear_undo_and_redo(editor):
    editor.click(*ON_ROCKET)
    editor.press("Another object")
    editor.click(0.2, 0.3)
    assert [click["object"] for click in editor.clicks] == [1, 2]
    editor.press("Object 1")
    editor.click(0.8, 0.3)
    assert [click["object"] for click in editor.clicks] == [1, 2, 1]
    editor.press("Remove all")
    assert editor.text == "[]"
    editor.press("Undo")
    assert len(editor.clicks) == 3
    editor.press("Undo")
    editor.press("Redo")
    assert len(editor.clicks) == 3


def test_buttons_lie_outside_the_picture(editor):
    stage = editor.stage
    for button in editor.root.query_selector_all("button"):
        if box := button.bounding_box():
            assert box["y"] + box["height"] <= stage.y + 1 or box["y"] >= stage.y + stage.height - 1


def test_the_large_editor_takes_fine_clicks_and_gives_them_back(editor):
    editor.click(*ON_ROCKET)
    editor.press("Open large")
    editor.wait_until(lambda one: one.stage.width > 1200)
    editor.on.wait_for_frames()
    editor.click(0.2, 0.3)
    at = editor.place(0.6, 0.4)
    editor.on.page.mouse.move(*at)
    for _ in range(4):
        editor.on.page.mouse.wheel(0, -200)
    editor.on.page.mouse.down()  # what lies under the mouse stays there while it is zoomed
    editor.on.page.mouse.up()
    assert near(editor.clicks[2], 0.6, 0.4)
    editor.key("Control+z", "Escape", "Escape")
    editor.wait_until(lambda one: one.stage.width < 600)
    editor.on.wait_for_frames()
    assert len(editor.clicks) == 2
    editor.click(0.7, 0.7)
    assert near(editor.clicks[2], 0.7, 0.7)


def test_all_is_done_by_keys_alone(editor):
    editor.root.query_selector('button[aria-label^="Object 1"]').focus()
    editor.key("Escape")
    for _ in range(12):
        if editor.on.run_js("() => document.activeElement.tagName") == "CANVAS":
            break
        editor.key("Tab")
    assert editor.canvas.evaluate("(canvas) => canvas.matches(':focus-visible')")
    assert editor.canvas.evaluate("(canvas) => getComputedStyle(canvas).outlineStyle") == "solid"
    editor.key("Shift+ArrowLeft", "Enter", "Escape", "Shift+ArrowUp", "Alt+Enter")
    assert [click["label"] for click in editor.clicks] == [1, 0]
    assert editor.clicks[1]["x"] == editor.clicks[0]["x"] < 0.5
    assert editor.clicks[1]["y"] < editor.clicks[0]["y"]
    editor.key("2", "Enter", "Shift+ArrowUp", "Enter")
    assert [click["object"] for click in editor.clicks] == [1, 1, 2]
    editor.key("l")
    editor.wait_until(lambda one: one.stage.width > 1200)
    editor.on.wait_for_frames()
    editor.key("Escape", "Escape")
    editor.wait_until(lambda one: one.stage.width < 600)
    editor.on.wait_for_frames()
    assert len(editor.on.serialize()["nodes"]) == 2


def test_pixel_json_is_copied_and_pasted(editor):
    editor.click(*ON_ROCKET)
    editor.key("Control+c")
    text = editor.on.run_js("() => navigator.clipboard.readText()")
    x, y = (int(editor.clicks[0]["x"] * 640), int(editor.clicks[0]["y"] * 427))
    assert text == f'[{{"x":{x},"y":{y}}}]'
    editor.on.run_js('() => navigator.clipboard.writeText(\'[{"x": 64, "y": 42}, {"x": 9999, "y": 2}]\')')
    editor.key("Control+v")
    assert len(editor.clicks) == 2
    assert near(editor.clicks[1], 64.5 / 640, 42.5 / 427)
    assert len(editor.on.serialize()["nodes"]) == 2
    editor.on.run_js("() => navigator.clipboard.writeText('no points')")
    editor.key("Control+v")
    assert "No points" in editor.message
