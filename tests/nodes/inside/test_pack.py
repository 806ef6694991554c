"""What the host sees of the pack: it loads, it declares its nodes well, it finds its files."""

from pathlib import Path

import folder_paths
import pytest
import torch
from comfy_api.latest import io

PACK = Path(__file__).parents[3]


def test_the_pack_loads_with_all_its_nodes(pack):
    assert pack.loaded
    expected = "LoadDemoModel LoadMotionModel LoadSegmenter ClickToMask MotionRegion FirstFrame FlowMagnitude"
    for name in [*expected.split(), "ApplyMotionModel", "MotionSchedule", "AnimateRegion", "ExamplePhoto"]:
        assert issubclass(pack.node(name), io.ComfyNode)


def test_importing_the_pack_imports_neither_opencv_nor_segment_anything(pack):
    assert pack.imported == set()


def test_every_input_and_node_explains_itself(pack):
    for node in pack.module("nodes").NODES:
        schema = node.GET_SCHEMA()
        assert schema.node_id.startswith("FollowClick_") and schema.category.startswith("FollowClick")
        assert schema.description
        for entry in schema.inputs:
            assert entry.tooltip, f"{schema.node_id}: {entry.id} has no tooltip"
        help_page = PACK / "web" / "docs" / f"{schema.node_id}.md"
        assert schema.display_name in help_page.read_text(encoding="utf-8")


def test_the_host_can_describe_every_node_to_the_front_end(pack):
    for node in pack.module("nodes").NODES:
        info = node.GET_NODE_INFO_V1()
        assert info["display_name"] and info["category"].startswith("FollowClick")


def test_model_files_are_listed_after_the_embedded_ones(pack, tmp_path, monkeypatch):
    (tmp_path / "mine.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no model")
    paths, extensions = folder_paths.folder_names_and_paths["followclick"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "followclick", ([*paths, str(tmp_path)], extensions))
    options = pack.node("LoadMotionModel").define_schema().inputs[0].options
    assert options[0] == "demo" and "mine.safetensors" in options and "notes.txt" not in options


def test_the_example_photo_is_there(pack):
    (picture,) = pack.run("ExamplePhoto", picture="rocket")
    assert picture.shape == (1, 427, 640, 3) and 0 <= picture.min() < picture.max() <= 1
    with pytest.raises(ValueError, match=r"no example picture 'moon'.*rocket"):
        pack.run("ExamplePhoto", picture="moon")


def test_a_missing_file_is_named_with_the_folder_it_belongs_in(pack):
    with pytest.raises(FileNotFoundError, match=r"no file 'absent.safetensors'.*models/followclick"):
        pack.run("LoadMotionModel", name="absent.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no file 'sam.pth'.*models/sams"):
        pack.run("LoadSegmenter", name="sam.pth")


def test_files_of_another_kind_or_cut_short_say_so(pack, weights, tmp_path, monkeypatch):
    paths, extensions = folder_paths.folder_names_and_paths["followclick"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "followclick", ([*paths, str(tmp_path)], extensions))
    (tmp_path / "unet.safetensors").write_bytes((weights / "unet.safetensors").read_bytes())
    (tmp_path / "cut.safetensors").write_bytes((weights / "motion.safetensors").read_bytes()[:5000])
    torch.save(print, tmp_path / "evil.ckpt")
    wrong = pack.module("followclick_core.checkpoint").CheckpointError
    with pytest.raises(wrong, match="not a motion model"):
        pack.run("LoadMotionModel", name="unet.safetensors")
    with pytest.raises(wrong, match="truncated"):
        pack.run("LoadMotionModel", name="cut.safetensors")
    with pytest.raises(wrong, match="run code"):
        pack.run("LoadMotionModel", name="evil.ckpt")
