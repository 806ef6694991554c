"""Clicks in text: the two wire forms, their round trips, and what is refused."""

import json
import logging

import numpy as np
import pytest

from followclick_core.segment import (
    Click,
    clicks_by_object,
    clicks_from_pixels,
    clicks_to_json,
    clicks_to_pixel_json,
    gather_clicks,
    parse_clicks,
)

SIZE = (640, 427)


def test_our_form_comes_back_as_it_went():
    clicks = [Click(0.5, 0.25, 1, 1), Click(0.1, 1.0, 0, 1), Click(0.0, 0.75, 1, 2, candidate=2)]
    assert parse_clicks(clicks_to_json(clicks, SIZE), SIZE) == clicks


def test_our_form_is_one_line_with_the_size_of_the_picture():
    text = clicks_to_json([Click(0.5, 0.25)], SIZE)
    assert "\n" not in text
    assert json.loads(text) == {"image_size": [640, 427], "clicks": [{"x": 0.5, "y": 0.25, "label": 1, "object": 1}]}


def test_normalised_clicks_mean_the_same_place_at_any_size():
    text = clicks_to_json([Click(0.5, 0.25)], SIZE)
    assert parse_clicks(text, (1280, 854)) == [Click(0.5, 0.25)]
    assert Click(0.5, 0.25).pixel((1280, 854)) == (640, 213)


def test_a_list_with_labels_is_normalised_whatever_its_numbers():
    assert parse_clicks('[{"x": 1, "y": 0, "label": 1}]', SIZE) == [Click(1.0, 0.0)]
    with pytest.raises(ValueError, match="outside the image, which spans 0 to 1"):
        parse_clicks('[{"x": 320, "y": 200, "label": 1}]', SIZE)


def test_a_list_without_labels_counts_pixels_whatever_its_numbers():
    assert parse_clicks('[{"x": 1, "y": 0}]', SIZE)[0].pixel(SIZE) == (1, 0)
    assert parse_clicks([{"x": 320, "y": 200}], SIZE)[0].pixel(SIZE) == (320, 200)


def test_excluded_points_come_as_a_pixel_list_of_their_own():
    included = parse_clicks('[{"x": 320, "y": 200}]', SIZE)
    excluded = parse_clicks('[{"x": 10, "y": 20}]', SIZE, pixel_label=0)
    assert [click.label for click in included + excluded] == [1, 0]
    assert parse_clicks("[]", SIZE, pixel_label=0) == []


def test_every_pixel_survives_the_round_trip():
    width, height = 97, 61
    pixels = [(x, y, 1) for x in range(width) for y in range(height)]
    clicks = clicks_from_pixels(pixels, (width, height))
    assert [(*click.pixel((width, height)), click.label) for click in clicks] == pixels
    listed = json.loads(clicks_to_pixel_json(clicks, (width, height)))
    assert [(entry["x"], entry["y"], 1) for entry in listed] == pixels


def test_a_pixel_list_holds_one_label():
    clicks = [Click(0.5, 0.5, 1), Click(0.1, 0.1, 0)]
    assert json.loads(clicks_to_pixel_json(clicks, (100, 100))) == [{"x": 50, "y": 50}]
    assert json.loads(clicks_to_pixel_json(clicks, (100, 100), label=0)) == [{"x": 10, "y": 10}]


def test_numpy_numbers_are_clicks_too():
    clicks = clicks_from_pixels([(np.int64(3), np.float32(4), np.int64(0)), (1, 2, True)], SIZE)
    assert parse_clicks(clicks_to_json(clicks, SIZE), SIZE) == clicks


def test_clicks_are_grouped_by_object():
    clicks = [Click(0.1, 0.1, 1, 7), Click(0.2, 0.2, 1, 2), Click(0.3, 0.3, 0, 7)]
    assert clicks_by_object(clicks) == {2: [clicks[1]], 7: [clicks[0], clicks[2]]}


