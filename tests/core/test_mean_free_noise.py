"""Noise without its mean over time: what it is, and that sampling starts from it."""

import pytest
import torch

from followclick_core import generate
from followclick_core.diffusion.noise import without_temporal_mean
from followclick_core.generate import SamplingParams, initial_noise


@pytest.fixture
def noise():
    return initial_noise((4, 16, 8, 8), [1, 2])


def test_the_frames_add_up_to_zero_at_every_place_and_the_strength_stays(noise):
    free = without_temporal_mean(noise, 16)
    assert noise.sum(2).abs().max() > 1 and free.sum(2).abs().max() < 1e-4
    for clip in range(2):
        assert free[clip].norm().item() == pytest.approx(noise[clip].norm().item(), rel=1e-5)
    # Nothing else changes: the differences of frames stay what they were, but for the strength.
    ratio = (free[0, :, 1:] - free[0, :, :-1]) / (noise[0, :, 1:] - noise[0, :, :-1])
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio.median()), atol=1e-3, rtol=1e-3)
    assert 1 < ratio.median() < 1.1


def test_it_is_itself_the_second_time(noise):
    once = without_temporal_mean(noise, 16)
    torch.testing.assert_close(without_temporal_mean(once, 16), once, atol=1e-5, rtol=1e-5)


def test_long_clips_are_balanced_in_pieces_that_a_model_sees_at_once():
    long = initial_noise((4, 20, 4, 4), [3])
    free = without_temporal_mean(long, 8)
    assert free.shape == long.shape
    for start, end in ((0, 7), (7, 14), (14, 20)):
        assert free[:, :, start:end].mean(2).abs().max() < 1e-5


def test_a_frame_more_than_a_model_sees_at_once_leaves_no_piece_of_few_frames():
    free = without_temporal_mean(initial_noise((4, 18, 32, 32), [3]), 16)
    correlations = torch.corrcoef(free[0].movedim(1, 0).flatten(1)).fill_diagonal_(0)
    assert correlations.abs().max() < 0.25  # -1/8 within a piece; a piece of the last two would have -1


def test_few_frames_and_no_noise_stay_as_they_are():
    for count in (1, 2, 3):
        few = initial_noise((4, count, 4, 4), [3])
        assert torch.equal(without_temporal_mean(few, 16), few)
    short_windows = initial_noise((4, 6, 4, 4), [3])
    assert torch.equal(without_temporal_mean(short_windows, 1), short_windows)
    nothing = torch.zeros(1, 4, 16, 4, 4)
    assert torch.equal(without_temporal_mean(nothing, 16), nothing)


@pytest.mark.parametrize("mean_free", [True, False])
def test_sampling_starts_from_it_unless_told_otherwise(monkeypatch, tiny_bundle, mean_free):
    begun = []

    def sampler(_predict, _schedule, x_t, _steps, _callback):
        begun.append(x_t)
        return x_t

    monkeypatch.setattr(generate, "sample_ddim", sampler)
    params = SamplingParams(num_frames=4, steps=1) if mean_free else SamplingParams(4, 1, mean_free_noise=False)
    photo, mask = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    generate.generate_latents(tiny_bundle, photo, mask, ["run"], [4.0], [9], params)
    plain = initial_noise((4, 4, 8, 8), [9])
    expected = without_temporal_mean(plain, 4) if mean_free else plain
    torch.testing.assert_close(begun[0], expected)


def test_pieces_are_as_long_as_the_windows_that_were_asked_for(monkeypatch, tiny_bundle):
    begun = []
    monkeypatch.setattr(generate, "sample_ddim", lambda _predict, _schedule, x_t, *_: begun.append(x_t) or x_t)
    photo, mask = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    params = SamplingParams(num_frames=12, steps=1, context_length=6)
    generate.generate_latents(tiny_bundle, photo, mask, ["run"], [4.0], [9], params)
    assert begun[0][:, :, :6].mean(2).abs().max() < 1e-5 and begun[0][:, :, 6:].mean(2).abs().max() < 1e-5


@pytest.fixture
def tiny_bundle(tiny_stage, tiny_weights):
    from followclick_core.models.bundle import load_bundle

    tiny_stage()  # makes the preset known
    return load_bundle(tiny_weights)
