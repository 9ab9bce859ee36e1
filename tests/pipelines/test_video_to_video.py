import subprocess
import sys
import weakref

import pytest
import torch
from einops import rearrange
from networks import randomise
from tiny_model import AUTOENCODER, INSERTED, UPSCALING

from magicvideo.diffusion.sampling import make_scheduler
from magicvideo.errors import UserError
from magicvideo.media.video_io import VideoStream
from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.conditioning import encode_text
from magicvideo.models.video_vae import VideoPatchAutoencoder
from magicvideo.pipelines import video_to_video
from magicvideo.pipelines.keyframes import interpolate_latents
from magicvideo.pipelines.request import ChunkSizes
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.pipelines.upscale import upscale_frames
from magicvideo.pipelines.video_to_video import interpolate_video, upscale_video

STEP = INSERTED + 1


def footage_of(frames, fps=5.0):
    return VideoStream(iter(frames), len(frames), *frames.shape[-2:], fps)


def random_frames(length, height=24, width=24):
    return torch.rand(length, 3, height, width) * 2 - 1


def interpolated(pipeline, frames, **choices):
    return torch.stack(list(interpolate_video(pipeline, footage_of(frames), **choices).frames))


def upscaled(pipeline, frames, **choices):
    return torch.stack(list(upscale_video(pipeline, footage_of(frames), **choices).frames))


@pytest.fixture(scope="module")
def remembering(pipeline):
    """The tiny model with a decoder that attends to frames of earlier windows."""
    torch.manual_seed(3)
    vae = VideoPatchAutoencoder(**AUTOENCODER, temporal_heads=2, temporal_window_size=5)
    return MagicVideoPipeline(
        **{**pipeline.components, "vae": randomise(vae)}, noise_correlation=0.3
    )


def test_videos_of_any_length_and_size_are_interpolated(pipeline, monkeypatch):
    footage = random_frames(8, 31, 45)
    made = interpolate_video(pipeline, footage_of(footage))
    assert (made.num_frames, made.height, made.width, made.fps) == (7 * STEP + 1, 31, 45, 5 * STEP)
    whole = torch.stack(list(made.frames))
    assert whole.shape == (7 * STEP + 1, 3, 31, 45)
    monkeypatch.setattr(video_to_video, "_GAPS_AT_ONCE", 3)
    in_parts = interpolated(pipeline, footage)
    assert in_parts.shape == whole.shape
    # the given frames are the same in parts, since frames pass the autoencoder one by one
    torch.testing.assert_close(in_parts[::STEP], whole[::STEP], atol=1e-5, rtol=0)


