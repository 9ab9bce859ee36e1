from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import FRAMES, make_tiny_pipeline

from magicvideo.data.dataset import ClipDataset
from magicvideo.errors import UserError
from magicvideo.evaluation.benchmark.prompts import prompts_hash
from magicvideo.evaluation.evaluator import Evaluator
from magicvideo.evaluation.prompt_sets import sample_prompts
from magicvideo.evaluation.protocol import PromptSet, read_protocol

SIZES = {"pool_size": 2, "reference_clips": 5}


def asked(count):
    """A set of training captions."""
    return PromptSet(name="asked", split="train", prompts=count)


@pytest.fixture
def evaluation(emoji, judge, tmp_path):
    protocol = read_protocol("emoji-heldout").model_copy(
        update={"num_frames": FRAMES, "stride": 3, "guidance_scale": 2.5} | SIZES
    )
    return Evaluator(
        protocol=protocol,
        pipeline=make_tiny_pipeline(),
        judge=judge,
        data=emoji,
        work=tmp_path / "work",
    )


def test_videos_are_asked_for_at_the_pace_of_their_real_clip(evaluation, every_clip):
    prompt = sample_prompts(every_clip, 5, seed=0)[3]
    request = evaluation.request(every_clip, prompt, asked(5))
    assert (request.prompt, request.seed) == (prompt.caption, prompt.seed) == (prompt.caption, 3)
    assert (request.fps, request.num_frames) == (8.0, FRAMES)  # 24 frames a second at stride 3
    assert (request.scheduler, request.num_inference_steps) == ("ddim", 20)
    assert (request.guidance_scale, request.guidance_stop) == (2.5, 0.75)


def test_the_reference_is_real_clips_other_than_the_prompts(evaluation, emoji, every_clip):
    train = ClipDataset(emoji, ("train",))
    drawn = evaluation.draw(asked(13))
    taken = {train.clips[prompt.index].id for prompt in drawn.prompts}
    left = [clip.id for clip in every_clip.clips if clip.id not in taken]
    assert len(left) == 5
    reference = evaluation.reference_features(drawn, FRAMES, 3)
    expected = []
    for prompt in sample_prompts(every_clip, len(every_clip), evaluation.protocol.seed + 1):
        if every_clip.clips[prompt.index].id in left:
            sample = every_clip.sample(
                prompt.index,
                np.random.default_rng(prompt.seed),
                num_frames=FRAMES,
                strides=(3, 3),
                background=prompt.background,
            )
            expected.append(evaluation.judge.embed_videos(sample.frames[None]))
    # the evaluation reads videos in 8 bits, this loop as they are
    torch.testing.assert_close(
        torch.from_numpy(reference).float(), torch.cat(expected), atol=2e-3, rtol=0
    )


def test_the_reference_is_as_large_as_the_protocol_says(evaluation):
    assert evaluation.reference_features(evaluation.draw(asked(2)), FRAMES, 3).shape == (5, 64)


def test_too_small_a_reference_is_refused_before_anything_is_made(evaluation, emoji):
    sets = (asked(2), asked(14))
    evaluation = replace(evaluation, protocol=evaluation.protocol.model_copy(update={"sets": sets}))
    sentence = (
        f"asks for 5 reference clips, but {emoji} has 4 besides those of the 14 prompts; prep"
    )
    with pytest.raises(UserError, match=sentence):
        evaluation.requests()


def test_a_result_says_what_no_protocol_sets(evaluation, emoji):
    sets = (asked(2),)
    evaluation = replace(evaluation, protocol=evaluation.protocol.model_copy(update={"sets": sets}))
    drawn = sample_prompts(ClipDataset(emoji, ("train",)), 2, evaluation.protocol.seed)
    assert evaluation.metadata() == {
        "prompts": {"asked": prompts_hash([prompt.caption for prompt in drawn])},
        "judge preprocessing": {
            "frames": 8,
            "resizing": "all of a frame to 64 x 64, bilinear with antialiasing, in floats",
            "layer": "64 features of the projection, at length 1",
        },
        "seeds": "that of prompt k is k, from 0",
        "intervals": {"confidence": 0.95, "seed": 0, "resamples of means": 2000},
        "extrapolation": {"points": 15, "smallest_subset": "half", "seed": 0},
    }


def test_finished_videos_are_compared_with_real_clips_at_their_full_rate(evaluation):
    finished = PromptSet(
        name="finished", split="train", prompts=2, stages=("keyframes", "interpolation")
    )
    assert evaluation.shape(asked(2)) == (FRAMES, 3)
    inserted = evaluation.pipeline.capabilities.num_inserted
    protocol = evaluation.protocol.model_copy(update={"stride": 2 * (inserted + 1)})
    evaluation = replace(evaluation, protocol=protocol)
    assert evaluation.shape(finished) == ((FRAMES - 1) * (inserted + 1) + 1, 2)
    drawn = evaluation.draw(finished)
    request = evaluation.request(drawn.dataset, drawn.prompts[0], finished)
    assert request.video_fps == pytest.approx(24 / 2)
    odd = replace(evaluation, protocol=protocol.model_copy(update={"stride": inserted + 2}))
    with pytest.raises(UserError, match=f"take a stride that is a multiple of {inserted + 1}"):
        odd.shape(finished)


def test_pools_hold_one_caption_of_each_of_several_subjects(evaluation):
    drawn = evaluation.draw(asked(9))
    evaluation = replace(
        evaluation, protocol=evaluation.protocol.model_copy(update={"pool_size": 5})
    )
    pools = evaluation.pools(drawn)
    for prompt, free, same in zip(drawn.prompts, pools.free, pools.on_one_background, strict=True):
        assert free[0] == same[0] == prompt.caption
        assert all(caption.endswith(f"{prompt.background} background") for caption in same)
        assert len({caption.split(",")[0] for caption in same}) == 5
        tones = {caption.split(", ")[1] for caption in same if "skin tone" in caption}
        assert tones <= {f"{prompt.tone} skin tone"}
    grounds = [caption.split(", ")[-1] for pool in pools.free for caption in pool[1:]]
    assert len(set(grounds)) > 5
