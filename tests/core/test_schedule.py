"""The noise schedule: published values, and identities of v-prediction."""

import itertools

import pytest
import torch

from followclick_core.diffusion.schedule import (
    NoiseSchedule,
    ScheduleParams,
    rescale_zero_terminal_snr,
    trailing_timesteps,
    training_alphas_cumprod,
)

STEPS = torch.tensor([0, 1, 37, 500, 958, 998, 999])


def noise(seed):
    return torch.randn(len(STEPS), 4, 2, 3, 5, generator=torch.Generator().manual_seed(seed))


def sigmas(params):
    alphas_cumprod = NoiseSchedule(params).alphas_cumprod.double()
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


@pytest.fixture
def schedule():
    return NoiseSchedule(ScheduleParams())


def test_sqrt_linear_spaces_beta_and_linear_its_root():
    """The host's names: its "sqrt_linear" is diffusers' "linear", its "linear" diffusers' "scaled_linear"."""
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    for name, expected in (("sqrt_linear", betas), ("linear", roots**2)):
        alphas_cumprod = training_alphas_cumprod(ScheduleParams(beta_schedule=name))
        before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
        torch.testing.assert_close(1 - alphas_cumprod / before, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("t", "sigma"), [(0, 0.02917), (961, 95.57), (981, 212.3), (991, 490.1), (998, 3991.3)])
def test_sigmas_with_zero_terminal_snr_are_those_measured_in_comfyui(t, sigma):
    assert sigmas(ScheduleParams())[t].item() == pytest.approx(sigma, rel=3e-4)


@pytest.mark.parametrize(("name", "sigma"), [("sqrt_linear", 25.146), ("linear", 14.615)])
def test_largest_sigmas_without_it_are_the_published_ones(name, sigma):
    params = ScheduleParams(beta_schedule=name, zero_terminal_snr=False)
    assert sigmas(params).max().item() == pytest.approx(sigma, rel=1e-4)


def test_the_last_step_is_pure_noise_and_the_first_stays_where_it_was(schedule):
    plain = NoiseSchedule(ScheduleParams(zero_terminal_snr=False))
    assert schedule.alphas_cumprod[-1] == 0 and plain.alphas_cumprod[-1] > 1e-3
    torch.testing.assert_close(schedule.alphas_cumprod[0], plain.alphas_cumprod[0])
    assert (schedule.alphas_cumprod.diff() < 0).all()
    x_0, eps = noise(0), noise(1)
    assert torch.equal(schedule.add_noise(x_0, eps, STEPS)[-1], eps[-1])


def test_rescaling_shifts_and_scales_the_signal_alone():
    """Lin et al. 2024, algorithm 1: an affine map of the signal's share, so its steps keep their proportions."""
    before = training_alphas_cumprod(ScheduleParams()).sqrt()
    after = rescale_zero_terminal_snr(before**2).sqrt()
    ratio = after.diff() / before.diff()
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), atol=1e-6, rtol=1e-6)


def test_signal_and_noise_keep_unit_variance(schedule):
    ones = torch.ones(1000, 1, 1, 1, 1)
    t = torch.arange(1000)
    alpha, sigma = schedule.add_noise(ones, 0 * ones, t), schedule.add_noise(0 * ones, ones, t)
    torch.testing.assert_close(alpha**2 + sigma**2, ones)


def test_v_takes_the_mixture_apart_again(schedule):
    x_0, eps = noise(0), noise(1)
    x_t, v = schedule.add_noise(x_0, eps, STEPS), schedule.velocity(x_0, eps, STEPS)
    torch.testing.assert_close(schedule.predict_x_0(x_t, v, STEPS), x_0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(schedule.predict_noise(x_t, v, STEPS), eps, atol=1e-5, rtol=1e-5)
    # x_t and v are a rotation of x_0 and noise, so their energy is the same.
    torch.testing.assert_close(x_t**2 + v**2, x_0**2 + eps**2, atol=1e-4, rtol=1e-4)


def test_at_the_last_step_v_is_minus_the_clean_video(schedule):
    x_0, eps = noise(0), noise(1)
    assert torch.equal(schedule.velocity(x_0, eps, STEPS)[-1], -x_0[-1])
    assert torch.equal(schedule.predict_x_0(eps, -x_0, STEPS)[-1], x_0[-1])


def test_every_sample_has_its_own_timestep(schedule):
    x_0, eps = noise(0), noise(1)
    together = schedule.add_noise(x_0, eps, STEPS)
    for i, t in enumerate(STEPS):
        assert torch.equal(together[i : i + 1], schedule.add_noise(x_0[i : i + 1], eps[i : i + 1], t[None]))


def test_the_schedule_is_no_part_of_a_checkpoint(schedule):
    assert not schedule.state_dict()


@pytest.mark.parametrize("steps", [1, 4, 20, 25, 50, 333, 1000])
def test_trailing_timesteps_begin_at_the_last_and_descend_evenly(steps):
    timesteps = trailing_timesteps(steps)
    assert len(timesteps) == steps and timesteps[0] == 999 and timesteps[-1] >= 0
    gaps = [first - second for first, second in itertools.pairwise(timesteps)]
    assert all(abs(gap - 1000 / steps) < 1 and gap > 0 for gap in gaps)


def test_trailing_timesteps_are_those_of_the_paper():
    """Lin et al. 2024, table 2, which counts from 1: 999 … 199 for five steps."""
    assert trailing_timesteps(5) == [999, 799, 599, 399, 199]
    assert trailing_timesteps(10)[:3] == [999, 899, 799]


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"Steps must be from 1 to 1000, got {steps}"):
        trailing_timesteps(steps)


def test_an_unknown_beta_schedule_is_refused():
    with pytest.raises(ValueError, match="no beta schedule 'cosine'; choose one of sqrt_linear, linear"):
        ScheduleParams(beta_schedule="cosine")


def test_a_model_that_predicts_noise_gives_the_same_velocity():
    schedule = NoiseSchedule(ScheduleParams(zero_terminal_snr=False, prediction_type="epsilon"))
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(3, 4, 2, 4, 4, generator=generator) for _ in range(2))
    t = torch.tensor([0, 500, 999])
    assert torch.equal(schedule.target(x_0, noise, t), noise)
    v = schedule.as_velocity(noise, schedule.add_noise(x_0, noise, t), t)
    assert torch.allclose(v, schedule.velocity(x_0, noise, t), atol=1e-4)
    default = NoiseSchedule(ScheduleParams())
    assert torch.equal(default.target(x_0, noise, t), default.velocity(x_0, noise, t))
    assert default.as_velocity(v, x_0, t) is v


def test_predictions_that_teach_nothing_are_refused():
    with pytest.raises(ValueError, match="no prediction type 'x_0'"):
        ScheduleParams(prediction_type="x_0")
    with pytest.raises(ValueError, match="At zero terminal SNR"):
        ScheduleParams(prediction_type="epsilon")
