"""How the objects move, as it is read from the clicks."""

import json

import pytest

from followclick_core.segment import Click, ObjectMotion, clicks_to_json, parse_clicks, parse_motions

SIZE = (640, 427)


def with_objects(objects) -> str:
    return json.dumps({"image_size": SIZE, "clicks": [{"x": 0.5, "y": 0.5, "label": 1}], "objects": objects})


def test_each_object_says_what_it_does_and_how_strongly():
    text = with_objects(
        {"1": {"motion_prompt": "run", "motion_magnitude": 6}, "12": {"motion_prompt": "flap"}, "3": {}}
    )
    assert parse_motions(text) == {1: ObjectMotion("run", 6.0), 12: ObjectMotion("flap"), 3: ObjectMotion()}
    assert parse_clicks(text, SIZE) == [Click(0.5, 0.5)]


@pytest.mark.parametrize("text", ["[]", '[{"x": 0.5, "y": 0.5, "label": 1}]', '{"image_size": [4, 3], "clicks": []}'])
def test_other_forms_say_nothing_of_motion(text):
    assert parse_motions(text) == {}


def test_motions_survive_the_wire():
    motions = {1: ObjectMotion("run", 6.5), 2: ObjectMotion(motion_magnitude=0.0), 3: ObjectMotion("jump")}
    text = clicks_to_json([Click(0.5, 0.25)], SIZE, motions)
    assert parse_motions(text) == motions and parse_clicks(text, SIZE) == [Click(0.5, 0.25)]
    assert "objects" not in json.loads(clicks_to_json([Click(0.5, 0.25)], SIZE, {}))


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([1], "by number"),
        ("run", "by number"),
        ({"0": {}}, "counted from 1"),
        ({"-1": {}}, "counted from 1"),
        ({"one": {}}, "counted from 1"),
        ({"²": {}}, "counted from 1"),
        ({"1" * 5000: {}}, "counted from 1"),
        ({"1": "run"}, "give motion_prompt and motion_magnitude"),
        ({"1": {"prompt": "run"}}, "give motion_prompt and motion_magnitude"),
        ({"1": {"motion_prompt": 3}}, "give a text"),
        ({"1": {"motion_magnitude": "6"}}, "give a number"),
        ({"1": {"motion_magnitude": True}}, "give a number"),
        ({"1": {"motion_magnitude": float("nan")}}, "give a number"),
        ({"1": {"motion_magnitude": float("inf")}}, "give a number"),
        ({"1": {"motion_magnitude": 10**400}}, "give a number"),
    ],
)
def test_what_is_no_motion_is_refused_in_one_sentence(objects, said):
    with pytest.raises(ValueError, match=said) as refused:
        parse_motions(with_objects(objects))
    assert len(str(refused.value)) < 250


def test_text_that_is_no_json_is_refused():
    with pytest.raises(ValueError, match="not valid JSON"):
        parse_motions("run")
