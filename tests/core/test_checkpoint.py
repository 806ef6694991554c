"""Weights files, the good and the bad ones."""

import contextlib
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from followclick_core import checkpoint
from followclick_core.checkpoint import (
    CheckpointError,
    load_metadata,
    load_safetensors,
    load_strict,
    load_tensors,
    save_safetensors,
)
from followclick_core.models.bundle import FILES, load_bundle, weights_path
from followclick_core.models.motion_model import MotionModel, MotionParams, load_motion_model, save_motion_model

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([1, 2, 3])}
TINY_MOTION = MotionParams(32, (1, 2), 1, 2, 16)


def one_sentence(error):
    """A text for people: no traceback, no line breaks, ends as a sentence does."""
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and "Traceback" not in text, text
    return text


@pytest.mark.parametrize("loader", [load_safetensors, load_tensors])
def test_tensors_and_metadata_come_back(tmp_path, loader):
    save_safetensors(tmp_path / "x.safetensors", TENSORS, {"format": "test"})
    tensors, metadata = loader(tmp_path / "x.safetensors")
    assert metadata == {"format": "test"} == load_metadata(tmp_path / "x.safetensors")
    assert set(tensors) == set(TENSORS) and all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)
    assert tensors["b"].dtype == torch.int64


def test_saving_makes_the_folder_and_takes_views_and_gradients(tmp_path):
    weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    save_safetensors(tmp_path / "new" / "x.safetensors", {"t": weight.t(), "w": weight[:1]})
    tensors, _ = load_safetensors(tmp_path / "new" / "x.safetensors")
    assert torch.equal(tensors["t"], weight.detach().t()) and torch.equal(tensors["w"], weight.detach()[:1])


@pytest.mark.parametrize("loader", [load_safetensors, load_metadata, load_tensors])
@pytest.mark.parametrize("kept", [0, 5, 40, -3])
def test_a_truncated_file_is_refused(tmp_path, loader, kept):
    path = tmp_path / "cut.safetensors"
    save_safetensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="cut.safetensors cannot be read as safetensors") as error:
        loader(path)
    one_sentence(error)


@pytest.mark.parametrize("loader", [load_safetensors, load_metadata, load_tensors])
def test_a_missing_file_is_named_with_its_folder(tmp_path, loader):
    with pytest.raises(
        FileNotFoundError, match=f"no weights file x.safetensors in {re.escape(str(tmp_path))}"
    ) as error:
        loader(tmp_path / "x.safetensors")
    one_sentence(error)
    with pytest.raises(FileNotFoundError):
        loader(tmp_path)  # a folder


