import numpy as np
import pytest
import torch

from magicvideo.data.sources.synthetic import SIZE, Scene, all_scenes, render_frame
from magicvideo.evaluation.metrics.attributes import attributes_met, parse_scene, read_scene
from magicvideo.evaluation.prompt_sets import from_uint8

FRAMES = 5


def render(scene, size=SIZE):
    pixels = np.stack([render_frame(scene, time, size) for time in np.linspace(0, 1, FRAMES)])
    return from_uint8(torch.from_numpy(pixels))


@pytest.fixture(scope="module")
def scenes():
    return all_scenes()[:40]


def test_what_is_drawn_is_read(scenes):
    videos = [render(scene) for scene in scenes]
    assert [read_scene(video) for video in videos] == scenes
    hits = [
        [*attributes_met(video, scene).values()]
        for video, scene in zip(videos, scenes[1:] + scenes[:1], strict=True)
    ]
    assert 0.1 < np.mean(hits) < 0.4  # other scenes' captions get what chance gives
    assert not any(all(hit) for hit in hits)


def test_other_sizes_are_read_too():
    scene = Scene("triangle", "green", "up", "pink")
    assert read_scene(render(scene, 37)) == scene


def test_attributes_are_distinguished():
    video = render(Scene("circle", "red", "left", "white"))
    met = attributes_met(video, Scene("circle", "blue", "right", "white"))
    assert met == {"shape": True, "colour": False, "direction": False, "background": True}


def test_an_empty_image_matches_nothing():
    assert read_scene(torch.ones(3, 3, 21, 21)) is None
    met = attributes_met(torch.ones(3, 3, 21, 21), Scene("circle", "red", "left", "white"))
    assert not any(met.values())


def test_captions_are_parsed(scenes):
    assert [parse_scene(scene.caption) for scene in scenes] == scenes
    assert parse_scene("a dog runs, white background") is None
