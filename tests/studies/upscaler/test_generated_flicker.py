import numpy as np
import pytest
import torch
from tiny_model import SIDE, UPSCALING, VIDEO_FRAMES

from magicvideo.evaluation.prompt_sets import from_uint8, real_videos, sample_prompts, to_uint8
from magicvideo.pipelines.request import GenerationSettings
from studies.upscaler.evaluation import BEFORE, FINISHED, REAL, score_generated_flicker
from studies.upscaler.report import generated_flicker_table


def cornered(video):
    """The four corners of an eighth of the side, side by side."""
    depth = video.shape[-1] // 8
    rows = torch.cat([video[:, :, :depth], video[:, :, -depth:]], dim=2)
    return torch.cat([rows[..., :depth], rows[..., -depth:]], dim=3)


def levels(videos):
    changes = [(video[1:] - video[:-1]).abs().mean().item() for video in videos]
    return 127.5 * np.mean(changes)


def test_finished_videos_are_measured_before_and_after_super_resolution(pipeline, every_clip):
    prompts, done = sample_prompts(every_clip, 2, 1), []
    found = score_generated_flicker(pipeline, every_clip, prompts, done.append)
    assert done == [1, 2]
    assert [row.name for row in found] == [BEFORE, FINISHED, REAL]
    small = pipeline.capabilities.stages[:2]
    for row, stages in zip(found, (small, None), strict=False):
        videos = []
        for prompt in prompts:
            settings = GenerationSettings(stages=stages)
            request = pipeline.build_requests([prompt.caption], [prompt.seed], settings)[0]
            videos.append(from_uint8(to_uint8(pipeline.generate(request).frames)))
        assert videos[0].shape[-1] == SIDE * (UPSCALING if stages is None else 1)
        assert row.change.value == pytest.approx(levels(videos), rel=1e-4)
        assert row.flicker.value == pytest.approx(levels(map(cornered, videos)), rel=1e-4)
        assert row.change.count == row.flicker.count == 2
    real = found[-1]
    clips = list(real_videos(every_clip, prompts, VIDEO_FRAMES, 1))
    assert real.change.value == pytest.approx(levels(clips), rel=1e-4)
    assert real.times_change.value == 1
    assert found[0].times_change.value == pytest.approx(found[0].change.value / real.change.value)
    # the corners of these clips never change
    assert real.flicker.value == 0
    assert found[0].times_flicker is real.times_flicker is None
    assert (
        generated_flicker_table(found)
        .splitlines()[-1]
        .startswith("| real clips | 2 | 0.0000 [0.0000, ")
    )


def test_without_prompts_nothing_is_generated(pipeline, every_clip):
    assert score_generated_flicker(pipeline, every_clip, [], pytest.fail) == []