def test_a_picture_under_a_weights_name_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(CheckpointError):
        load_tensors(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x.webp has no known suffix.*\.safetensors"):
        (tmp_path / "x.webp").write_bytes(b"RIFF")
        load_tensors(tmp_path / "x.webp")


def save_bare_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


class RunsCode:
    """Unpickling this makes a file: the harmless stand-in for an attack."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("writer", [save_bare_pickle, torch.save])
def test_a_pickle_that_would_run_code_does_not_run_it(tmp_path, suffix, writer):
    proof, path = tmp_path / "it_ran", tmp_path / f"evil{suffix}"
    writer({"a.weight": torch.zeros(2), "state_dict": RunsCode(proof)}, path)
    with pytest.raises(CheckpointError, match=f"evil{suffix} .*would run code") as error:
        load_tensors(path)
    assert not proof.exists()
    assert "weights_only" not in one_sentence(error)  # torch's own advice is to load it all the same
    with contextlib.suppress(RuntimeError):  # of a bare pickle, torch complains after having run it
        torch.load(path, weights_only=False)
    assert proof.exists()  # it is no dud


@pytest.mark.parametrize("content", [b"", b"not a pickle at all", bytes(range(256)) * 4, b"\x80\x02}q\x00(X\x05\x00"])
def test_a_damaged_pickle_is_refused(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="x.ckpt") as error:
        load_tensors(tmp_path / "x.ckpt")
    one_sentence(error)


def test_a_truncated_torch_file_is_refused(tmp_path):
    torch.save(TENSORS, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="x.pt"):
        load_tensors(tmp_path / "x.pt")


def test_a_training_checkpoints_wrapping_is_taken_off(tmp_path):
    content = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in TENSORS.items()} | {"config": "x"}}
    torch.save(content, tmp_path / "x.ckpt")
    tensors, metadata = load_tensors(tmp_path / "x.ckpt")
    assert set(tensors) == set(TENSORS) and torch.equal(tensors["a.weight"], TENSORS["a.weight"]) and metadata == {}
    save_safetensors(tmp_path / "x.safetensors", {"module.a.module.b": torch.zeros(1)})
    assert set(load_tensors(tmp_path / "x.safetensors")[0]) == {"a.module.b"}


def test_a_pickle_of_something_else_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="x.pt holds a list, no dictionary of weights"):
        load_tensors(tmp_path / "x.pt")


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_safetensors(path, TENSORS)
    before = path.read_bytes()

    def interrupted(_tensors, target, metadata=None):
        Path(target).write_bytes(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_safetensors(path, {"a": torch.zeros(1)})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.safetensors"]


def test_loading_strictly_takes_all_and_lists_what_does_not_fit():
    module = nn.Linear(2, 3)
    load_strict(module, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, "x")
    assert (module.weight == 1).all() and (module.bias == 0).all()
    with pytest.raises(CheckpointError) as error:
        load_strict(module, {"weight": torch.zeros(2, 2), "other": torch.zeros(1)}, "x.safetensors")
    for part in ("x.safetensors", "1 missing (bias)", "1 unexpected (other)", "1 of another shape (weight)"):
        assert part in str(error.value)
    assert (module.weight == 1).all()


# Families


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "an AnimateDiff-like motion module"),
        (["model.diffusion_model.out.0.weight"], "a Stable Diffusion checkpoint"),
        (["image_encoder.pos_embed"], "a SAM segmenter"),
        (["lora_unet_x.lora_up.weight"], "a LoRA"),
        (["x", "y"], "a file of 2 tensors of no known kind"),
    ],
)
def test_a_file_of_another_family_is_refused_and_called_by_its_name(tmp_path, keys, said):
    save_safetensors(tmp_path / "x.safetensors", {key: torch.zeros(1) for key in keys})
    with pytest.raises(CheckpointError, match=f"x.safetensors is {said}.*choose one trained by it") as error:
        load_motion_model(tmp_path / "x.safetensors")
    one_sentence(error)


@pytest.mark.parametrize("params", [None, "{", '{"model_channels": 32}', '{"channel_mult": [1], "unheard_of": 1}'])
def test_a_motion_model_of_another_version_is_refused(tmp_path, params):
    path = tmp_path / "motion.safetensors"
    save_motion_model(path, MotionModel(TINY_MOTION))
    tensors, metadata = load_safetensors(path)
    metadata = {key: value for key, value in metadata.items() if key != "params"}
    save_safetensors(path, tensors, metadata if params is None else metadata | {"params": params})
    with pytest.raises(CheckpointError, match="motion.safetensors") as error:
        load_motion_model(path)
    one_sentence(error)


def test_a_swapped_file_in_a_weights_folder_is_refused(untrained_weights, tmp_path):
    for part in FILES:
        (tmp_path / f"{part}.safetensors").symlink_to(untrained_weights / f"{part}.safetensors")
    assert load_bundle(tmp_path).preset.name == "nano"
    for part, other in (("motion", "unet"), ("unet", "motion"), ("autoencoder", "unet"), ("text_encoder", "unet")):
        file = tmp_path / f"{part}.safetensors"
        file.unlink()
        file.symlink_to(untrained_weights / f"{other}.safetensors")
        with pytest.raises(CheckpointError, match=f"{part}.safetensors"):
            load_bundle(tmp_path)
        file.unlink()
        file.symlink_to(untrained_weights / f"{part}.safetensors")


def test_a_missing_part_is_named(untrained_weights, tmp_path):
    (tmp_path / "unet.safetensors").symlink_to(untrained_weights / "unet.safetensors")
    with pytest.raises(FileNotFoundError, match=f"no motion.safetensors in {re.escape(str(tmp_path))}"):
        load_bundle(tmp_path)
    assert weights_path("unet", tmp_path) == tmp_path / "unet.safetensors"


def test_a_unet_that_does_not_say_its_preset_is_refused(untrained_weights, tmp_path):
    tensors, metadata = load_safetensors(untrained_weights / "unet.safetensors")
    del metadata["preset"]
    save_safetensors(tmp_path / "unet.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match="unet.safetensors does not say which preset it is"):
        load_bundle(tmp_path)
