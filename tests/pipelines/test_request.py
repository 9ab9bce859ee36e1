import json
from dataclasses import asdict, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magicvideo.diffusion.sampling import SamplerName
from magicvideo.errors import UserError
from magicvideo.pipelines.image_condition import embedding_of, to_image_condition
from magicvideo.pipelines.request import (
    MAX_SEED,
    SCHEDULERS,
    GenerationSettings,
    ImageCondition,
    request_from_json,
    resolve_seeds,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(min_size=1).filter(str.strip), seed=st.integers(0, MAX_SEED))
def test_any_prompt_is_unchanged_in_a_file(request_of, prompt, seed):
    request = request_of(prompt=prompt, seed=seed)
    text = request.to_json()
    assert text.isascii()
    assert "\n" not in text
    assert request_from_json(text) == request


def test_the_embedding_of_an_image_is_stored_exactly(request_of):
    embedding = np.random.default_rng(0).standard_normal(7).astype(np.float32)
    request = request_of(prompt="", image_condition=to_image_condition("face.png", embedding))
    restored = request_from_json(request.to_json())
    np.testing.assert_array_equal(embedding_of(restored.image_condition), embedding)


def test_a_damaged_embedding_is_refused():
    for broken in ("%%%", "AAAA"):
        with pytest.raises(UserError, match="embedding of the image is damaged"):
            embedding_of(ImageCondition(name="face.png", embedding=broken))


@pytest.mark.parametrize("text", ["", "a holiday", "[1, 2]", '{"software": "other"}', "17"])
def test_a_comment_of_another_program_is_not_a_request(text):
    assert request_from_json(text) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"upscale": 3}, "upscale"),
        ({"seed": "11"}, "seed"),
        ({"seed": -1}, "seed is -1"),
        ({"fps": None}, "fps"),
        ({"fps": 1e9}, "frame rate is 1e\\+09"),
        ({"scheduler": "heun"}, "Unknown scheduler 'heun'"),
        ({"image_condition": {"name": "x"}}, "embedding"),
    ],
)
def test_a_request_of_a_newer_version_is_refused_by_name(request_of, change, named):
    holder = {"magicvideo": {**asdict(request_of()), **change}}
    with pytest.raises(UserError, match=named):
        request_from_json(json.dumps(holder))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_frames": 0}, "number of frames is 0; .* from 1"),
        ({"fps": float("nan")}, "frame rate is nan"),
        ({"fps": float("inf")}, "frame rate is inf"),
        ({"fps": 0.0}, "frame rate is 0"),
        ({"fps": 61.0}, "frame rate is 61; .* from 1 to 60"),
        ({"num_inference_steps": 0}, "number of steps is 0; .* from 1 to 1000"),
        ({"num_inference_steps": 1001}, "number of steps is 1001"),
        ({"guidance_scale": float("inf")}, "guidance scale is inf"),
        ({"guidance_scale": -1.0}, "guidance scale is -1"),
        ({"guidance_stop": 1.01}, "end of guidance is 1.01; it must be a number from 0 to 1"),
        ({"output_scale": 33}, "output scale is 33"),
        ({"scheduler": "heun"}, "Unknown scheduler 'heun'; choose one of ddim, dpm\\+\\+, unipc"),
        ({"negative_prompt": "dog", "guidance_scale": 1.0}, "negative prompt needs guidance"),
    ],
)
def test_settings_are_limited_by_one_sentence_each(change, sentence):
    with pytest.raises(UserError, match=sentence):
        replace(GenerationSettings(), **change)


def test_schedulers_are_those_of_the_sampler():
    assert get_args(SamplerName) == SCHEDULERS


@pytest.mark.parametrize("prompt", ["", " \n\t"])
def test_an_empty_prompt_needs_an_image(request_of, prompt):
    with pytest.raises(UserError, match="prompt is empty"):
        request_of(prompt=prompt)


def test_seeds_count_up_are_given_or_are_random():
    assert resolve_seeds(5, 3) == [5, 6, 7]
    assert resolve_seeds([9, 2], 2) == [9, 2]
    assert resolve_seeds(None, 1) != resolve_seeds(None, 1)


@pytest.mark.parametrize(
    ("seed", "count", "sentence"),
    [
        (-1, 1, "seed is -1"),
        (MAX_SEED, 2, f"seed is {MAX_SEED + 1}"),
        ([1, 2], 3, "2 seeds were given for 3 videos"),
        ([1, -2], 2, "seed is -2"),
    ],
)
def test_seeds_out_of_range_are_refused(seed, count, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_seeds(seed, count)
