"""AnimateDiff's files as a start: every published form of its keys, at a tenth of its width, and what does not fit."""

import json
from pathlib import Path

import pytest
import torch

from followclick_core.checkpoint import CheckpointError
from followclick_core.diffusion.schedule import ScheduleParams
from followclick_core.models.animatediff import load_motion_start
from followclick_core.models.motion_model import MotionModel, MotionParams, load_motion_model, save_motion_model

LISTS = Path(__file__).parents[3] / "shared" / "data" / "checkpoint_keys"  # every key and shape of the published files
PARAMS = MotionParams(model_channels=32, num_heads=4, context_dim=16, layout="release")
# Form, encodings' length, module in the middle, keys.
FORMS = [("v1", 24, False, 560), ("v2", 32, True, 588), ("v3", 32, False, 560), ("lcm", None, True, 546)]


@pytest.mark.parametrize(("form", "encodings", "middle", "count"), FORMS)
def test_every_published_form_loads_whole_and_keeps_its_weights(
    animatediff_file, form, encodings, middle, count, tmp_path
):
    tensors = animatediff_file(encodings, middle)
    assert len(tensors) == count
    torch.save({"state_dict": {f"module.{key}": value for key, value in tensors.items()}}, tmp_path / "mm.ckpt")
    model = load_motion_start(tmp_path / "mm.ckpt", PARAMS)
    state = model.state_dict()
    weights = {key: value for key, value in tensors.items() if not key.endswith(".pe")}
    assert all(torch.equal(state[key], value) for key, value in weights.items())
    assert model.params.mid_block == middle and model.layout == "release"
    # What the method adds changes nothing at first.
    added = state.keys() - weights.keys()
    assert len(added) == 7 * (21 if middle else 20) + 5
    silent = [key for key in added if "attention_blocks.2.to_out" in key or "linear_2" in key or "first_frame" in key]
    assert len(silent) == 2 * (21 if middle else 20) + 3 and all(state[key].abs().max() == 0 for key in silent)
    save_motion_model(tmp_path / "motion.safetensors", model)
    again = load_motion_model(tmp_path / "motion.safetensors")
    assert all(torch.equal(again.state_dict()[key], value.half().float()) for key, value in state.items())


@pytest.mark.skipif(not LISTS.is_dir(), reason="the published files' keys are not at hand")
@pytest.mark.parametrize(
    ("file", "encodings", "middle"),
    [
        ("animatediff_v1", 24, False),
        ("animatediff_v2", 32, True),
        ("animatediff_v3", 32, False),
        ("animatelcm_t2v", None, True),
    ],
)
def test_the_forms_above_are_those_of_the_published_files(animatediff_file, file, encodings, middle):
    published = json.loads((LISTS / f"{file}.json").read_text())
    ours = animatediff_file(encodings, middle)
    # The same names, and shapes that differ by the tenth of the width alone.
    assert published.keys() == ours.keys()
    for key, shape in published.items():
        if not key.endswith(".pe"):
            assert [size // 10 for size in shape] == list(ours[key].shape), key
        else:
            assert shape[1] == encodings == ours[key].shape[1]


def test_a_file_of_this_pack_is_a_start_too_and_keeps_what_it_says_of_itself(tmp_path):
    schedule = ScheduleParams(zero_terminal_snr=False, prediction_type="epsilon")
    model = MotionModel(MotionParams(32, (1, 2), 1, 2, 16, layout="paper", schedule=schedule))
    save_motion_model(tmp_path / "motion.safetensors", model)
    assert load_motion_start(tmp_path / "motion.safetensors", PARAMS).params == model.params


def test_what_is_no_start_is_refused_by_what_it_is(animatediff_file, tmp_path):
    tensors = animatediff_file(32, True)
    path = tmp_path / "mm.ckpt"

    def refuse(content, match):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=match):
            load_motion_start(path, PARAMS)

    key = "mid_block.motion_modules.0.temporal_transformer.proj_in.weight"
    refuse({k: v for k, v in tensors.items() if k != key}, f"mm.ckpt does not fit this model: 1 missing .{key}")
    refuse(
        tensors | {"down_blocks.0.motion_modules.7.x": torch.ones(1)}, "1 unexpected .down_blocks.0.motion_modules.7"
    )
    refuse(animatediff_file(32, True, width=64), "of another shape")
    refuse({"conv_in.weight": torch.zeros(32, 9, 3, 3), **tensors}, "is an AnimateDiff-like motion module without")
    refuse({"model.diffusion_model.out.0.weight": torch.ones(4)}, "mm.ckpt is a Stable Diffusion checkpoint; training")
    pe = next(key for key in tensors if key.endswith(".pe"))
    refuse(tensors | {pe: tensors[pe] + 0.1}, "positional encodings of its own")
    refuse(tensors | {pe: tensors[pe][0]}, "not 1 x frames x channels")
    with pytest.raises(FileNotFoundError, match=r"no weights file mm_sd_v15_v2.ckpt"):
        load_motion_start(tmp_path / "mm_sd_v15_v2.ckpt", PARAMS)
