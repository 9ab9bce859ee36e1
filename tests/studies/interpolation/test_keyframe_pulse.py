import numpy as np
import pytest
import torch
from tiny_model import FRAMES, INSERTED, VIDEO_FRAMES, make_tiny_pipeline

from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.motion import corner_mask
from magicvideo.evaluation.prompt_sets import from_uint8, real_videos, sample_prompts, to_uint8
from magicvideo.pipelines.request import GenerationSettings
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from studies.interpolation.evaluation import LATENT_BLEND, REAL, changes_at_keys, score_pulse
from studies.interpolation.report import pulse_table


@pytest.fixture(scope="module")
def pipeline():
    return make_tiny_pipeline()


def score(pipeline, dataset, *levels):
    done = []
    found = score_pulse(pipeline, dataset, 2, noise_levels=levels, seed=1, on_video=done.append)
    assert done == [1, 2]
    return {row.name: row for row in found}


def changes(video, region):
    """Mean change of a region, frame by frame."""
    pixels = video[..., region]
    return (pixels[1:] - pixels[:-1]).abs().mean(dim=(1, 2)).tolist()


def test_changes_are_separated_by_key_frames_and_region():
    video = torch.zeros(7, 3, 16, 16)
    # keys are frames 0, 3 and 6; each frame is brighter than the one before by its number
    video += torch.arange(7).cumsum(0)[:, None, None, None] / 10
    video[4, :, 8, 8] += 0.256
    at_keys, elsewhere = changes_at_keys(video, 2, corner_mask(16, 16))
    assert at_keys == pytest.approx((1 + 3 + 4 + 6) / 4 / 10)
    assert elsewhere == pytest.approx((2 + 5) / 2 / 10)
    whole = changes_at_keys(video, 2)
    assert whole[0] == pytest.approx(at_keys + 0.001 / 4)
    assert whole[1] == pytest.approx(elsewhere - 0.001 / 2)


def test_generated_videos_are_those_of_the_pipeline_and_their_pulse_is_measured(
    pipeline, every_clip
):
    """The row of the model's own noise level is what a user gets."""
    own = pipeline.config.interpolation_noise_level
    found = score(pipeline, every_clip, 0, own)
    networks = [f"interpolation network, noise level {level}" for level in (0, own)]
    assert list(found) == [*networks, LATENT_BLEND, REAL]

    prompts = sample_prompts(every_clip, 2, 1)
    settings = GenerationSettings(stages=("keyframes", "interpolation"))
    requests = [pipeline.build_requests([p.caption], [p.seed], settings)[0] for p in prompts]
    videos = [from_uint8(to_uint8(pipeline.generate(request).frames)) for request in requests]
    at_key = np.array([number % (INSERTED + 1) != 1 for number in range(VIDEO_FRAMES - 1)])
    for name, clips in (
        (networks[1], videos),
        (REAL, list(real_videos(every_clip, prompts, VIDEO_FRAMES, 1))),
    ):
        row = found[name]
        side = clips[0].shape[-1]
        whole = torch.ones(side, side, dtype=torch.bool)
        figures = np.array([changes(clip, whole) for clip in clips])
        expected = figures[:, at_key].mean() / figures[:, ~at_key].mean()
        assert row.whole.value == pytest.approx(expected, rel=1e-5)
        assert row.whole.count == 2
        cornered = np.array([changes(clip, corner_mask(side, side)) for clip in clips])
        assert row.flicker.value == pytest.approx(127.5 * cornered.mean(), rel=1e-5)
        if cornered.any():
            expected = cornered[:, at_key].mean() / cornered[:, ~at_key].mean()
            assert row.in_corners.value == pytest.approx(expected, rel=1e-5)
    assert len(videos[0]) == FRAMES + (FRAMES - 1) * INSERTED
    assert len({found[name].whole.value for name in (*networks, LATENT_BLEND)}) == 3


def test_the_corners_of_real_clips_on_plain_backgrounds_are_static(pipeline, every_clip):
    row = score(pipeline, every_clip, 0)[REAL]
    assert row.flicker.value == 0
    line = pulse_table([row]).splitlines()[-1]
    assert line.startswith("| real clips | 2 | ")
    assert line.endswith(" | not defined | 0.000 [0.000, 0.000] |")


def test_a_model_without_the_network_is_refused(pipeline, every_clip):
    parts = {**pipeline.components, "interpolator": None}
    with pytest.raises(UserError, match="no interpolation network"):
        score(MagicVideoPipeline(**parts), every_clip, 0)
