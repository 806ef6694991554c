"""DDIM against problems whose answer is known, and the identities of guidance."""

import pytest
import torch

from followclick_core.diffusion.guidance import guide
from followclick_core.diffusion.samplers import sample_ddim
from followclick_core.diffusion.schedule import NoiseSchedule, ScheduleParams, trailing_timesteps


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def schedule():
    return NoiseSchedule(ScheduleParams())


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_ddim_recovers_the_clean_video_from_the_true_v(schedule, steps):
    x_0, eps = noise(2, 4, 3, 5, 6), noise(2, 4, 3, 5, 6, seed=1)
    sampled = sample_ddim(lambda _x, t: schedule.velocity(x_0, eps, t), schedule, eps, trailing_timesteps(steps))
    torch.testing.assert_close(sampled, x_0, atol=1e-5, rtol=1e-5)


def gaussian_v(schedule, mean, deviation):
    """The best v for data N(mean, deviation²): its expectation given x_t."""

    def predict(x_t, t):
        alpha_bar = schedule.alphas_cumprod[t].view(-1, 1, 1, 1, 1)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        x_0 = mean + gain * (x_t - alpha * mean)
        eps = (x_t - alpha * x_0) / sigma
        return alpha * eps - sigma * x_0

    return predict


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.3), (0.0, 1.0), (2.0, 1.7)])
def test_ddim_turns_noise_into_a_gaussian_of_the_right_mean_and_variance(schedule, mean, deviation):
    x_t = noise(1, 1, 1, 1, 20_000)
    x_t = (x_t - x_t.mean()) / x_t.std()
    predict = gaussian_v(schedule, mean, deviation)
    errors = []
    for steps in (10, 100, 1000):
        sampled = sample_ddim(predict, schedule, x_t, trailing_timesteps(steps))
        assert sampled.mean().item() == pytest.approx(mean, abs=1e-3)
        errors.append(abs(sampled.std().item() - deviation))
    # The last step goes to the mean of what may lie under the least noise, sigma 0.03, which is a little narrower.
    assert errors[2] < 0.02 * deviation
    assert deviation == 1 or errors[2] < errors[1] < errors[0]  # for unit variance every step is exact


def test_the_model_sees_every_timestep_in_order_for_each_sample(schedule):
    seen = []

    def predict(x_t, t):
        seen.append(t.tolist())
        return torch.zeros_like(x_t)

    sample_ddim(predict, schedule, noise(3, 4, 2, 2, 2), [999, 500, 20])
    assert seen == [[999] * 3, [500] * 3, [20] * 3]


def test_a_step_is_ddims_equation_12(schedule):
    x_t, v = noise(1, 4, 2, 3, 3), noise(1, 4, 2, 3, 3, seed=1)
    now, then = schedule.alphas_cumprod[600].item(), schedule.alphas_cumprod[200].item()
    x_0 = now**0.5 * x_t - (1 - now) ** 0.5 * v
    eps = (x_t - now**0.5 * x_0) / (1 - now) ** 0.5
    expected = then**0.5 * x_0 + (1 - then) ** 0.5 * eps
    inputs = []

    def predict(x, _t):
        inputs.append(x)
        return v

    sample_ddim(predict, schedule, x_t, [600, 200])
    torch.testing.assert_close(inputs[1], expected, atol=1e-5, rtol=1e-5)


def test_the_callback_counts_steps_and_what_it_raises_ends_the_walk(schedule):
    calls, evaluations = [], []

    def predict(x_t, _t):
        evaluations.append(1)
        return torch.zeros_like(x_t)

    def callback(done, total):
        calls.append((done, total))
        if done == 2 and len(evaluations) < 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sample_ddim(predict, schedule, noise(1, 4, 1, 2, 2), trailing_timesteps(4), callback)
    assert calls == [(1, 4), (2, 4)] and len(evaluations) == 2
    evaluations += [1] * 3
    sample_ddim(predict, schedule, noise(1, 4, 1, 2, 2), trailing_timesteps(4), callback)
    assert calls[2:] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_guidance_is_a_line_through_both_predictions():
    cond, uncond = noise(2, 4, 3, 5, 6), 0.5 * noise(2, 4, 3, 5, 6, seed=1)
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond)
    torch.testing.assert_close(guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guide(cond, uncond, 7.5) - guide(cond, uncond, 6.5), cond - uncond)


def test_rescaled_guidance_has_the_spread_of_the_conditional_prediction():
    cond = noise(2, 4, 3, 5, 6) * torch.tensor([1.0, 3.0])[:, None, None, None, None]
    uncond = noise(2, 4, 3, 5, 6, seed=1)

    def spread(v):
        return v.flatten(1).std(1)

    plain, full, half = (guide(cond, uncond, 7.5, rescale) for rescale in (0.0, 1.0, 0.5))
    torch.testing.assert_close(plain, uncond + 7.5 * (cond - uncond))
    assert (spread(plain) > 2 * spread(cond)).all()
    torch.testing.assert_close(spread(full), spread(cond))
    torch.testing.assert_close(spread(half), (spread(cond) + spread(plain)) / 2)
    torch.testing.assert_close(
        full / spread(full)[:, None, None, None, None], plain / spread(plain)[:, None, None, None, None]
    )
