"""The bundled model through the real command line: a video of the README."""

from fractions import Fraction

import av
import numpy as np

from magicvideo.cli import run


def test_the_bundled_model_generates_a_complete_video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["--steps", "3", "--interpolation-steps", "1", "--upscaler-steps", "1"]
    prompt = "woman surfing, medium skin tone, blue background"
    assert run(["generate", prompt, "--seed", "0", "--output", "x.mp4", *few]) == 0
    with av.open("x.mp4") as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 24
        assert stream.duration * stream.time_base == Fraction(61, 24)
        frames = np.stack(
            [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        ).astype(int)
    assert frames.shape == (61, 256, 256, 3)
    assert np.std(frames, axis=(1, 2, 3)).min() > 5  # a picture, not one colour
    assert np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)).max() > 0.1  # that moves
