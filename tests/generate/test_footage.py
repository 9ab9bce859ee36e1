import numpy as np
import pytest
import torch
from tiny_model import INSERTED, UPSCALING

from magicvideo.errors import UserError
from magicvideo.generate.footage import interpolate_footage, read_footage, upscale_footage
from magicvideo.generate.pipeline import MagicVideoPipeline
from magicvideo.generate.write import to_pixels, write_pixels

STEP = INSERTED + 1


def test_footage_of_any_length_and_size_gets_its_frames(pipeline, monkeypatch):
    torch.manual_seed(2)
    footage = torch.rand(8, 3, 31, 45) * 2 - 1
    whole = interpolate_footage(pipeline, footage, 5.0)
    assert whole.shape == (7 * STEP + 1, 3, 31, 45)
    monkeypatch.setattr("magicvideo.generate.footage._GAPS_AT_ONCE", 3)
    in_parts = interpolate_footage(pipeline, footage, 5.0)
    assert in_parts.shape == whole.shape
    # the given frames are the same in parts, since frames pass the autoencoder one by one
    torch.testing.assert_close(in_parts[::STEP], whole[::STEP], atol=1e-5, rtol=0)


def test_the_prompt_the_seed_and_the_steps_matter(pipeline):
    footage = torch.rand(3, 3, 24, 24) * 2 - 1
    base = interpolate_footage(pipeline, footage, 5.0)
    assert torch.equal(interpolate_footage(pipeline, footage, 5.0), base)
    for change in ({"prompt": "a dog"}, {"seed": 1}, {"num_steps": 1}):
        other = interpolate_footage(pipeline, footage, 5.0, **change)
        assert (other - base).abs().mean() > 1e-5, change
        torch.testing.assert_close(other[::STEP], base[::STEP], atol=1e-5, rtol=0)


def test_a_model_without_an_interpolator_says_so(pipeline):
    parts = {**pipeline.components, "interpolator": None}
    with pytest.raises(UserError, match="no stage interpolation"):
        interpolate_footage(MagicVideoPipeline(**parts), torch.zeros(2, 3, 24, 24), 5.0)


def test_footage_is_made_larger(pipeline):
    footage = torch.rand(3, 3, 13, 22) * 2 - 1
    large = upscale_footage(pipeline, footage)
    assert large.shape == (3, 3, UPSCALING * 13, UPSCALING * 22)
    assert torch.equal(upscale_footage(pipeline, footage), large)
    for change in ({"seed": 1}, {"num_steps": 1}):
        assert (upscale_footage(pipeline, footage, **change) - large).abs().mean() > 1e-5
    with pytest.raises(UserError, match="no stage upscaler"):
        upscale_footage(MagicVideoPipeline(**{**pipeline.components, "upscaler": None}), footage)


def test_files_are_read_at_their_own_size(tmp_path, moving_square):
    write_pixels(to_pixels(moving_square), 12.5, "", tmp_path / "a.mp4")
    frames, fps = read_footage(tmp_path / "a.mp4")
    assert fps == pytest.approx(12.5)
    assert frames.shape == (5, 3, 18, 26)
    assert (frames - moving_square).abs().mean() < 0.05


def test_transparent_pictures_lie_on_white(tmp_path):
    from PIL import Image

    clear = Image.new("RGBA", (6, 4), (200, 0, 0, 0))
    solid = Image.new("RGBA", (6, 4), (200, 0, 0, 255))
    path = tmp_path / "a.webp"
    clear.save(path, save_all=True, append_images=[solid], duration=100, lossless=True)
    frames, fps = read_footage(path)
    assert fps == 10
    assert (frames[0] == 1).all()
    assert np.allclose((frames[1, :, 0, 0] + 1) * 127.5, [200, 0, 0], atol=1e-3)


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"a\.mp4 cannot be used"):
        read_footage(tmp_path / "a.mp4")
    with pytest.raises(UserError, match="cannot be read"):
        read_footage(tmp_path / "b.mp4")
