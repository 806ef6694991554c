"""Every preset is one model: its parts fit each other, and its numbers are those that are published."""

import pytest
import torch

from followclick_core.models.attach import attach
from followclick_core.models.motion_model import MotionModel
from followclick_core.models.text_encoder import TextEncoderParams
from followclick_core.models.unet import UNet
from followclick_core.presets import PRESETS, Preset, get_preset
from followclick_core.training.params import TRAINING


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_parts_of_a_preset_fit_each_other(name):
    preset = get_preset(name)
    assert preset.name == name
    with torch.device("meta"):
        unet, motion = UNet(preset.unet), MotionModel(preset.motion)
    attach(unet, motion).detach()
    assert preset.unet.context_dim == preset.text.width == preset.motion.context_dim
    assert all(width % 32 == 0 and width % preset.unet.num_heads == 0 for width in preset.unet.channels)
    assert preset.text.width % preset.text.num_heads == 0
    assert preset.size % (8 * preset.unet.size_multiple) == 0


def test_the_named_presets_are_there_at_their_sizes():
    assert {"sd15", "demo", "nano"} <= set(PRESETS)
    assert [get_preset(name).size for name in ("sd15", "demo", "nano")] == [512, 256, 128]
    assert {"demo", "nano"} <= set(TRAINING) <= set(PRESETS)


def test_sd15_has_stable_diffusions_and_animatediffs_number_of_weights():
    """859,520,964 in SD1.5's UNet; 453,209,280 in AnimateDiff v2, plus 70,221,120 for the attention to the text."""
    preset = get_preset("sd15")
    with torch.device("meta"):
        unet, motion = UNet(preset.unet), MotionModel(preset.motion)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    modules = sum(p.numel() for name, p in motion.named_parameters() if "motion_modules." in name)
    assert modules == 453_209_280 + 70_221_120


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_trained_as_the_paper_says(name):
    schedule = get_preset(name).motion.schedule
    assert schedule.beta_schedule == "sqrt_linear" and schedule.zero_terminal_snr
    assert schedule.prediction_type == "v_prediction" and get_preset(name).motion.trained_frames == 16
    if name in TRAINING:
        assert TRAINING[name].motion.mask_ratio == 0.7


def test_an_unknown_preset_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="no preset 'sdxl'; choose one of sd15, demo"):
        get_preset("sdxl")


def test_a_text_encoder_of_another_width_is_refused():
    nano = get_preset("nano")
    with pytest.raises(ValueError, match="the UNet reads text of width 96, the encoder writes 128"):
        Preset("odd", 128, nano.unet, nano.motion, TextEncoderParams(width=128, layers=1, num_heads=2))
