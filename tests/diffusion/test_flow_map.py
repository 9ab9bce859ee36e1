"""Flow maps: straight lines, targets by central differences, and the scheduler's steps."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from magicvideo.diffusion.flow_map import FlowMapScheduler, LinearPath, flow_map_target

COSINE = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "clip_sample": False,
}


@pytest.mark.parametrize("config", [COSINE, STABLE_DIFFUSION])
def test_times_and_steps_are_inverse_and_in_order(config):
    path = LinearPath(DDIMScheduler(**config))
    steps = torch.tensor([-1.0, 0.0, 0.4, 17.0, 249.3, 998.9, 999.0])
    times = path.time_at(steps)
    torch.testing.assert_close(path.step_at(times), steps, atol=2e-3, rtol=0)
    assert times[0] == 0
    assert (times[1:] > times[:-1]).all()
    assert times[-1] == pytest.approx(path.last)
    assert (path.last == pytest.approx(1.0)) == (config is COSINE)


@pytest.mark.parametrize("config", [COSINE, STABLE_DIFFUSION])
def test_velocity_is_noise_less_data_for_a_perfect_prediction(config):
    scheduler = DDIMScheduler(**config)
    path = LinearPath(scheduler)
    data, noise = torch.randn(3, 4, 2, 5, 6), torch.randn(3, 4, 2, 5, 6)
    steps = torch.tensor([3, 400, 985])
    time = path.time_at(steps)[:, None, None, None, None]
    points = torch.lerp(data, noise, time)
    noisy = scheduler.add_noise(data, noise, steps)
    torch.testing.assert_close(points * path.scale(time), noisy, atol=1e-5, rtol=1e-5)
    prediction = noise
    if config is COSINE:
        prediction = scheduler.get_velocity(data, noise, steps)
    velocity = path.velocity(prediction, points, path.time_at(steps))
    torch.testing.assert_close(velocity, noise - data, atol=2e-4, rtol=1e-4)
    back = path.prediction(velocity, points, path.time_at(steps))
    torch.testing.assert_close(back, prediction, atol=1e-5, rtol=1e-4)


def test_steps_of_a_straight_trajectory_are_exact_whatever_their_number():
    scheduler = FlowMapScheduler.of_process(DDIMScheduler(**COSINE).config)
    data, noise = torch.randn(1, 3, 2, 4, 4), torch.randn(1, 3, 2, 4, 4)
    for steps in (1, 2, 4, 7):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[0] == 999
        assert scheduler.target_of(scheduler.timesteps[-1]) == -1
        sample = noise
        for timestep in scheduler.timesteps:
            kept = scheduler.alphas_cumprod[timestep]
            perfect = kept.sqrt() * noise - (1 - kept).sqrt() * data
            (sample,) = scheduler.step(perfect, timestep, sample)
        torch.testing.assert_close(sample, data, atol=2e-5, rtol=0)


def test_small_steps_equal_ddim():
    """The trajectory is that of DDIM: both agree as steps become small."""
    ddim = DDIMScheduler(**COSINE)
    ours = FlowMapScheduler.of_process(ddim.config)
    assert torch.equal(ours.alphas_cumprod, ddim.alphas_cumprod)

    def predict(sample, timestep):  # of Gaussian data with a deviation of 0.3
        kept = ddim.alphas_cumprod[timestep]
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        variance = 0.09 * kept + 1 - kept
        return sample * (alpha * sigma - sigma * 0.09 * alpha) / variance

    ends = {}
    noise = torch.randn(1, 2, 3, 2, 2)
    for name, scheduler in {"ddim": ddim, "ours": ours}.items():
        scheduler.set_timesteps(500)
        sample = noise
        for timestep in scheduler.timesteps:
            output = predict(sample, timestep)
            sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        ends[name] = sample
    torch.testing.assert_close(ends["ours"], ends["ddim"], rtol=2e-2, atol=1e-4)
    torch.testing.assert_close(ends["ours"], 0.3 * noise, rtol=2e-2, atol=1e-4)


def test_where_both_times_are_equal_the_target_is_the_direction():
    points, direction, time = torch.randn(5, 3), torch.randn(5, 3), torch.rand(5)
    found = flow_map_target(
        lambda points, _time, _target: points.exp(), points, direction, time, time, 0.005
    )
    assert torch.equal(found, direction)


DEVIATION = 0.4


def deviation(time):
    return ((1 - time) ** 2 * DEVIATION**2 + time**2).sqrt()


def exact_mean_direction(points, time, target_time):
    """For Gaussian data: trajectories keep their quantile."""
    factor = (deviation(target_time) / deviation(time))[:, None]
    return points * (1 - factor) / (time - target_time)[:, None]


def direction_of(points, time):
    slope = (time - (1 - time) * DEVIATION**2) / deviation(time) ** 2
    return points * slope[:, None]


def test_the_exact_flow_map_is_its_own_target():
    time, target_time = torch.tensor([0.9, 0.5, 0.31, 0.995]), torch.tensor([0.1, 0.0, 0.3, 0.4])
    points = torch.randn(4, 3, dtype=torch.float64)
    time, target_time = time.double(), target_time.double()
    direction = direction_of(points, time)
    found = flow_map_target(exact_mean_direction, points, direction, time, target_time, 0.005)
    expected = exact_mean_direction(points, time, target_time)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)
    assert (expected - direction).abs().max() > 0.1


class MeanDirection(nn.Module):
    """A velocity that is linear in the point, with a learned factor of both times."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1)
        )

    def forward(self, points, time, target_time):
        features = torch.stack([time, target_time, time**2, time * target_time], dim=-1)
        return points * self.layers(features)


def test_a_student_learns_the_exact_flow_map_of_a_gaussian():
    torch.manual_seed(3)
    student = MeanDirection()
    optimizer = torch.optim.Adam(student.parameters(), lr=4e-3)
    for step in range(700):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (700 - step) / 300)
        time = torch.rand(96)
        target_time = time * torch.rand(96)
        target_time[:48] = time[:48]
        target_time[48:72] = 0
        points = deviation(time)[:, None] * torch.randn(96, 3)
        direction = direction_of(points, time)
        target = flow_map_target(student, points, direction, time, target_time, 0.005)
        loss = (student(points, time, target_time) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = torch.randn(64, 3)
    with torch.no_grad():
        for times in ([1.0, 0.0], [1.0, 0.5, 0.0], [1.0, 0.75, 0.5, 0.25, 0.0]):
            points = noise
            for now, following in itertools.pairwise(times):
                time, target_time = torch.full((64,), now), torch.full((64,), following)
                points = points - (now - following) * student(points, time, target_time)
            # the exact map shrinks the noise to the deviation of the data
            ratio = (points * noise).sum() / noise.square().sum()
            assert ratio.item() == pytest.approx(DEVIATION, abs=0.03), times
    # one Euler step of the direction alone ends elsewhere: at the mean of the data
    euler = noise - direction_of(noise, torch.ones(64))
    torch.testing.assert_close(euler, torch.zeros_like(noise))
