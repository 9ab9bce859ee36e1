import numpy as np
import pytest
import torch
from tiny_model import SIDE, VIDEO_FRAMES, make_tiny_pipeline

from magicvideo.evaluation.prompt_sets import to_uint8
from magicvideo.evaluation.video_cache import generate_cached, request_key
from magicvideo.pipelines.request import GenerationSettings


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    made = make_tiny_pipeline()
    made.save_pretrained(tmp_path_factory.mktemp("model") / "tiny")
    return made


def ignore(done):
    assert done


def plan(pipeline, seeds, steps=2):
    settings = GenerationSettings(num_inference_steps=steps, stages=("keyframes", "interpolation"))
    return pipeline.build_requests(["a cat"] * len(seeds), seeds, settings)


def test_cached_videos_are_the_pipeline_output_in_8_bits(pipeline, tmp_path):
    requests = plan(pipeline, [4, 5])
    done = []
    videos = list(generate_cached(pipeline, requests, tmp_path, done.append))
    assert done == [1, 2]
    for request, video in zip(requests, videos, strict=True):
        assert video.shape == (VIDEO_FRAMES, 3, SIDE, SIDE)
        assert torch.equal(to_uint8(video), to_uint8(pipeline.generate(request).frames))
    assert not torch.equal(*videos)


def test_a_stopped_run_continues_and_regenerates_damaged_videos(pipeline, tmp_path):
    requests = plan(pipeline, [4, 5, 6])
    first = next(generate_cached(pipeline, requests, tmp_path, ignore))
    assert [path.name for path in tmp_path.iterdir()] == [f"{request_key(requests[0])}.npy"]
    kept = tmp_path / f"{request_key(requests[0])}.npy"
    marked = np.zeros((VIDEO_FRAMES, SIDE, SIDE, 3), np.uint8)
    np.save(kept, marked)
    found = next(generate_cached(pipeline, requests, tmp_path, ignore))
    assert (found == -1).all()  # it was read, not made
    kept.write_bytes(kept.read_bytes()[:200])
    again = next(generate_cached(pipeline, requests, tmp_path, ignore))
    assert torch.equal(again, first)


def test_cache_names_depend_on_everything_that_determines_the_video(pipeline):
    (request,), (other_seed,), (other_steps,) = (
        plan(pipeline, [4]),
        plan(pipeline, [5]),
        plan(pipeline, [4], steps=3),
    )
    assert len({request_key(r) for r in (request, other_seed, other_steps)}) == 3
    assert request_key(plan(pipeline, [4])[0]) == request_key(request)
