"""The texts that the editor reads and writes are those that the nodes read and write."""

import json

import pytest

from followclick_core.segment import parse_clicks

SIZE = (640, 427)
VALUES = "/extensions/followclick-under-test/editor/values.js"
SAME = [
    "[]",
    '[{"x": 0.5, "y": 0.25, "label": 1}]',
    '[{"x": 0.5, "y": 0.25, "label": 1, "object": 2}, {"x": 0, "y": 1, "label": 0, "object": 2}]',
    '[{"x": 320, "y": 200}, {"x": 0, "y": 426}]',
    '{"image_size": [640, 427], "clicks": [{"x": 0.1, "y": 0.9, "label": 1, "object": 1, "candidate": 2}]}',
    '{"image_size": [64, 64], "clicks": [{"x": 0.1, "y": 0.9}]}',
]
REFUSED = [
    "no JSON",
    '{"clicks": 3, "image_size": [1, 1]}',
    '[{"x": 2, "y": 0, "label": 1}]',
    '[{"x": 0.5, "y": 0.5, "label": 3}]',
    '[{"x": 0.5, "y": 0.5, "label": 1, "object": 0}]',
    '[{"x": 0.5, "y": 0.5, "label": 1}, {"x": 3, "y": 4}]',
]
READ = """
async ([module, text, size]) => {
  const { parseValue, normalised } = await import(module);
  const value = parseValue(text);
  return value.inPixels ? normalised(value.clicks, size) : value.clicks;
}
"""


def test_browser_and_nodes_read_the_same_clicks(page):
    for text in SAME:
        check_same(page, text)


def check_same(page, text: str) -> None:
    found = page.run_js(READ, [VALUES, text, SIZE])
    try:
        wanted = parse_clicks(text, SIZE)
    except ValueError:
        wanted = []  # an empty list is an error only when the graph runs
    assert len(found) == len(wanted)
    for click, other in zip(found, wanted, strict=True):
        assert (click["x"], click["y"]) == (other.x, other.y)
        assert (click["label"], click["object"], click.get("candidate")) == (other.label, other.object, other.candidate)


def test_browser_and_nodes_refuse_the_same_texts(page):
    for text in REFUSED:
        with pytest.raises(ValueError):
            parse_clicks(text, SIZE)
        with pytest.raises(Exception, match="Error"):
            page.run_js(READ, [VALUES, text, SIZE])


def test_a_text_that_cannot_be_read_is_said_so_and_kept(page, kit):
    broken = '[{"x": 5, "y": 0, "label": 1}]'
    page.load([kit.load_image(1, "rocket.jpg", {0: [1]}), kit.click_to_mask(2, 1, broken)], [[1, 1, 0, 2, 0, "IMAGE"]])
    editor = page.editor(2).wait_for_picture()
    assert "cannot be read" in editor.message
    assert editor.text == broken
    editor.click(0.5, 0.5)
    assert len(editor.clicks) == 1
    assert "cannot be read" not in editor.message


def test_more_objects_than_there_can_be_are_kept_as_text_too(page, kit):
    for number in (9, 10**12):
        text = f'[{{"x": 0.5, "y": 0.5, "label": 1, "object": {number}}}]'
        nodes = [kit.load_image(1, "rocket.jpg", {0: [1]}), kit.click_to_mask(2, 1, text)]
        page.load(nodes, [[1, 1, 0, 2, 0, "IMAGE"]])
        editor = page.editor(2).wait_for_picture()
        assert f"object number {number}" in editor.message
        assert editor.text == text


def test_a_pixel_list_of_another_pack_is_shown_where_it_belongs(page, kit):
    pixels = '[{"x": 320, "y": 230}]'
    page.load([kit.load_image(1, "rocket.jpg", {0: [1]}), kit.click_to_mask(2, 1, pixels)], [[1, 1, 0, 2, 0, "IMAGE"]])
    editor = page.editor(2).wait_for_picture()
    assert editor.text == pixels, "nothing was changed yet"
    editor.click(0.1, 0.1)
    assert json.loads(editor.text)["image_size"] == [640, 427]
    assert editor.clicks[0]["x"] == pytest.approx(320.5 / 640)
