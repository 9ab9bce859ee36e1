import pytest
import torch

from magicvideo.evaluation.metrics.motion import block_flow, estimated_warping_error, warping_error

FRAMES, HEIGHT, WIDTH = 4, 24, 40


def translated(right, down):
    """A picture that moves by whole pixels over a larger one."""
    big = torch.rand(3, HEIGHT + 40, WIDTH + 40) * 2 - 1
    tops = [20 - down * t for t in range(FRAMES)]
    lefts = [20 - right * t for t in range(FRAMES)]
    return torch.stack(
        [big[:, y : y + HEIGHT, x : x + WIDTH] for y, x in zip(tops, lefts, strict=True)]
    )


def constant_flow(right, down):
    flow = torch.tensor([float(right), float(down)])
    return flow.view(1, 2, 1, 1).expand(FRAMES - 1, 2, HEIGHT, WIDTH)


def test_a_translation_with_its_own_flow_has_none():
    video = translated(right=3, down=-2)
    found = warping_error(video, constant_flow(3, -2), constant_flow(-3, 2))
    assert found == pytest.approx(0, abs=1e-20)
    assert warping_error(video, constant_flow(0, 0), constant_flow(0, 0)) > 0.3
    assert warping_error(video, constant_flow(-2, 3), constant_flow(2, -3)) > 0.3  # axes matter


def test_half_a_step_is_read_between_pixels():
    ramp = torch.linspace(-1, 1, WIDTH).expand(2, 3, HEIGHT, WIDTH).clone()
    step = 2 / (WIDTH - 1)
    ramp[1] -= step / 2  # moved right by half a pixel
    flow = constant_flow(0.5, 0)[:1]
    assert warping_error(ramp, flow, -flow) == pytest.approx(0, abs=1e-12)


def test_noise_costs_its_variance_in_every_frame():
    noise = 0.1 * torch.randn(FRAMES, 3, HEIGHT, WIDTH)
    still = constant_flow(0, 0)
    assert warping_error(noise, still, still) == pytest.approx(2 * 0.1**2, rel=0.05)


def test_occluded_pixels_do_not_count():
    video = torch.zeros(2, 3, HEIGHT, WIDTH)
    video[1, :, :, :9] = 1.0
    forward, backward = constant_flow(0, 0)[:1], constant_flow(0, 0)[:1].clone()
    assert warping_error(video, forward, backward) == pytest.approx(9 / WIDTH)
    backward[..., :9] = 5.0  # the way back ends elsewhere
    assert warping_error(video, forward, backward) == 0
    backward[:] = 5.0
    assert warping_error(video, forward, backward) == 0  # nothing can be compared


def test_blocks_find_a_translation():
    video = translated(right=3, down=-2)
    flow = block_flow(video[:-1], video[1:])
    assert flow.shape == (FRAMES - 1, 2, HEIGHT, WIDTH)
    inner = flow[..., 8:16, 8:32]
    assert (inner == torch.tensor([3.0, -2.0]).view(1, 2, 1, 1)).all()
    assert estimated_warping_error(video) < 0.2 * video.diff(dim=0).square().mean().item()


def test_a_still_video_does_not_move():
    video = torch.rand(1, 3, 13, 19).expand(3, 3, 13, 19)  # sides that blocks do not divide
    assert (block_flow(video[:-1], video[1:]) == 0).all()
    assert estimated_warping_error(video) == pytest.approx(0, abs=1e-20)
