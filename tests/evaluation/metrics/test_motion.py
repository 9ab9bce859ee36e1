import math

import pytest
import torch

from magicvideo.evaluation.metrics.motion import (
    change_at_joints,
    corner_mask,
    flicker,
    static_mask,
    temporal_change,
    temporal_power,
)

B, FRAMES, HEIGHT, WIDTH = 2, 41, 48, 64


def test_a_static_video_has_no_flicker():
    frames = torch.randn(B, 1, 3, HEIGHT, WIDTH).expand(B, FRAMES, 3, HEIGHT, WIDTH)
    assert temporal_change(frames).tolist() == [0, 0]
    assert flicker(frames, corner_mask(HEIGHT, WIDTH)).tolist() == [0, 0]


def test_independent_noise_scores_its_known_multiple():
    deviation = torch.tensor([1.0, 3.0]).view(B, 1, 1, 1, 1)
    frames = torch.randn(B, FRAMES, 3, HEIGHT, WIDTH) * deviation
    expected = [2 / math.sqrt(math.pi), 6 / math.sqrt(math.pi)]
    assert temporal_change(frames).tolist() == pytest.approx(expected, rel=0.01)
    assert flicker(frames, corner_mask(HEIGHT, WIDTH)).tolist() == pytest.approx(expected, rel=0.02)


def test_change_is_per_step_and_per_pixel():
    frames = torch.zeros(1, 3, 3, 5, 7)
    frames[:, 1, :, 2, 3] = 1.0  # one pixel of 35 goes up, and down again
    assert temporal_change(frames).item() == pytest.approx(1 / 35)


def test_flicker_depends_only_on_the_corners():
    frames = torch.zeros(1, 2, 3, 16, 24)
    frames[:, 1, :, 2:14, :] = 1.0
    frames[:, 1, :, :, 3:21] = 1.0
    assert flicker(frames, corner_mask(16, 24)).item() == 0
    frames[:, 1, :, :2, :3] = 1.0
    assert flicker(frames, corner_mask(16, 24)).item() == pytest.approx(1 / 4)


def test_small_frames_have_corners_too():
    assert corner_mask(3, 5).sum() == 4


def test_a_region_is_static_where_no_frame_and_no_colour_differs():
    video = torch.rand(1, 3, 5, 7).repeat(4, 1, 1, 1)
    video[2, 1, 3, 6] += 0.01
    video[3, 0, 0, 1] += 0.01
    static = static_mask(video)
    assert static.shape == (5, 7)
    assert static.logical_not().nonzero().tolist() == [[0, 1], [3, 6]]


@pytest.mark.parametrize("frames", [16, 15])
def test_power_is_the_variance_over_time_split_by_frequency(frames):
    latents = torch.randn(frames, 5, 6, 7, generator=torch.Generator().manual_seed(1)) + 3
    power = temporal_power(latents)
    assert power.shape == (frames // 2,)
    variance = latents.double().var(dim=0, correction=0).mean()
    assert power.sum().item() == pytest.approx(variance.item())


def test_a_wave_has_its_power_at_its_own_frequency():
    time = torch.arange(16) / 16
    wave = 2 * torch.cos(2 * math.pi * 3 * time)
    power = temporal_power(wave[:, None, None, None].expand(16, 2, 4, 5))
    expected = [0, 0, 2.0, 0, 0, 0, 0, 0]
    assert power.tolist() == pytest.approx(expected, abs=1e-6)
    assert temporal_power(torch.ones(16, 2, 4, 5)).sum() == 0


def test_steady_motion_has_no_discontinuity():
    steps = torch.arange(FRAMES, dtype=torch.float32).view(FRAMES, 1, 1, 1)
    video = (0.01 * steps).expand(FRAMES, 3, HEIGHT, WIDTH)
    assert change_at_joints(video, [7, 20]) == pytest.approx((1.0, 1.0))


def test_a_jump_is_detected_only_at_its_joint():
    noise = torch.randn(FRAMES, 3, HEIGHT, WIDTH)
    jump = noise.clone()
    jump[20:] += 3.0
    at_jump, tone = change_at_joints(jump, [20])
    assert at_jump > 2
    assert tone > 100
    elsewhere, calm = change_at_joints(jump, [9, 30])
    assert elsewhere == pytest.approx(1, abs=0.1)
    assert calm < 1


@pytest.mark.parametrize("joints", [[], [0], [FRAMES]])
def test_impossible_joints_are_refused(joints):
    with pytest.raises(ValueError, match="joints"):
        change_at_joints(torch.zeros(FRAMES, 3, 2, 2), joints)
