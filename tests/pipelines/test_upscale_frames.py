import pytest
import torch
from diffusers import DDIMScheduler
from networks import randomise

from magicvideo.diffusion.sampling import make_scheduler
from magicvideo.errors import UserError
from magicvideo.models.upscaler import Upscaler, upsample_bicubic
from magicvideo.pipelines.upscale import upscale_frames

SCHEDULE = DDIMScheduler(
    beta_schedule="squaredcos_cap_v2",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    clip_sample=False,
)
VIDEOS, FRAMES, HEIGHT, WIDTH = 2, 5, 9, 13
SEEDS = [3, 8]


def make_upscaler():
    return Upscaler(widths=(4, 6), num_blocks=(1, 1), residual_scale=0.1, max_noise_level=0.3)


def make_frames(frames=FRAMES, height=HEIGHT, width=WIDTH, videos=VIDEOS):
    return torch.rand(videos, frames, 3, height, width) * 1.6 - 0.8


def run(upscaler, frames, seeds=tuple(SEEDS), scheduler=None, **changes):
    given = {"num_steps": 3, "noise_level": 0.1, **changes}
    scheduler = scheduler or make_scheduler(dict(SCHEDULE.config), "ddim")
    return upscale_frames(upscaler, scheduler, frames, seeds, **given)


@pytest.fixture
def upscaler():
    return randomise(make_upscaler())


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_zero_prediction_gives_the_upsampled_frames(level):
    frames = make_frames()
    made = run(make_upscaler(), frames, num_steps=1, noise_level=level)
    assert made.shape == (VIDEOS, FRAMES, 3, 4 * HEIGHT, 4 * WIDTH)
    # one row and column of padding, which repeats the border, changes nothing in the kernel's reach
    expected = upsample_bicubic(frames.flatten(0, 1), 4).unflatten(0, (VIDEOS, FRAMES))
    torch.testing.assert_close(made, expected.clamp(-1, 1))


def test_the_prediction_is_added_at_its_scale():
    """One step from pure noise: the residual is minus the velocity."""
    upscaler, frames = make_upscaler(), make_frames()
    upscaler.conv_out.bias.data.fill_(-0.7)
    made = run(upscaler, frames, num_steps=1)
    expected = upsample_bicubic(frames.flatten(0, 1), 4).unflatten(0, (VIDEOS, FRAMES)) + 0.1 * 0.7
    torch.testing.assert_close(made, expected.clamp(-1, 1))


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_tiled_and_chunked_output_equals_the_whole(upscaler, sampler):
    """Tiles of several sizes, along both axes and at all borders, over several steps."""
    frames = make_frames(frames=3, height=41, width=75, videos=1)
    made = [
        run(
            upscaler,
            frames,
            seeds=[3],
            scheduler=make_scheduler(dict(SCHEDULE.config), sampler),
            num_steps=3,
            tile=tile,
            frames_at_once=at_once,
        )
        for tile, at_once in ((256, 3), (32, 2), (44, 1))
    ]
    plain = upsample_bicubic(frames[0], 4)[None].clamp(-1, 1)
    assert (made[0] - plain).abs().mean() > 0.05
    assert (made[1] - made[0]).abs().max() < 1e-4
    assert (made[2] - made[0]).abs().max() < 1e-4


def test_no_call_of_the_network_exceeds_the_chunk_sizes(upscaler):
    seen = set()
    upscaler.register_forward_pre_hook(lambda _, given: seen.add(tuple(given[1].shape)))
    frames = make_frames(frames=3, height=41, width=75)
    run(upscaler, frames, num_steps=1, tile=32, frames_at_once=2)
    assert {shape[0] for shape in seen} == {1, 2}
    assert max(max(shape[2:]) for shape in seen) <= 32


