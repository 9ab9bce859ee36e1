"""Frames are read as a player shows them, whatever the container states."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from PIL import Image

from magicvideo.errors import ClipError
from magicvideo.media.frame_display import tone_map
from magicvideo.media.video_reader import iter_frames, probe_video, read_clip

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def write(path, frames, codec, pix_fmt, rate=10, aspect=None, options=None, prepare=None):
    """Write video frames, or arrays in RGB or RGBA."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for frame in frames:
            if isinstance(frame, np.ndarray):
                kind = "rgba" if frame.shape[-1] == 4 else "rgb24"
                frame = av.VideoFrame.from_ndarray(frame, format=kind).reformat(format=pix_fmt)
            if not stream.codec_context.is_open:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
                if prepare:
                    prepare(stream.codec_context)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def corners(frame):
    """The names of the colours in the four quarters, in reading order."""
    height, width = frame.shape[:2]
    names = ""
    for y, x in ((1, 1), (1, 3), (3, 1), (3, 3)):
        pixel = frame[height * y // 4, width * x // 4, :3].astype(int)
        distances = [np.abs(pixel - colour).sum() for colour in (RED, GREEN, BLUE, WHITE)]
        names += "RGBW"[int(np.argmin(distances))]
    return names


def quarters(height, width):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return pixels


@pytest.mark.parametrize(
    ("matrix", "expected", "size"),
    [
        ((1, 0, 0, 1), "RGBW", (32, 48)),
        ((-1, 0, 0, 1), "GRWB", (32, 48)),
        ((1, 0, 0, -1), "BWRG", (32, 48)),
        ((-1, 0, 0, -1), "WBGR", (32, 48)),
        ((0, 1, 1, 0), "RBGW", (48, 32)),
        ((0, 1, -1, 0), "BRWG", (48, 32)),
        ((0, -1, 1, 0), "GWRB", (48, 32)),
        ((0, -1, -1, 0), "WGBR", (48, 32)),
    ],
)
def test_display_matrices_rotate_and_mirror(tmp_path, matrix, expected, size):
    path = write(tmp_path / "a.mp4", [quarters(32, 48)] * 3, "libx264", "yuv444p")
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    frame = next(iter_frames(path))
    assert frame.shape[:2] == size
    assert corners(frame) == expected


@pytest.mark.parametrize(
    ("orientation", "way"),
    list(
        enumerate(
            [
                Image.Transpose.FLIP_LEFT_RIGHT,
                Image.Transpose.ROTATE_180,
                Image.Transpose.FLIP_TOP_BOTTOM,
                Image.Transpose.TRANSPOSE,
                Image.Transpose.ROTATE_90,
                Image.Transpose.TRANSVERSE,
                Image.Transpose.ROTATE_270,
            ],
            start=2,
        )
    ),
)
def test_the_orientation_of_an_animation_is_applied(tmp_path, orientation, way):
    shown = Image.fromarray(quarters(16, 24))
    exif = Image.Exif()
    exif[274] = orientation
    stored = [shown.transpose(way)] * 2
    stored[1].putpixel((0, 0), (1, 2, 3))
    stored[0].save(
        tmp_path / "a.webp", save_all=True, append_images=stored[1:], lossless=True, exif=exif
    )
    frame = next(iter_frames(tmp_path / "a.webp"))
    assert frame.shape == (16, 24, 4)
    assert corners(frame) == "RGBW"


@pytest.mark.parametrize(
    ("name", "codec", "aspect", "size"),
    [
        ("a.mp4", "libx264", Fraction(4, 3), (80, 120)),
        ("a.mkv", "libx264", Fraction(16, 15), (80, 96)),
        ("a.avi", "mpeg4", Fraction(4, 3), (80, 120)),
        ("a.mp4", "libx264", Fraction(3, 4), (106, 90)),
    ],
)
def test_pixels_become_square(tmp_path, name, codec, aspect, size):
    height, width = size
    y, x = np.mgrid[:80, :90]
    across, down = (x - 44.5) * width / 90, (y - 39.5) * height / 80
    disc = ((across**2 + down**2 < 900)[..., None] * np.full(3, 255)).astype(np.uint8)
    path = write(tmp_path / name, [disc] * 3, codec, "yuv420p", aspect=aspect)
    found = probe_video(path)
    assert (found.height, found.width) == size
    white = read_clip(path, 80).pixels[1, ..., 0] > 128
    scale = 80 / min(size)
    assert white.any(0).sum() == pytest.approx(60 * scale, abs=2)
    assert white.any(1).sum() == pytest.approx(60 * scale, abs=2)


ALPHA = [
    ("a.webm", "libvpx-vp9", "yuva420p", {}),
    ("a.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
    ("a.mov", "qtrle", "argb", {}),
    ("a.mov", "prores_ks", "yuva444p10le", {}),
    ("a.mkv", "ffv1", "yuva444p", {}),
    ("a.mov", "png", "rgba", {}),
]


@pytest.mark.parametrize(("name", "codec", "pix_fmt", "options"), ALPHA)
def test_transparency_is_premultiplied(tmp_path, name, codec, pix_fmt, options):
    sticker = np.zeros((64, 64, 4), np.uint8)
    sticker[..., 1] = 255  # green, but clear
    sticker[16:48, 16:48] = 230, 60, 40, 255
    path = write(tmp_path / name, [sticker] * 4, codec, pix_fmt, options=options)
    pixels = read_clip(path, 64).pixels
    assert pixels.shape == (4, 64, 64, 4)
    assert pixels[2, 4, 4].tolist() == [0, 0, 0, 0]
    assert np.abs(pixels[2, 32, 32].astype(int) - (230, 60, 40, 255)).max() < 8


def test_the_padding_byte_of_uncompressed_video_is_not_transparency(tmp_path):
    frame = np.zeros((16, 24, 4), np.uint8)
    frame[..., 0] = 200
    path = write(tmp_path / "a.avi", [frame] * 3, "rawvideo", "bgra")
    assert read_clip(path, 16).pixels[0, 5, 5].tolist() == [200, 0, 0]


def code_frame(values, pix_fmt="yuv420p10le", **tags):
    """A frame of one colour in 10-bit codes, with tags."""
    frame = av.VideoFrame(32, 32, pix_fmt)
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
    for name, value in tags.items():
        setattr(frame, name, value)
    return frame


@pytest.mark.parametrize(
    ("transfer", "level", "expected"),
    [
        (16, 0.5807, 238),  # diffuse white of ITU-R BT.2408
        (18, 0.75, 238),
        (16, 0.0, 0),
        (18, 0.0, 0),
        (16, 0.7518, 253),  # 1,000 cd/m²
        (18, 1.0, 253),
        (16, 0.38, 108),  # grey of 18 %, 26 cd/m²
        (18, 0.38, 108),
    ],
)
def test_hdr_is_tone_mapped(tmp_path, transfer, level, expected):
    tags = {"color_trc": transfer, "color_primaries": 9, "colorspace": 9, "color_range": 1}

    def tag(context):
        for name, value in tags.items():
            setattr(context, name, value)

    frames = [code_frame((round(64 + 876 * level), 512, 512), **tags) for _ in range(3)]
    path = write(
        tmp_path / "a.mkv", frames, "libx264", "yuv420p10le", options={"crf": "1"}, prepare=tag
    )
    clip = read_clip(path, 32)
    assert np.abs(clip.pixels[1, 16, 16].astype(int) - expected).max() <= 3
    assert clip.changes == ("tone-mapped from HDR",)


@pytest.mark.parametrize("transfer", [16, 18])
def test_tone_mapping_is_smooth_and_never_reverses(transfer):
    codes = np.arange(1 << 16, dtype=np.uint16).reshape(64, 1024, 1).repeat(3, 2)
    shown = tone_map(codes, transfer, 9).reshape(-1, 3).astype(int)
    assert (np.diff(shown, axis=0) >= 0).all()
    assert np.diff(shown, axis=0).max() <= 3
    assert np.ptp(shown, axis=1).max() <= 1  # grey stays grey
    red = np.zeros((1, 1, 4), np.uint16)
    red[..., 0], red[..., 3] = 45000, 1 << 15
    assert tone_map(red, transfer, 9)[0, 0, 1:].tolist() == [0, 0, 128]


@pytest.mark.parametrize(
    ("height", "width", "matrix"),
    [
        (720, 1280, Colorspace.ITU709),
        (1920, 1080, Colorspace.ITU709),
        (576, 720, Colorspace.ITU601),
        (96, 128, Colorspace.ITU601),
    ],
)
def test_untagged_video_is_bt709_from_hd_on(tmp_path, height, width, matrix):
    red = np.full((height, width, 3), RED, np.uint8)
    frame = av.VideoFrame.from_ndarray(red, format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
    frame.colorspace = frame.color_primaries = frame.color_trc = 2
    path = write(
        tmp_path / "a.mp4", [frame] * 2, "libx264", "yuv420p", options={"preset": "ultrafast"}
    )
    pixel = next(iter_frames(path))[height // 2, width // 2].astype(int)
    assert np.abs(pixel - RED).max() <= 6


@pytest.mark.parametrize("matrix", [0, 3, 8, 10, 11, 12, 13, 14, 15, 16, 99])
def test_matrix_tags_that_are_rare_or_wrong_are_read(tmp_path, matrix):
    def tag(context):
        context.colorspace = matrix if matrix < 15 else 2

    grey = np.full((32, 48, 3), 120, np.uint8)
    path = write(tmp_path / "a.mkv", [grey] * 3, "libx264", "yuv420p", prepare=tag)
    pixel = next(iter_frames(path))[16, 24].astype(int)
    assert np.abs(pixel - 120).max() <= 4


def interlaced_frames():
    """A bar that moves four pixels between fields; the second field is in the odd rows."""
    fields = np.zeros((24, 64, 64, 3), np.uint8)
    for number in range(24):
        left = 4 * number % 48
        fields[number, :, left : left + 16] = 255
    frames = fields[::2].copy()
    frames[:, 1::2] = fields[1::2, 1::2]
    return frames


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"crf": "4", "x264-params": "tff=1"}),
        ("a.mpg", "mpeg2video", {"flags": "+ilme+ildct", "qscale": "2"}),
    ],
)
def test_interlaced_video_is_deinterlaced(tmp_path, name, codec, options):
    path = write(tmp_path / name, interlaced_frames(), codec, "yuv420p", rate=25, options=options)
    clip = read_clip(path, 64)
    assert len(clip.pixels) == 12
    assert clip.fps == 25
    assert clip.changes == ("deinterlaced",)
    rows = clip.pixels[4, 2:-2, :, 1].astype(int)
    assert np.abs(np.diff(rows, axis=0)).mean() < 5  # combed, it is 32


def test_progressive_video_is_not_changed(tmp_path, write_video):
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), np.uint8)
    path = write_video(tmp_path / "a.mp4", frames)
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(list(iter_frames(path)), expected)
    assert read_clip(path, 16).changes == ()


def test_square_pixels_that_make_a_frame_too_large_are_refused(tmp_path):
    frame = np.zeros((1024, 1024, 3), np.uint8)
    path = write(tmp_path / "a.mp4", [frame] * 2, "libx264", "yuv420p", aspect=Fraction(20, 1))
    with pytest.raises(ClipError, match="frames of 20480x1024, more than"):
        probe_video(path)
