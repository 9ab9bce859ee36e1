"""Motion, given first frames, and videos of any length."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from continuing_model import MOST_GIVEN, frame_latents, make_continuing_pipeline
from PIL import Image
from tiny_model import FRAMES, INSERTED, SIDE, UPSCALING, frames_of

from magicvideo.diffusion.noise import noise_covariance
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import encode_frames
from magicvideo.pipelines.image_condition import fit_frames, latents_of
from magicvideo.pipelines.keyframes import WindowDenoiser, plan_windows
from magicvideo.pipelines.request import GenerationSettings, request_from_json
from magicvideo.pipelines.text_to_video import CallInputs, MagicVideoPipeline, rebatch
from magicvideo.pipelines.video import write_video

LONG = 2 * FRAMES + 3


@pytest.fixture(scope="module")
def continuing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "continuing"
    make_continuing_pipeline().save_pretrained(folder)
    return MagicVideoPipeline.from_pretrained(folder)


def keys_of(pipeline, **settings):
    request = pipeline.build_requests(["a cat"], [3], GenerationSettings(**settings))[0]
    tokens = pipeline.encode_condition(request)
    return pipeline.sample_keyframes(request, *tokens)


# ---------------------------------------------------------------------------- motion


def test_the_motion_score_has_an_effect_and_is_stored_in_the_file(continuing):
    calm, wild = (
        continuing("a cat", seed=3, motion=np.float32(score), stages=("keyframes",)).videos[0]
        for score in (-1.0, 2.0)
    )
    free = frames_of(continuing, "a cat", seed=3, stages=("keyframes",))[0]
    assert (calm.frames - wild.frames).abs().mean() > 1e-4
    assert (calm.frames - free).abs().mean() > 1e-4
    assert request_from_json(wild.request.to_json()) == wild.request
    assert wild.request.motion == 2.0
    assert torch.equal(continuing.generate(wild.request).frames, wild.frames)


def test_a_model_without_a_motion_score_refuses_one(pipeline):
    with pytest.raises(UserError, match="motion is 1; this model was trained without"):
        pipeline("a cat", motion=1.0)
    with pytest.raises(UserError, match="The motion is 9; it must be a number from -4 to 4"):
        pipeline("a cat", motion=9)


# ---------------------------------------------------------------------------- first frame


def picture(width=31, height=24):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((4 * width, 4 * height), Image.Resampling.BICUBIC)


def test_an_image_is_the_first_frame_resized_to_cover_it(continuing):
    image = picture()
    video = continuing("a cat", image=image, seed=3, stages=("keyframes",)).videos[0]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    small = fit_frames(pixels[None], SIDE, SIDE)
    expected = encode_frames(continuing.vae, small[None])
    keys = keys_of_request(continuing, video.request)
    torch.testing.assert_close(keys[:, :1], expected)
    assert torch.equal(continuing.decode(keys)[0], video.frames)
    # the request holds the picture, so nothing else is needed
    assert video.request.image_condition is None
    assert torch.equal(continuing.generate(video.request).frames, video.frames)
    other = continuing("a dog", image=image, seed=3, stages=("keyframes",)).videos[0]
    assert torch.equal(other.frames[0], video.frames[0])
    assert (other.frames[1:] - video.frames[1:]).abs().mean() > 1e-4


def keys_of_request(pipeline, request):
    return pipeline.sample_keyframes(request, *pipeline.encode_condition(request))


def test_an_image_without_a_prompt_also_replaces_the_text(continuing):
    video = continuing(image=picture(), seed=3, stages=("keyframes",)).videos[0]
    assert video.request.first_frame is not None
    assert video.request.image_condition is not None


def test_resizing_covers_the_frame_and_keeps_the_centre():
    frame = torch.linspace(-1, 1, 40).expand(1, 3, 20, 40)
    fitted = fit_frames(frame, 10, 10)
    assert fitted.shape == (1, 3, 10, 10)
    # the middle half of the ramp is left
    torch.testing.assert_close(
        fitted[0, 0, 5, [0, -1]], torch.tensor([-0.46, 0.46]), atol=0.02, rtol=0
    )
    assert fit_frames(frame, 20, 40) is frame


def test_damaged_latents_of_a_first_frame_are_refused(continuing):
    first = continuing.encode_first_frame(picture(), GenerationSettings())
    with pytest.raises(UserError, match="latents of the first frame are damaged"):
        latents_of(first, (3, 5, 5))
    with pytest.raises(UserError, match="latents of the first frame are damaged"):
        latents_of(replace(first, latents="?"), (3, 4, 4))


def test_one_key_frame_is_only_the_image(continuing):
    frames = frames_of(continuing, "a cat", image=picture(), num_frames=1, stages=("keyframes",))
    assert frames.shape[1] == 1


def test_other_models_refuse_a_first_frame_and_long_videos(pipeline, continuing, tmp_path):
    first = continuing.encode_first_frame(picture(), GenerationSettings())
    request = pipeline.build_requests(["a cat"], [3], GenerationSettings())[0]
    with pytest.raises(UserError, match="trained without given frames"):
        pipeline.generate(replace(request, first_frame=first))
    with pytest.raises(
        UserError, match=f"is {LONG}; this model supports at most {FRAMES}, because"
    ):
        pipeline("a cat", num_frames=LONG)
    with pytest.raises(UserError, match="cannot generate endless videos"):
        pipeline.stream("a cat")
    with pytest.raises(UserError, match="cannot extend a video"):
        pipeline.continue_video(write_cat(pipeline, tmp_path), GenerationSettings())


# ---------------------------------------------------------------------------- given frames


@pytest.mark.parametrize("given", [1, 3])
def test_cached_given_frames_equal_those_that_every_step_computes(continuing, given):
    clean, noisy = frame_latents(1, given), frame_latents(2, FRAMES - given)
    tokens, negative = continuing.encode_prompt("a cat")
    both, fps = torch.cat([negative, tokens]), torch.tensor([7.0, 7.0])
    twice, step = noisy.repeat(2, 1, 1, 1, 1), torch.tensor([600, 600])
    cached, whole = (
        WindowDenoiser(continuing.unet, clean, 0.5, use_cache=cached) for cached in (True, False)
    )
    with torch.no_grad():
        torch.testing.assert_close(
            cached(twice, step, both, fps), whole(twice, step, both, fps), atol=2e-5, rtol=1e-4
        )
        # after the end of guidance the same cache serves the prompt alone
        alone = (noisy, step[:1], tokens, fps[:1])
        torch.testing.assert_close(cached(*alone), whole(*alone), atol=2e-5, rtol=1e-4)


def test_given_frames_are_computed_once(continuing, monkeypatch):
    calls = []
    compute = type(continuing.unet).cache_frames
    monkeypatch.setattr(
        type(continuing.unet),
        "cache_frames",
        lambda self, *arguments: calls.append(1) or compute(self, *arguments),
    )
    continuing("a cat", image=picture(), guidance_stop=0.4, stages=("keyframes",), seed=1)
    assert len(calls) == 1


# ---------------------------------------------------------------------------- windows


@pytest.mark.parametrize("num_frames", [1, 2, 5, 6, 7, 13, 40])
@pytest.mark.parametrize("given", [0, 1, 3])
def test_windows_sample_each_frame_once_after_existing_frames(num_frames, given):
    num_frames = max(num_frames, given)
    windows = list(plan_windows(num_frames, 5, given, 2))
    sampled = [frame for window in windows for frame in range(window.first, window.stop)]
    assert sampled == list(range(given, num_frames))
    assert all(window.stop - window.first + window.num_given <= 5 for window in windows)
    assert all(window.first - window.num_given >= 0 for window in windows)
    assert [window.index for window in windows] == list(range(len(windows)))
    covered = [window.keys for window in windows]
    assert covered[0].start == 0
    assert all(b.start == a.stop - 1 for a, b in pairwise(covered))
    assert covered[-1].stop == num_frames


def test_a_long_video_starts_with_the_short_one(continuing):
    short = keys_of(continuing)
    long = keys_of(continuing, num_frames=LONG)
    assert long.shape[1] == LONG
    assert torch.equal(long[:, :FRAMES], short)
    assert torch.equal(keys_of(continuing, num_frames=LONG + 4)[:, :LONG], long)
    assert not torch.equal(long, keys_of(continuing, num_frames=LONG, overlap=2))
    assert long[:, FRAMES:].std() > 0.1


def test_a_window_continues_the_last_frames_of_the_previous_one(continuing):
    keys = keys_of(continuing, num_frames=FRAMES + 1, overlap=MOST_GIVEN)
    request = continuing.build_requests(
        ["a cat"], [3], GenerationSettings(num_frames=FRAMES + 1, overlap=MOST_GIVEN)
    )[0]
    tokens, negative = continuing.encode_condition(request)
    windows = list(plan_windows(FRAMES + 1, FRAMES, 0, MOST_GIVEN))
    again = continuing._sample_window(
        request,
        windows[1],
        keys[:, FRAMES - MOST_GIVEN : FRAMES],
        tokens,
        negative,
        CallInputs(),
        None,
    )
    assert torch.equal(again, keys[:, FRAMES:])


def test_the_noise_of_every_window_has_the_covariance_of_training(continuing):
    """Also for frames after given ones, whose noise is not part of the input."""
    settings = GenerationSettings(num_frames=LONG)
    windows = list(plan_windows(LONG, FRAMES, 0, 1))
    samples = []
    for seed in range(300):
        request = continuing.build_requests(["a cat"], [seed], settings)[0]
        samples.append(continuing._window_noise(request, windows[1], CallInputs()).flatten(2))
    values = torch.cat(samples).transpose(0, 1).flatten(1).double()
    expected = noise_covariance(
        len(values), continuing.config.noise_correlation, continuing.config.noise_decay
    )
    torch.testing.assert_close(torch.cov(values), expected, atol=0.04, rtol=0)


def test_a_long_video_streams_the_frames_that_the_call_returns(continuing):
    video = continuing("a cat", seed=3, num_frames=LONG).videos[0]
    assert len(video.frames) == LONG + (LONG - 1) * INSERTED == video.request.video_frames
    told = []
    streamed = list(continuing.iter_frames(video.request, lambda *event: told.append(event)))
    assert torch.equal(torch.stack(streamed), video.frames)
    assert torch.equal(continuing.generate(video.request).frames, video.frames)
    assert told[0] == ("key frames", 0, 3 * 3)
    assert told[-1] == ("key frames", 3 * 3, 3 * 3)
    assert continuing.capabilities.num_windows(video.request) == 3


def test_key_frames_of_an_earlier_attempt_are_reused(continuing, monkeypatch):
    request = continuing.build_requests(["a cat"], [3], GenerationSettings(num_frames=LONG))[0]
    kept = []
    whole = torch.stack(list(continuing.iter_frames(request, on_keys=kept.append)))
    made = torch.cat(kept[:2], dim=1)
    sampled = []
    sample = MagicVideoPipeline._sample_window
    monkeypatch.setattr(
        MagicVideoPipeline,
        "_sample_window",
        lambda self, *arguments: sampled.append(1) or sample(self, *arguments),
    )
    assert torch.equal(torch.stack(list(continuing.iter_frames(request, made=made))), whole)
    assert len(sampled) == len(kept) - 2


def test_a_stream_is_endless_and_yields_frames_immediately(continuing):
    stream = continuing.stream("a cat", seed=3, output_type="pt", stages="keyframes")
    frames = [next(stream) for _ in range(LONG)]
    assert frames[0].shape == (3, SIDE, SIDE)
    video = continuing("a cat", seed=3, num_frames=LONG, stages="keyframes").videos[0]
    torch.testing.assert_close(torch.stack(frames), (video.frames + 1) / 2)


def test_seconds_set_the_length(continuing):
    model = continuing.capabilities
    for seconds in (0.5, 2.0, 3.3):
        video = model.with_length(GenerationSettings(fps=6.0), seconds)
        frames = video.num_frames + (video.num_frames - 1) * INSERTED
        assert frames / (6 * (INSERTED + 1)) == pytest.approx(seconds, abs=0.5 / 6)
    with pytest.raises(UserError, match="Both a number of frames and a length in seconds"):
        continuing("a cat", seconds=2, num_frames=3)
    with pytest.raises(UserError, match="The length is -1 seconds"):
        continuing("a cat", seconds=-1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_frames": LONG, "overlap": 4}, "overlap is 4; it must be an integer from 1 to 3"),
        ({"num_frames": 4, "overlap": 1}, "it only applies to videos of more than 5 key frames"),
    ],
)
def test_impossible_overlaps_are_refused(continuing, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        continuing("a cat", **settings)


def test_rebatching_keeps_every_frame_in_order():
    parts = [
        torch.arange(n)[:, None, None, None].float() + start
        for start, n in ((0, 5), (5, 1), (6, 4))
    ]
    batches = list(rebatch(parts, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.cat(batches).flatten().tolist() == list(range(10))


# ---------------------------------------------------------------------------- extending


def write_cat(pipeline, folder):
    path = folder / "cat.mp4"
    video = pipeline("a cat", seed=5).videos[0]
    write_video(video.frames, video.request, path)
    return path


def test_a_video_is_extended_from_its_end(continuing, tmp_path):
    path = write_cat(continuing, tmp_path)
    longer = continuing(extend=path, num_frames=4).videos[0]
    own = FRAMES + (FRAMES - 1) * INSERTED
    assert longer.frames.shape == (
        own + 4 * (INSERTED + 1),
        3,
        SIDE * UPSCALING,
        SIDE * UPSCALING,
    )
    # prompt and seed are those of the file
    assert (longer.request.prompt, longer.request.seed) == ("a cat", 5)
    assert longer.request.unrecorded == ("extend",)
    streamed = list(continuing.stream(extend=path, seconds=4 / 7.0, output_type="pt"))
    assert len(streamed) >= 3 * (INSERTED + 1)
    shown = torch.stack(streamed[:6]) * 2 - 1
    torch.testing.assert_close(shown, longer.frames[own : own + 6], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="was made with extend"):
        continuing.generate(longer.request)


def test_a_video_to_extend_must_fit_the_model(continuing, tmp_path):
    path = write_cat(continuing, tmp_path)
    with pytest.raises(UserError, match="the video has 7 key frames per second"):
        continuing(extend=path, fps=9)
    with pytest.raises(UserError, match="Both an image and a video"):
        continuing(extend=path, image=picture())
    with pytest.raises(UserError, match=r"no\.mp4 cannot be used"):
        continuing("a cat", extend=tmp_path / "no.mp4")


# ---------------------------------------------------------------------------- model folders


def test_the_folder_records_given_frames_and_motion_support(continuing):
    model = continuing.capabilities
    assert (model.max_given_frames, model.has_motion, model.default_overlap) == (
        MOST_GIVEN,
        True,
        1,
    )
