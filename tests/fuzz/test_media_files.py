import io

import av
import numpy as np
import pytest
from hostile_inputs import FUZZ, changed_bytes, safely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from magicvideo.media.images import load_image
from magicvideo.media.video_io import read_text
from magicvideo.media.video_reader import probe_video, read_clip

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 4, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
VIDEOS = {
    "mp4": ("libx264", "yuv420p"),
    "mov": ("qtrle", "argb"),
    "mkv": ("libx264", "yuv420p"),
    "webm": ("libvpx-vp9", "yuva420p"),
    "avi": ("mpeg4", "yuv420p"),
}


def encode(kind):
    """The bytes of a small valid file."""
    file = io.BytesIO()
    if kind in VIDEOS:
        codec, pix_fmt = VIDEOS[kind]
        name = {"mkv": "matroska"}.get(kind, kind)
        with av.open(file, "w", format=name) as container:
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width = FRAMES.shape[1:3]
            stream.pix_fmt = pix_fmt
            for frame in FRAMES:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return file.getvalue()
    pictures = [Image.fromarray(frame) for frame in FRAMES]
    if kind in ("gif", "webp"):
        pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], duration=50)
    else:
        exif = Image.Exif()
        exif[274], exif[270] = 6, "a text"
        pictures[0].save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", [*VIDEOS, "gif", "webp"])
def test_changed_videos(tmp_path_factory, kind):
    folder, whole = tmp_path_factory.mktemp(kind), encode(kind)

    @FUZZ
    @given(st.one_of(changed_bytes(whole), changed_bytes(whole, head=0.15)))
    def read(content):
        path = folder / f"a.{kind}"
        path.write_bytes(content)
        for reader in (lambda p: read_clip(p, 16), probe_video, read_text):
            with safely(folder):
                reader(path)

    read()


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
def test_changed_pictures(tmp_path_factory, kind):
    folder, whole = tmp_path_factory.mktemp(kind), encode(kind)

    @FUZZ
    @given(st.one_of(changed_bytes(whole), changed_bytes(whole, head=0.15)))
    def read(content):
        path = folder / "a.png"
        path.write_bytes(content)
        with safely(folder):
            load_image(path)

    read()


@FUZZ
@given(
    st.sampled_from(["mp4", "mkv", "gif", "webp", "avi", "ts"]),
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)),
)
def test_any_bytes(tmp_path_factory, kind, content):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    path = folder / f"a.{kind}"
    path.write_bytes(content)
    with safely(folder):
        read_clip(path, 16)