def test_clicks_made_on_another_picture_are_reported(caplog):
    text = clicks_to_json([Click(0.5, 0.5)], (427, 640))
    with caplog.at_level(logging.WARNING, logger="followclick"):
        parse_clicks(text, SIZE)
        assert "427x640" in caplog.text
        caplog.clear()
        parse_clicks(clicks_to_json([Click(0.5, 0.5)], (1280, 854)), SIZE)
        assert not caplog.text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not valid JSON"),
        ("[{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('[{"x": ' + "1" * 5000 + ', "y": 0}]', "not valid JSON"),
        ('[{"x": 1' + "0" * 400 + ', "y": 0, "label": 1}]', "no position"),
        ("null", "not a list"),
        ("3", "not a list"),
        ('"clicks"', "not a list"),
        ("{}", 'without "clicks"'),
        ('{"clicks": []}', "image_size"),
        ('{"image_size": [640, 0], "clicks": []}', "image_size"),
        ('{"image_size": [640, 427], "clicks": {"x": 1}}', "not a list"),
        ("[]", "no click"),
        ('{"image_size": [640, 427], "clicks": []}', "no click"),
        ("[1]", "A click reads 1"),
        ('[{"x": 0.5}]', "A click reads"),
        ('[{"x": 0.5, "y": 0.5, "lable": 1}]', "A click reads"),
        ('[{"x": NaN, "y": 0.5, "label": 1}]', "no position"),
        ('[{"x": Infinity, "y": 0.5}]', "no position"),
        ('[{"x": "0.5", "y": 0.5, "label": 1}]', "give a number"),
        ('[{"x": true, "y": 0.5, "label": 1}]', "give a number"),
        ('[{"x": 0.5, "y": -0.1, "label": 1}]', "outside the image"),
        ('[{"x": 0.5, "y": 0.5, "label": 2}]', "label 2"),
        ('[{"x": 0.5, "y": 0.5, "label": 0.5}]', "whole numbers"),
        ('[{"x": 0.5, "y": 0.5, "label": true}]', "whole numbers"),
        ('[{"x": 0.5, "y": 0.5, "label": 1, "object": 0}]', "object number 0"),
        ('[{"x": 0.5, "y": 0.5, "label": 1, "object": 1.5}]', "whole number"),
        ('[{"x": 0.5, "y": 0.5, "label": 1, "candidate": -1}]', "candidate -1"),
        ('[{"x": 640, "y": 200}]', "outside the image of 640x427"),
        ('[{"x": 3, "y": -1}]', "outside the image of 640x427"),
        ('[{"x": 0.5, "y": 0.5, "label": 0}]', "only excluding clicks"),
        ('[{"x": 0.5, "y": 0.5, "label": 1}, {"x": 3, "y": 4}]', "Some clicks have a label"),
        ('[{"x": 0.5, "y": 0.5, "label": 1}, {"x": 0, "y": 0, "label": 0, "object": 2}]', "Object 2"),
    ],
)
def test_what_is_no_selection_is_refused_in_one_sentence(text, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        parse_clicks(text, SIZE)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("click", [(640, 0, 1), (-1, 0, 1), (0, 427, 1), (float("nan"), 0, 1), (0, 0, 2), (0, 0, 0)])
def test_pixels_off_the_picture_and_unknown_labels_are_refused(click):
    with pytest.raises(ValueError, match=r"outside the image of 640x427|label|only excluding"):
        clicks_from_pixels([click], SIZE)


def test_points_of_other_packs_join_the_clicks_of_object_1():
    own = clicks_to_json([Click(0.25, 0.5, object=2)], SIZE)
    gathered = gather_clicks(own, SIZE, '[{"x": 320, "y": 200}]', '[{"x": 10, "y": 20}, {"x": 11, "y": 20}]')
    assert [(click.label, click.object) for click in gathered] == [(1, 2), (1, 1), (0, 1), (0, 1)]
    assert [click.pixel(SIZE) for click in gathered[1:]] == [(320, 200), (10, 20), (11, 20)]


@pytest.mark.parametrize("points", ["", " ", "[]"])
def test_there_may_be_no_points_and_no_clicks_yet(points):
    assert gather_clicks("[]", SIZE, points, points) == []
    assert gather_clicks({"image_size": SIZE, "clicks": []}, SIZE) == []


def test_points_of_other_packs_are_checked_as_clicks_are():
    with pytest.raises(ValueError, match="outside the image"):
        gather_clicks("[]", SIZE, '[{"x": 640, "y": 200}]')
    with pytest.raises(ValueError, match="not valid JSON"):
        gather_clicks("[]", SIZE, negative_points="320, 200")
