import numpy as np
import pytest
import torch
from PIL import Image

from magicvideo.errors import ClipError
from magicvideo.evaluation.benchmark.features import image_frames, preprocess_clip
from magicvideo.evaluation.benchmark.protocol import FramePreprocessing


def reading(**changes):
    values = {"frames": 3, "stride": 2, "crop": "centre", "side": 16, "filter": "box"}
    return FramePreprocessing.model_validate(values | {"image_frames": 1} | changes)


def test_the_middle_frames_at_the_stride():
    pixels = np.broadcast_to(np.arange(11, dtype=np.uint8)[:, None, None, None], (11, 16, 16, 3))
    found = preprocess_clip(pixels, reading())
    assert found.shape == (3, 3, 16, 16)
    assert found[:, 0, 0, 0].tolist() == [3, 5, 7]
    assert preprocess_clip(pixels, reading(frames=11, stride=1))[:, 0, 0, 0].tolist() == list(
        range(11)
    )


def test_the_centre_square_by_the_filter_that_is_named():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
    square = pixels[0, :, 8:40]
    found = preprocess_clip(pixels, reading()).numpy()
    blocks = square.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(found[0] - blocks).max() <= 1  # rounded for rows, and again for columns
    bicubic = preprocess_clip(pixels, reading(filter="bicubic")).numpy()[0]
    expected = Image.fromarray(square).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(bicubic, np.asarray(expected).transpose(2, 0, 1))
    kept = preprocess_clip(pixels, reading(side=32))
    assert np.array_equal(kept[0].numpy(), square.transpose(2, 0, 1))


def test_without_a_crop_the_whole_frame_is_squashed():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 48, 3), np.uint8)
    found = preprocess_clip(pixels, reading(crop="none")).numpy()
    assert found.shape == (3, 3, 16, 16)
    expected = pixels[0].reshape(16, 16, 3, 3).mean(axis=2).transpose(2, 0, 1)
    assert np.abs(found[0] - expected).max() <= 1  # rounded to 8 bits
    square = preprocess_clip(pixels[:, :, 16:32], reading(crop="none"))
    assert np.array_equal(square, preprocess_clip(pixels, reading()))


def test_a_short_clip_is_refused():
    with pytest.raises(ClipError, match="has 4 frames, and 5 are needed"):
        preprocess_clip(np.zeros((4, 16, 16, 3), np.uint8), reading())


def test_images_are_spread_over_the_clip():
    frames = torch.arange(16, dtype=torch.uint8).view(16, 1, 1, 1).expand(16, 3, 17, 17)
    assert image_frames(frames, 4)[:, 0, 0, 0].tolist() == [2, 6, 10, 14]
    assert image_frames(frames, 1)[:, 0, 0, 0].tolist() == [8]
    assert image_frames(frames, 16)[:, 0, 0, 0].tolist() == list(range(16))
