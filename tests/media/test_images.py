import os

import numpy as np
import pytest
from PIL import Image, ImageCms

from magicvideo.errors import UserError
from magicvideo.media.images import load_image


@pytest.fixture
def shown():
    y, x = np.mgrid[:48, :32]
    planes = [np.where(y < 20, 220, 30), 6 * x, 0 * x + 60]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


WAYS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", WAYS)
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_images_are_oriented_as_viewers_show_them(tmp_path, shown, orientation, suffix):
    exif = Image.Exif()
    exif[274] = orientation
    way = WAYS[orientation]
    stored = shown if way is None else shown.transpose(way)
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(load_image(path), shown)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(load_image(opened), shown)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_invalid_orientations_are_ignored(tmp_path, shown, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    shown.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), shown)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_sixteen_bits(tmp_path, shown, suffix):
    grey = np.asarray(shown.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / f"a.{suffix}")
    expected = grey[..., None].repeat(3, 2)
    np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}"), expected)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([[0.0, 0.5, 1.0]], np.float32),
        ([[0, 128, 255]], np.int32),
        ([[0, 128 * 257, 65535]], np.int32),
    ],
)
def test_the_range_of_other_grey_images_follows_from_their_maximum(tmp_path, values, kind):
    Image.fromarray(np.array(values, kind)).save(tmp_path / "a.tif")
    assert np.asarray(load_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 128, 255]


def test_transparent_parts_are_white():
    clear = Image.new("RGBA", (3, 2), (200, 0, 0, 0))
    clear.putpixel((1, 1), (10, 20, 30, 255))
    pixels = np.asarray(load_image(clear))
    assert pixels[1, 1].tolist() == [10, 20, 30]
    assert (np.delete(pixels.reshape(-1, 3), 4, 0) == 255).all()


def test_colour_profiles_are_converted_and_damaged_ones_are_not(tmp_path, shown):
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    shown.save(tmp_path / "a.png", icc_profile=linear)
    assert np.abs(np.asarray(load_image(tmp_path / "a.png"), int) - shown).max() <= 2
    shown.save(tmp_path / "b.png", icc_profile=b"no profile")
    np.testing.assert_array_equal(load_image(tmp_path / "b.png"), shown)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    shown.save(tmp_path / "c.png", icc_profile=lab)
    np.testing.assert_array_equal(load_image(tmp_path / "c.png"), shown)


def test_files_that_are_not_images_are_named(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    os.mkfifo(tmp_path / "c.png")
    sentences = {
        "a.png": "not a picture",
        "b.png": "does not exist",
        "c.png": "a pipe",
        "": "is not a file",
    }
    for name, sentence in sentences.items():
        with pytest.raises(UserError, match=sentence):
            load_image(tmp_path / name)
