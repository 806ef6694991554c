"""Names and tooltips of all nodes, and the editor's words, in each language."""

import json
import re
from pathlib import Path

import pytest

LOCALES = Path(__file__).parents[2] / "locales"
LANGUAGES = ["en", "zh"]
TEXT = "/extensions/followclick-under-test/editor/text.js"


def read(language: str, name: str) -> dict:
    return json.loads((LOCALES / language / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def nodes(server) -> dict[str, dict]:
    infos = json.loads(server.get("/object_info"))
    return {name: info for name, info in infos.items() if name.startswith("FollowClick_")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_has_a_name_and_what_has_a_tooltip_has_one_here(nodes, language):
    texts = read(language, "nodeDefs")
    assert texts.keys() == nodes.keys()
    for name, info in nodes.items():
        text = texts[name]
        assert text["display_name"], name
        assert bool(text.get("description")) == bool(info["description"]), name
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert text.get("inputs", {}).keys() == inputs.keys(), name
        for key, declared in inputs.items():
            assert text["inputs"][key]["name"], (name, key)
            assert declared[1].get("tooltip"), f"{name}.{key} has no tooltip"
            assert text["inputs"][key]["tooltip"], (name, key)
        assert len(text.get("outputs", {})) == len(info["output"]), name
        for index, tooltip in enumerate(info["output_tooltips"]):
            assert text["outputs"][str(index)]["name"], (name, index)
            assert bool(text["outputs"][str(index)].get("tooltip")) == bool(tooltip), (name, index)


def has_signs(text: str) -> bool:
    """Signs to which the host's translations give a meaning, in some versions and places."""
    return bool(re.search(r"[{}@|]", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_sign_is_left_that_the_host_may_read_as_a_command(language):
    for text in re.findall(r'": "(.*)"', (LOCALES / language / "nodeDefs.json").read_text()):
        assert not has_signs(text)


def test_english_is_what_the_nodes_say_themselves(nodes):
    texts = read("en", "nodeDefs")
    for name, info in nodes.items():
        assert texts[name]["display_name"] == info["display_name"]
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        for key, declared in inputs.items():
            tooltip, own = texts[name]["inputs"][key]["tooltip"], declared[1]["tooltip"]
            if has_signs(own):  # begins alike, and goes on in words
                assert tooltip.split()[:4] == own.split()[:4], (name, key)
            else:
                assert tooltip == own, (name, key)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_editor_s_words_are_all_there_with_the_same_places_to_fill(page, language):
    english = page.run_js(f"async () => (await import('{TEXT}')).ENGLISH")
    words = read(language, "main")["followclick"]
    assert words.keys() == english.keys()
    for key, word in words.items():
        assert sorted(places(word)) == sorted(places(english[key])), key
        if language == "en":
            assert word == english[key]


def places(text: str) -> list[str]:
    return [part.split("}")[0] for part in text.split("{")[1:] if "}" in part and " " not in part.split("}")[0]]


def test_the_host_serves_them(server):
    served = json.loads(server.get("/i18n"))
    assert served["zh"]["followclick"] == read("zh", "main")["followclick"]
    assert served["zh"]["nodeDefs"]["FollowClick_ClickToMask"] == read("zh", "nodeDefs")["FollowClick_ClickToMask"]