def test_batches_of_large_frames_have_fewer_gaps(pipeline, monkeypatch):
    seen = []
    fill = video_to_video.interpolate_latents

    def counted(interpolator, scheduler, keys, *rest, **choices):
        seen.append(keys.shape[1] - 1)
        return fill(interpolator, scheduler, keys, *rest, **choices)

    monkeypatch.setattr(video_to_video, "interpolate_latents", counted)
    interpolated(pipeline, random_frames(9, 24, 30))
    assert seen == [8]
    seen.clear()
    monkeypatch.setattr("magicvideo.media.video_io._FULL_BATCH_AREA", 24 * 30 // 5 + 1)
    interpolated(pipeline, random_frames(9, 24, 30))
    assert seen == [3, 3, 2]


@pytest.mark.parametrize("gaps_at_once", [15, 4])
def test_chunks_decode_to_the_same_frames_as_the_whole(remembering, monkeypatch, gaps_at_once):
    frames, length = random_frames(8, 26, 24), 8
    monkeypatch.setattr(video_to_video, "_GAPS_AT_ONCE", gaps_at_once)
    monkeypatch.setattr(video_to_video, "DEFAULT_CHUNKS", ChunkSizes(decoder_frames=3))
    made = interpolated(remembering, frames, prompt="a cat", seed=4, num_steps=2)
    vae = remembering.vae
    padded = torch.nn.functional.pad(frames, (0, 0, 0, 10), mode="replicate")[None]
    with torch.no_grad():
        keys = encode_frames(vae, padded)
        tokens = encode_text(remembering.text_encoder, remembering.tokenizer, ["a cat"])
        parts = [
            interpolate_latents(
                remembering.interpolator,
                make_scheduler(remembering.scheduler.config, "ddim"),
                keys[:, first : first + gaps_at_once + 1],
                tokens,
                fps=5.0 * STEP,
                seed=4,
                num_steps=2,
                noise_correlation=0.3,
                noise_level=0,
            )[:, min(first, 1) :]
            for first in range(0, length - 1, gaps_at_once)
        ]
        latents = torch.cat(parts, dim=1)
        expected = decode_latents(vae, latents, latents.shape[1])[0, ..., :26, :24]
        forgetful = decode_latents(vae, rearrange(latents, "1 f c h w -> f 1 c h w"))[:, 0]
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    assert (forgetful[..., :26, :24] - expected).abs().max() > 1e-3


def test_the_prompt_the_seed_and_the_steps_matter(pipeline):
    frames = random_frames(3)
    base = interpolated(pipeline, frames)
    assert torch.equal(interpolated(pipeline, frames), base)
    for change in ({"prompt": "a dog"}, {"seed": 1}, {"num_steps": 1}):
        other = interpolated(pipeline, frames, **change)
        assert (other - base).abs().mean() > 1e-5, change
        torch.testing.assert_close(other[::STEP], base[::STEP], atol=1e-5, rtol=0)


def test_a_video_is_upscaled(pipeline):
    frames = random_frames(3, 13, 22)
    made = upscale_video(pipeline, footage_of(frames))
    sizes = (made.num_frames, made.height, made.width, made.fps)
    assert sizes == (3, UPSCALING * 13, UPSCALING * 22, 5.0)
    large = torch.stack(list(made.frames))
    assert large.shape == (3, 3, UPSCALING * 13, UPSCALING * 22)
    assert torch.equal(upscaled(pipeline, frames), large)
    for change in ({"seed": 1}, {"num_steps": 1}):
        assert (upscaled(pipeline, frames, **change) - large).abs().mean() > 1e-5


def test_upscaling_in_batches_equals_upscaling_the_whole(pipeline):
    frames = random_frames(10, 13, 22)
    expected = upscale_frames(
        pipeline.upscaler,
        make_scheduler(pipeline.upscaler_scheduler.config, "ddim"),
        frames[None],
        [6],
        num_steps=2,
        noise_level=0.0,
    )[0]
    assert torch.equal(upscaled(pipeline, frames, seed=6, num_steps=2), expected)


def test_a_stage_continues_from_another_stage(pipeline):
    between = interpolate_video(pipeline, footage_of(random_frames(3)))
    made = upscale_video(pipeline, between)
    assert (made.num_frames, made.height) == (2 * STEP + 1, UPSCALING * 24)
    assert len(list(made.frames)) == 2 * STEP + 1


def test_a_model_without_the_stage_gives_an_error(pipeline):
    footage = footage_of(random_frames(2))
    for part, stage, run in (
        ("interpolator", "interpolation", interpolate_video),
        ("upscaler", "upscaler", upscale_video),
    ):
        without = MagicVideoPipeline(**{**pipeline.components, part: None})
        with pytest.raises(UserError, match=f"no stage {stage}"):
            run(without, footage)


def test_every_stage_reports_progress_from_zero_to_its_total(pipeline, monkeypatch):
    monkeypatch.setattr(video_to_video, "_GAPS_AT_ONCE", 3)
    monkeypatch.setattr(video_to_video, "DEFAULT_CHUNKS", ChunkSizes(decoder_frames=4))
    told = {}

    def progress(stage, done, total):
        told.setdefault((stage, total), []).append(done)

    frames = random_frames(8)
    interpolated(pipeline, frames, num_steps=2, progress=progress)
    upscaled(pipeline, frames, num_steps=3, progress=progress)
    assert told == {
        ("encoding", 8): [0, 3, 6, 8],
        ("interpolation", 6): [0, 1, 2, 3, 4, 5, 6],
        ("decoding", 22): [0, 4, 8, 10, 14, 18, 19, 22],
        ("super-resolution", 6): [0, 1, 2, 3, 4, 5, 6],
    }


@pytest.mark.parametrize("run", [interpolate_video, upscale_video])
def test_longer_videos_keep_no_more_frames_in_memory(pipeline, run):
    """Neither input frames nor batches of frames accumulate in memory."""

    def most_of(length):
        alive, held, seen = weakref.WeakSet(), [], []

        def frames():
            for _ in range(length):
                frame = torch.rand(3, 24, 24)
                alive.add(frame)
                held.append(len(alive))
                yield frame

        hooks = [
            module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
            for network in (pipeline.vae, pipeline.interpolator, pipeline.upscaler)
            for module in network.modules()
        ]
        made = run(pipeline, VideoStream(frames(), length, 24, 24, 5.0), num_steps=1)
        ahead = [
            len(held) * (made.num_frames / length) - done for done, _ in enumerate(made.frames)
        ]
        for hook in hooks:
            hook.remove()
        return max(held), max(seen), max(ahead) < 100

    assert most_of(40) == most_of(100)
    assert most_of(100)[2]


MEASURE = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from magicvideo.media.video_io import VideoStream, open_video_stream, write_video_stream
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.pipelines.video_to_video import interpolate_video, upscale_video

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024

def stills(length):
    return (torch.full((3, 64, 96), k % 2 - 0.5) for k in range(length))

pipeline = MagicVideoPipeline.from_pretrained(sys.argv[1])
for length in (30, 150):
    write_video_stream(VideoStream(stills(length), length, 64, 96, 9.0), Path(f"{length}.mp4"))
    for run in (interpolate_video, upscale_video):
        made = run(pipeline, open_video_stream(Path(f"{length}.mp4")), num_steps=1)
        write_video_stream(made, Path(f"{length}-{run.__name__}.mp4"))
    print(peak())
"""


@pytest.mark.slow
def test_longer_videos_take_no_more_memory(tiny_model, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tiny_model],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    short, long = map(int, done.stdout.split())
    # as floats, the large frames of the longer one would be 44 MB, and its interpolated ones 33
    assert long - short < 20
