"""The motion prompt and the magnitude beside the picture."""

import numpy as np
import pytest

ON_ROCKET = (0.5, 0.54)


def motion(editor, number: int = 1) -> dict:
    return editor.value.get("objects", {}).get(str(number), {})


def test_each_object_has_a_prompt_and_a_magnitude_of_its_own(editor):
    editor.click(*ON_ROCKET)
    editor.find(".followclick-prompt").fill("launch")
    editor.find(".followclick-slider").fill("12.5")
    editor.press("Another object")
    assert editor.find(".followclick-prompt").input_value() == ""
    editor.click(0.13, 0.5)
    editor.find(".followclick-prompt").fill("shake")
    editor.press("Object 1")
    assert editor.find(".followclick-prompt").input_value() == "launch"
    assert motion(editor, 1) == {"motion_prompt": "launch", "motion_magnitude": 12.5}
    assert motion(editor, 2)["motion_prompt"] == "shake"


def test_the_verbs_of_the_loaded_model_come_first(editor):
    editor.find(".followclick-prompt").click()
    editor.wait_until(lambda one: one.root.query_selector("option"))
    offered = editor.find("datalist").evaluate("(list) => [...list.options].map((option) => option.value)")
    verbs = editor.on.run_js("async () => (await (await fetch('/followclick/verbs')).json()).verbs")
    assert verbs
    assert offered[: len(verbs)] == verbs
    assert len(offered) == len(set(offered))


def test_typing_is_one_step_of_the_history_and_the_host_s_keys_rest(editor):
    editor.click(*ON_ROCKET)
    editor.find(".followclick-prompt").click()
    editor.on.page.keyboard.type("run w q r")
    editor.key("Delete")
    assert len(editor.on.serialize()["nodes"]) == 2
    editor.canvas.focus()
    assert motion(editor)["motion_prompt"] == "run w q r"
    editor.key("Control+z")
    assert motion(editor) == {}
    assert len(editor.clicks) == 1


def test_what_an_object_does_not_say_is_not_stored_and_asks_for_no_mask(editor):
    with editor.next_masks():
        editor.click(*ON_ROCKET)
    editor.on.requests.clear()
    editor.find(".followclick-prompt").fill("launch")
    assert motion(editor) == {"motion_prompt": "launch"}, "the magnitude of Motion Region counts"
    editor.canvas.focus()
    editor.press("Another object")
    editor.find(".followclick-slider").fill("3")
    assert motion(editor, 2) == {"motion_magnitude": 3}
    editor.canvas.focus()
    editor.on.page.wait_for_timeout(300)
    assert not editor.on.asked_for_masks()


@pytest.mark.parametrize(("verb", "direction"), [("move right", (1, 0)), ("launch", (0, -1)), ("fall", (0, 1))])
def test_the_arrow_is_as_long_as_the_way_that_the_object_goes(page, kit, verb, direction):
    """16 frames of 8 pixels per frame at 512 pixels of width are a quarter of the picture's width."""
    value = {"image_size": [640, 427], "clicks": [], "objects": {"1": {"motion_prompt": verb, "motion_magnitude": 8}}}
    page.load([kit.load_image(1, "rocket.jpg", {0: [1]}), kit.click_to_mask(2, 1, value)], [[1, 1, 0, 2, 0, "IMAGE"]])
    editor = page.editor(2).wait_for_picture()
    page.page.route("**/followclick/segment", lambda route: None)  # without a mask it starts at the click
    editor.click(*ON_ROCKET)
    reach = 8 * 16 / 512
    on = [tuple(np.add(ON_ROCKET, np.multiply(direction, share * reach) * (1, 640 / 427))) for share in (0.3, 0.6, 0.9)]
    beyond = tuple(np.add(ON_ROCKET, np.multiply(direction, 1.1 * reach) * (1, 640 / 427)))
    blue = np.array([0x3D, 0xB8, 0xFF])
    for place in on:
        editor.wait_until(lambda one, at=place: np.abs(one.colour_at(*at) - blue).max() < 30, f"no arrow at {place}")
    assert np.abs(editor.colour_at(*beyond) - blue).max() > 60


def test_the_slider_names_its_unit(editor):
    slider = editor.find(".followclick-slider")
    assert slider.get_attribute("aria-valuetext") == "6 pixels per frame, at 512 pixels of width"
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("0", "32")
