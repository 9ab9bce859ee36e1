"""A study of finished videos whose colours identify the sides, and its server."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plain_request import PLAIN

from magicvideo.media.outputs import slugify
from magicvideo.media.video_io import write_pixels
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.studio.http_server import HttpServer
from studies.human_study.server import serve_study
from studies.human_study.study import (
    SIDES,
    Study,
    describe_source,
    missing_pairs,
    open_study,
    read_study,
    read_videos,
    write_videos,
)

PROMPTS = ["a cat", "a dog", "a red heart", "two <b>boats</b>", "fox & hen"]
COLOURS = {"a": (220, 30, 30), "b": (30, 30, 220)}
FOLDERS = {"a": "secretive-alpha", "b": "cunning-beta"}
MODEL_HASH = "feedfacecafe" * 5


def request_of(prompt: str, side: str) -> Request:
    """What a file of `generate` carries, which names its model."""
    return replace(
        PLAIN,
        prompt=prompt,
        seed=11,
        num_frames=3,
        fps=6.0,
        num_inference_steps=2,
        guidance_scale=4.0,
        output_scale=1,
        interpolation_steps=8,
        upscaler_steps=2,
        model=MODEL_HASH + side,
    )


@pytest.fixture(scope="session")
def places(tmp_path_factory) -> dict[str, Path]:
    """Two folders of finished videos: red ones with their request inside, blue ones by name."""
    root = tmp_path_factory.mktemp("finished")
    for side, name in FOLDERS.items():
        (root / name).mkdir()
        for number, prompt in enumerate(PROMPTS):
            pixels = np.full((3, 22, 32, 3), COLOURS[side], np.uint8)
            text = request_of(prompt, side).to_json() if side == "a" else "by hand"
            stem = f"clip{number}" if side == "a" else f"{slugify(prompt)}-{number}"
            write_pixels(pixels, 6.0, text, root / name / f"{stem}.mp4")
    return {side: root / name for side, name in FOLDERS.items()}


@pytest.fixture(scope="session")
def made(places, tmp_path_factory) -> Path:
    """The folder of a study with all its videos; its votes belong to the tests' own copies."""
    folder = tmp_path_factory.mktemp("studies") / "hidden-study"
    sources = [describe_source(places[side], PROMPTS) for side in SIDES]
    study = open_study(folder, *sources, PROMPTS, 0, GenerationSettings())
    for side in SIDES:
        pairs = missing_pairs(study, folder, side)
        clips = read_videos(study, places[side], pairs)
        assert list(write_videos(study, folder, side, pairs, clips)) == [1, 2, 3, 4, 5]
    return folder


@pytest.fixture
def study(made) -> Study:
    """The study as its file says."""
    return read_study(made)


@pytest.fixture
def telling(study, made, places) -> list[str]:
    """All words that would tell a rater something."""
    words = [study.salt, study.a.hash, study.b.hash, MODEL_HASH, made.name, "study.json", "sqlite"]
    for place in places.values():
        words += [
            str(place.parent),
            *place.name.split("-"),
            *(path.stem for path in place.iterdir()),
        ]
    return words


@pytest.fixture
def server(study, made, tmp_path) -> Iterator[HttpServer]:
    """A running server whose votes go into a folder of the test."""
    (tmp_path / "videos").symlink_to(made / "videos")
    running = serve_study(study, tmp_path, "127.0.0.1", 0)
    thread = threading.Thread(target=running.run)
    thread.start()
    yield running
    running.stop()
    thread.join()
