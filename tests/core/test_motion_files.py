"""Motion model files of every family: recognised by themselves, read whole, and refused with what does not fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from followclick_core.checkpoint import CheckpointError
from followclick_core.families import FAMILIES
from followclick_core.models.motion_files import load_motion_file
from followclick_core.models.motion_model import MotionModel, MotionParams, save_motion_model
from followclick_core.models.unet import UNet, UNetParams

LISTS = Path(__file__).parents[3] / "shared" / "data" / "checkpoint_keys"  # every key and shape of the published files
PUBLISHED = {
    "animatediff_v1": ("animatediff_v1", 560),
    "animatediff_v2": ("animatediff_v2", 588),
    "animatediff_v3": ("animatediff_v3", 560),
    "animatelcm": ("animatelcm_t2v", 546),
    "pia": ("pia", 562),
    "release": ("followyourclick_release", 1254),
}


@pytest.mark.parametrize(("family", "published"), PUBLISHED.items(), ids=PUBLISHED)
def test_the_synthesised_files_have_the_published_names_and_shapes(checkpoint_files, family, published):
    name, count = published
    frames, middle = checkpoint_files.MODULES[family]
    shapes = checkpoint_files.motion_shapes(320, frames, middle)
    if family == "pia":
        shapes |= {"conv_in.weight": (320, 9, 3, 3), "conv_in.bias": (320,)}
    if family == "release":
        shapes |= checkpoint_files.unet_shapes(320) | checkpoint_files.embedding_shapes(320)
    assert len(shapes) == count
    if LISTS.is_dir():
        listed = json.loads((LISTS / f"{name}.json").read_text())
        assert shapes == {key: tuple(shape) for key, shape in listed.items()}


@pytest.mark.parametrize(
    ("form", "suffix"),
    [("flat", ".safetensors"), ("wrapped", ".ckpt"), ("prefixed", ".pth"), ("adapter", ".safetensors")],
)
@pytest.mark.parametrize("family", PUBLISHED)
def test_every_family_is_recognised_in_every_form_with_its_weights(checkpoint_files, family, form, suffix, tmp_path):
    if form == "adapter" and family not in checkpoint_files.ADAPTERS:
        pytest.skip("diffusers has no format for it")
    path = checkpoint_files.write_motion_file(tmp_path / f"x{suffix}", family, form)
    file = load_motion_file(path)
    assert file.family.name == family and file.model.params.model_channels == 32
    assert file.form.startswith(file.family.title) and ("diffusers" in file.form) == (form == "adapter")
    tensors, state = checkpoint_files.motion_tensors(family), file.model.state_dict()
    modules = {key for key in tensors if "motion_modules" in key and not key.endswith(".pe")}
    assert {key for key in state if "motion_modules" in key} == modules
    assert all(torch.equal(state[key], tensors[key]) for key in modules)
    if file.family.takes_first_frame:
        assert torch.equal(state["first_frame_conv.weight"], tensors["conv_in.weight"][:, 4:])
    assert bool(file.spatial) == (family == "release")


def test_the_release_brings_its_embeddings_and_the_whole_unet(checkpoint_files, tmp_path):
    file = load_motion_file(checkpoint_files.write_motion_file(tmp_path / "x.pth", "release", "wrapped", text=16))
    tensors, state = checkpoint_files.motion_tensors("release", text=16), file.model.state_dict()
    for key in ("fps_embedding.linear_2.bias", "motion_embedding.linear_1.weight"):
        assert torch.equal(state[key], tensors[key])
    unet = UNet(UNetParams(model_channels=32, context_dim=16))
    unet.load_state_dict(dict(file.spatial))  # strict: every name and shape
    assert torch.equal(unet.input_blocks[0][0].weight, tensors["conv_in.weight"][:, :4])
    assert torch.equal(unet.output_blocks[8][2].conv.weight, tensors["up_blocks.2.upsamplers.0.conv.weight"])
    assert torch.equal(unet.output_blocks[2][1].conv.weight, tensors["up_blocks.0.upsamplers.0.conv.weight"])
    assert torch.equal(unet.time_embed[2].weight, tensors["time_embedding.linear_2.weight"])


@pytest.mark.skipif(not LISTS.is_dir(), reason="the published checkpoint's keys are not at hand")
def test_the_release_has_every_weight_of_stable_diffusion_at_its_full_size(checkpoint_files):
    from followclick_core.models.motion_keys import unet_keys

    with torch.device("meta"):
        names = unet_keys(UNet(UNetParams()))
    published = json.loads((LISTS / "sd15_unet_ldm.json").read_text())
    spatial = checkpoint_files.unet_shapes(320) | {"conv_in.weight": (320, 4, 3, 3)}
    ours = {f"model.diffusion_model.{names[key]}": list(shape) for key, shape in spatial.items()}
    assert ours == published


def test_spatial_weights_that_training_saved_along_are_left_out(checkpoint_files, tmp_path):
    """PIA's training saves the whole UNet, AnimateDiff's too; their motion modules alone count."""
    spatial = {key: torch.zeros(shape) for key, shape in checkpoint_files.unet_shapes(32).items()}
    torch.save(spatial | checkpoint_files.motion_tensors("pia"), tmp_path / "pia.ckpt")
    file = load_motion_file(tmp_path / "pia.ckpt")
    assert file.family.name == "pia" and not file.spatial
    spatial["conv_in.weight"] = torch.zeros(32, 4, 3, 3)
    torch.save(
        {"state_dict": spatial | checkpoint_files.motion_tensors("animatediff_v2"), "animatediff_config": {"a": 1}},
        tmp_path / "mm.ckpt",
    )
    assert load_motion_file(tmp_path / "mm.ckpt").family.name == "animatediff_v2"


def test_a_file_of_this_pack_keeps_what_it_says_of_itself(tmp_path):
    model = MotionModel(MotionParams(32, (1, 2), 1, 2, 16, layout="paper"))
    save_motion_model(tmp_path / "motion.safetensors", model)
    file = load_motion_file(tmp_path / "motion.safetensors")
    assert file.model.params == model.params and file.family.name == "followclick"
    assert file.model.first_frame_conv.weight.dtype == torch.float16  # as in the file


def test_what_fits_no_family_is_compared_with_the_closest(checkpoint_files, tmp_path):
    path = tmp_path / "mm.ckpt"

    def refuse(content, *said):
        torch.save(content, path)
        with pytest.raises(CheckpointError) as error:
            load_motion_file(path)
        assert all(part in str(error.value) for part in ("mm.ckpt", *said)), error.value

    v2 = checkpoint_files.motion_tensors("animatediff_v2")
    key = "down_blocks.1.motion_modules.0.temporal_transformer.proj_in.weight"
    refuse({k: v for k, v in v2.items() if k != key}, "closest is AnimateDiff v2: 1 missing", key, "0 unexpected")
    refuse(v2 | {"img_encoder.conv.weight": torch.ones(1)}, "AnimateDiff v2: 0 missing; 1 unexpected (img_encoder.conv")
    refuse(v2 | {key: torch.ones(2, 2)}, f"1 of another shape ({key}")
    release = checkpoint_files.motion_tensors("release")
    gone = {k: v for k, v in release.items() if not k.startswith("down_blocks.0.resnets.0.conv1")}
    refuse(gone, "closest is Follow-Your-Click, the authors' release: 2 missing (down_blocks.0.resnets.0.conv1.bias")
    pe = next(key for key in v2 if key.endswith(".pe"))
    refuse(v2 | {pe: v2[pe] + 0.1}, "positional encodings of its own")
    refuse({"model.diffusion_model.out.0.weight": torch.ones(4)}, "a Stable Diffusion checkpoint, not a motion model")
    refuse(checkpoint_files.lora_tensors(), "fits no family")


def test_motion_modules_for_a_unet_of_other_levels_are_refused(checkpoint_files, tmp_path):
    tensors = checkpoint_files.motion_tensors("animatediff_v3")
    tensors = {key: value for key, value in tensors.items() if "_blocks.3." not in key}
    torch.save(tensors, tmp_path / "mm_sdxl.ckpt")
    with pytest.raises(CheckpointError, match="3 levels, as Stable Diffusion XL's"):
        load_motion_file(tmp_path / "mm_sdxl.ckpt")


def test_every_family_names_itself_and_says_what_it_does():
    assert len({family.name for family in FAMILIES}) == len({family.title for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        lines = family.about().splitlines()
        assert lines[0] == family.title
        assert [line.partition(":")[0] for line in lines[2:6]] == [
            "First frame",
            "Motion prompt",
            "Motion magnitude",
            "Length",
        ]


MEASURE = """
import resource, sys
from pathlib import Path
from followclick_core.models.motion_files import load_motion_file
import torch
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak so far does not count
before = peak()
file = load_motion_file(sys.argv[1])
total = sum(float(value.sum()) for value in [*file.model.state_dict().values(), *file.spatial.values()])
print(peak() - before, total)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a process's peak")
@pytest.mark.parametrize(
    ("family", "suffix", "dtype"),
    [
        ("animatediff_v2", ".safetensors", torch.float32),
        ("animatediff_v2", ".ckpt", torch.float32),
        ("release", ".ckpt", torch.float32),
        ("release", ".safetensors", torch.float16),
    ],
)
def test_loading_takes_little_more_memory_than_the_file_has_bytes(checkpoint_files, family, suffix, dtype, tmp_path):
    """Every weight is read, so what is mapped from the file counts as well."""
    path = checkpoint_files.write_motion_file(tmp_path / f"x{suffix}", family, width=96, dtype=dtype)
    answer = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    growth = int(answer.stdout.split()[0])
    size = path.stat().st_size
    path.unlink()
    assert size > 150e6
    assert 0.8 * size < growth < 1.3 * size, f"{growth / size:.2f} times the file"