def test_a_static_video_stays_static_and_its_pixels_are_sampled(upscaler):
    still = make_frames(frames=1).expand(-1, 4, -1, -1, -1)
    made = run(upscaler, still, frames_at_once=3)
    torch.testing.assert_close(made, made[:, :1].expand_as(made), atol=1e-5, rtol=0)
    other = run(upscaler, still, seeds=[4, 9])
    assert (made - other).abs().mean() > 1e-3


def test_a_seed_gives_the_same_video_in_any_batch(upscaler):
    frames = make_frames()
    together = run(upscaler, frames)
    for i, seed in enumerate(SEEDS):
        assert torch.equal(run(upscaler, frames[i : i + 1], [seed]), together[i : i + 1])
    assert torch.equal(run(upscaler, frames), together)
    cut = run(upscaler, frames[:, :2])
    torch.testing.assert_close(cut, together[:, :2], atol=1e-5, rtol=0)


def test_the_network_gets_the_noise_level_and_the_noisy_frames(upscaler):
    given = []
    upscaler.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    frames = make_frames(height=60, width=64, videos=1)
    run(upscaler, frames, [3], num_steps=1, noise_level=0.2, frames_at_once=FRAMES)
    _, small, timestep, level = given[0]
    noise = small - frames[0]
    assert noise.std() == pytest.approx(0.2, rel=0.02)
    torch.testing.assert_close(noise, noise[:1].expand_as(noise))
    assert level.tolist() == pytest.approx([0.2] * FRAMES)
    assert timestep.tolist() == [999] * FRAMES


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (5, 4)])
def test_frames_of_any_size_are_taken(upscaler, height, width):
    made = run(upscaler, make_frames(height=height, width=width))
    assert made.shape[-2:] == (4 * height, 4 * width)
    assert made.isfinite().all()
    assert made.abs().max() <= 1


def test_padding_is_added_only_at_the_bottom_and_right(upscaler):
    """An odd frame is the corner of the frame that repeats its last row and column."""
    odd = make_frames(height=19, width=21)
    even = torch.nn.functional.pad(odd.flatten(0, 1), (0, 1, 0, 1), mode="replicate")
    even = even.unflatten(0, (VIDEOS, FRAMES))
    torch.testing.assert_close(
        run(upscaler, odd), run(upscaler, even)[..., :76, :84], atol=1e-5, rtol=0
    )


def test_progress_is_reported_up_to_the_total(upscaler):
    told = []
    frames = make_frames()
    run(upscaler, frames, num_steps=3, frames_at_once=2, on_step=lambda *now: told.append(now))
    assert told == [(done, 18) for done in range(19)]  # 2 videos, 3 chunks, 3 steps


def test_only_the_network_uses_half_precision():
    upscaler = randomise(make_upscaler()).to(torch.bfloat16)
    made = run(upscaler, make_frames())
    assert made.dtype == torch.float32
    assert made.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_steps": 0}, "num_steps=0 of the upscaler must be from 1 to 1000"),
        ({"num_steps": 1001}, "num_steps=1001 of the upscaler must be from 1 to 1000"),
        ({"noise_level": -0.1}, "noise_level=-0.1 must be from 0 to 0.3"),
        ({"noise_level": 0.31}, "noise_level=0.31 must be from 0 to 0.3, the maximum"),
        ({"noise_level": float("nan")}, "noise_level=nan must be from"),
        ({"seeds": [1]}, "2 videos have 1 seeds; give one per video"),
        ({"frames_at_once": 0}, "frames_at_once=0 must be 1 or more"),
        ({"tile": 12}, "tile=12 is too small for this upscaler; give 26 or more"),
    ],
)
def test_mistakes_give_one_sentence(upscaler, changes, sentence):
    with pytest.raises(UserError) as raised:
        run(upscaler, make_frames(), **changes)
    assert sentence in str(raised.value)


def test_the_smallest_tile_in_the_message_works(upscaler):
    frames = make_frames(height=4, width=39, frames=1)
    whole, tiled = run(upscaler, frames), run(upscaler, frames, tile=26)
    assert (whole - tiled).abs().max() < 1e-4
