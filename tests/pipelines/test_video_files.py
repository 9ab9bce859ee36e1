import numpy as np
import pytest
from PIL import Image

from magicvideo.errors import UserError
from magicvideo.pipelines.image_condition import to_image_condition
from magicvideo.pipelines.video import read_request, write_video


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.webp", "x.gif", "x"])
def test_every_format_stores_the_request(tmp_path, moving_square, request_of, name):
    long = to_image_condition(
        "a.png", np.random.default_rng(0).standard_normal(768).astype(np.float32)
    )
    request = request_of(image_condition=long)
    write_video(moving_square, request, tmp_path / name)
    assert read_request(tmp_path / name) == request


def test_files_without_a_request_are_refused(tmp_path):
    Image.new("RGB", (3, 5)).save(tmp_path / "plain.gif")
    with pytest.raises(UserError, match="contains no request"):
        read_request(tmp_path / "plain.gif")
