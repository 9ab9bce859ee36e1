import shutil

import pytest
import torch

from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import FrameSize, read_manifest, write_manifest
from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.attributes import background_colour
from magicvideo.evaluation.prompt_sets import (
    background_only_videos,
    from_uint8,
    real_videos,
    sample_prompts,
    to_uint8,
)


def test_prompts_are_different_clips_in_canonical_words(every_clip):
    prompts = sample_prompts(every_clip, 17, seed=0)
    assert len({prompt.index for prompt in prompts}) == 17
    for prompt in prompts:
        clip = every_clip.clips[prompt.index].attributes
        tone = f", {clip.skin_tone} skin tone" if clip.skin_tone else ""
        assert prompt.caption == f"{clip.base}{tone}, {prompt.background} background"
        assert prompt.tone == (clip.skin_tone or "default")
        assert (prompt.text, prompt.subject) == (prompt.caption, clip.base)
    assert sample_prompts(every_clip, 17, seed=0) == prompts
    assert sample_prompts(every_clip, 17, seed=1) != prompts


def test_more_prompts_than_clips_are_refused(every_clip):
    with pytest.raises(UserError, match=r"asks for 19 clips, but .* has 18"):
        sample_prompts(every_clip, 19, seed=0)


def test_real_videos_show_the_prompts_background(every_clip):
    prompts = sample_prompts(every_clip, 11, seed=2)
    videos = list(real_videos(every_clip, prompts, num_frames=5, stride=2))
    assert [video.shape for video in videos] == [(5, 3, 24, 24)] * 11
    assert [background_colour(video) for video in videos] == [p.background for p in prompts]
    assert all(video.diff(dim=0).abs().sum() > 0 for video in videos)


def test_empty_videos_show_nothing_else(every_clip):
    prompts = sample_prompts(every_clip, 5, seed=2)
    for prompt, video in zip(
        prompts, background_only_videos(prompts, 3, FrameSize(7, 9)), strict=True
    ):
        assert video.shape == (3, 3, 7, 9)
        assert background_colour(video) == prompt.background
        assert (video == video[:1, :, :1, :1]).all()


def test_clips_without_transparency_keep_their_caption(prepared):
    dataset = ClipDataset(prepared)
    prompt = sample_prompts(dataset, 1, seed=0)[0]
    assert prompt.background is None
    assert prompt.caption == dataset.clips[prompt.index].text


def test_eight_bits_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 5, 7, 3)
    assert (to_uint8(from_uint8(pixels)) == pixels).all()
    assert from_uint8(pixels).amin() == -1
    assert from_uint8(pixels).amax() == 1


def test_natural_wording_asks_the_model_in_other_words_and_the_judge_in_the_same(emoji, tmp_path):
    runners = tmp_path / "runners"
    shutil.copytree(emoji, runners)
    clips = [
        clip.model_copy(
            update={"attributes": clip.attributes.model_copy(update={"activity": "1f3c3"})}
        )
        for clip in read_manifest(runners)
    ]
    write_manifest(runners, clips)
    dataset = ClipDataset(runners)
    plain = sample_prompts(dataset, 9, seed=4)
    natural = sample_prompts(dataset, 9, seed=4, wording="natural")
    for one, other in zip(plain, natural, strict=True):
        assert (one.caption, one.index, one.seed) == (other.caption, other.index, other.seed)
        assert one.text == one.caption
        assert other.text != other.caption
        assert other.background in other.text


def test_clips_without_natural_wordings_are_refused(every_clip):
    with pytest.raises(UserError, match="no held-out paraphrases; only emoji have"):
        sample_prompts(every_clip, 3, seed=0, wording="natural")
