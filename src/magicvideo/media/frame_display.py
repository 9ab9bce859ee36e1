"""Conversion of stored frames to displayed frames: colours, transparency, orientation.

Videos, animations and pictures pass through here, for training and for single stages alike. In the
order in which a player applies them:

- fields of interlaced frames are joined by FFmpeg's `bwdif`;
- YUV becomes RGB by the matrix that the file states, else by BT.709 for HD and BT.601 below;
- HDR (PQ and HLG) and wide gamuts become SDR with BT.709 primaries;
- transparency is kept, with colours premultiplied by alpha;
- pixels that are not square are resampled to square ones;
- display matrices and EXIF orientations turn and mirror the picture.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from jaxtyping import Float32, UInt8, UInt16
from numpy.typing import NDArray
from PIL import Image, ImageCms

from magicvideo.errors import ClipError
from magicvideo.limits import MAX_FRAME_PIXELS

# Code points of ITU-T H.273, which FFmpeg's enumerations follow
_UNSPECIFIED, _BT709, _BT601, _BT2020 = 2, 1, 6, 9
_KNOWN_MATRICES = frozenset({1, 4, 5, 6, 7, 9})
_BT2020_CONSTANT, _IPT = 10, 15
_PQ, _HLG = 16, 18
_WIDE_PRIMARIES = {
    # from BT.2020 and from Display P3 to BT.709, all with the same white, for linear light
    9: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    12: ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
}
_BT2020_LUMA = (0.2627, 0.6780, 0.0593)
_DIFFUSE_WHITE = 203.0  # cd/m² of white in HDR, by ITU-R BT.2408
_KNEE = 0.7  # of diffuse white; brighter light is compressed
_DISPLAY_GAMMA = 2.4  # of an SDR display, by ITU-R BT.1886
_ROWS_AT_ONCE = 64  # of a frame that is tone-mapped, so that its floats stay in the cache


def check_frame_size(width: int, height: int) -> None:
    """Refuse frames that are too large, or have no size.

    Raises:
        ClipError: If there are no pixels or more than `MAX_FRAME_PIXELS`.
    """
    if not width * height:  # what FFmpeg says after its own check of max_pixels
        raise ClipError(f"frames of more than {MAX_FRAME_PIXELS:,} pixels, or of no stated size")
    if width * height > MAX_FRAME_PIXELS:
        raise ClipError(
            f"frames of {width}x{height}, more than {MAX_FRAME_PIXELS:,} pixels; make them smaller "
            "first, such as with ffmpeg -i IN -vf scale=1920:-2 OUT.mp4"
        )


def deinterlace(frames: Iterable[VideoFrame], changes: set[str]) -> Iterator[VideoFrame]:
    """Yield as many frames, those that store two fields joined to progressive ones.

    Frames before the first interlaced one are passed on as they are; from there on all pass through
    FFmpeg's `bwdif`, which changes interlaced ones alone.

    Args:
        frames: Decoded frames of one stream.
        changes: Gets "deinterlaced" if any was interlaced.
    """
    graph: _Deinterlacer | None = None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if graph is None or not graph.fits(frame):
            if graph is not None:
                yield from graph.finish()
            graph = _Deinterlacer(frame)
            changes.add("deinterlaced")
        yield from graph.put(frame)
    if graph is not None:
        yield from graph.finish()


class _Deinterlacer:
    """A filter graph for frames of one size and pixel format."""

    def __init__(self, frame: VideoFrame) -> None:
        self._shape = self._shape_of(frame)
        self._graph = Graph()
        self._graph.threads = 1
        source = self._graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=frame.time_base or Fraction(1, av.time_base),
        )
        # one frame for each, not one for each field: the rate stays what the file says
        bwdif = self._graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        self._graph.link_nodes(source, bwdif, self._graph.add("buffersink")).configure()

    @staticmethod
    def _shape_of(frame: VideoFrame) -> tuple[int, int, str]:
        return frame.width, frame.height, frame.format.name

    def fits(self, frame: VideoFrame) -> bool:
        return self._shape_of(frame) == self._shape

    def put(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        self._graph.vpush(frame)
        yield from self._pull()

    def finish(self) -> Iterator[VideoFrame]:
        self._graph.vpush(None)
        yield from self._pull()

    def _pull(self) -> Iterator[VideoFrame]:
        while True:
            try:
                frame = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield frame


@dataclass
class FrameDisplay:
    """Converts the frames of one video stream to displayed images.

    Attributes:
        pixel_aspect: Width of a stored pixel over its height; None is square.
        keep_alpha: Whether the alpha channel of the file means transparency.
        changes: What was done to frames beyond the usual conversion, in words for people.
    """

    pixel_aspect: Fraction | None = None
    keep_alpha: bool = True
    changes: set[str] = field(default_factory=set)
    # one for all frames: to set up a conversion takes longer than to convert a small frame
    _reformatter: VideoReformatter = field(default_factory=VideoReformatter, repr=False)

    def show(self, frame: VideoFrame) -> Image.Image:
        """Return a frame as a picture in mode RGB, or RGBa (premultiplied) where it has alpha.

        Raises:
            ClipError: If its colours cannot be converted, or square pixels make it too large.
        """
        has_alpha = self.keep_alpha and any(one.is_alpha for one in frame.format.components)
        matrix = _display_matrix(frame)  # before the conversion, which copies no side data
        picture = Image.fromarray(self._to_rgb(frame, has_alpha))
        if has_alpha:
            picture = picture.convert("RGBa")
        picture = self._with_square_pixels(picture)
        return picture if matrix is None else self._orient(picture, matrix)

    def _to_rgb(self, frame: VideoFrame, has_alpha: bool) -> UInt8[np.ndarray, "h w c"]:
        transfer, primaries = frame.color_trc, frame.color_primaries
        is_hdr = transfer in (_PQ, _HLG)
        if is_hdr and (
            frame.colorspace == _IPT
            or (frame.colorspace == _UNSPECIFIED and _has_dolby_vision(frame))
        ):
            raise ClipError(
                "HDR in Dolby Vision's own colours, which are not read; export as HDR10"
            )
        if not frame.format.is_rgb:
            frame.colorspace = _matrix_of(frame, is_hdr)
        # swscale refuses transfer curves that it does not know, and is not to convert any
        frame.color_trc = frame.color_primaries = _UNSPECIFIED
        try:
            if not is_hdr and primaries not in _WIDE_PRIMARIES:
                return self._convert(frame, "rgba" if has_alpha else "rgb24")
            codes = self._convert(frame, "rgba64le" if has_alpha else "rgb48le")
        except (av.FFmpegError, ValueError) as error:
            raise ClipError(
                f"frames of pixel format {frame.format.name}, which cannot be converted ({error})"
            ) from None
        self.changes.add("tone-mapped from HDR" if is_hdr else "converted from a wide gamut")
        return tone_map(codes, transfer, primaries if primaries in _WIDE_PRIMARIES else _BT2020)

    def _convert(self, frame: VideoFrame, pixel_format: str) -> NDArray[Any]:
        pixels: NDArray[Any] = self._reformatter.reformat(frame, format=pixel_format).to_ndarray()
        return pixels

    def _with_square_pixels(self, picture: Image.Image) -> Image.Image:
        aspect = self.pixel_aspect
        if not aspect or aspect == 1:
            return picture
        # the side that grows is resampled, so that no detail is lost
        width, height = picture.size
        if aspect > 1:
            width = _scale_side(width, aspect)
        else:
            height = _scale_side(height, 1 / aspect)
        check_frame_size(width, height)
        self.changes.add(f"pixels of {aspect.numerator}:{aspect.denominator} made square")
        return picture.resize((width, height), Image.Resampling.BICUBIC)

    def _orient(self, picture: Image.Image, matrix: tuple[int, int, int, int]) -> Image.Image:
        """Turn and mirror a picture by the nearest of the eight ways that keep its sides upright.

        A display matrix sends the stored place (x, y) to (a x + c y, b x + d y).
        """
        a, b, c, d = matrix
        if abs(a) + abs(d) >= abs(b) + abs(c):
            ways = []
            across, down = a < 0, d < 0
        else:
            ways = [Image.Transpose.TRANSPOSE]
            across, down = c < 0, b < 0
        ways += [Image.Transpose.FLIP_LEFT_RIGHT] * across
        ways += [Image.Transpose.FLIP_TOP_BOTTOM] * down
        for way in ways:
            picture = picture.transpose(way)
            self.changes.add("turned or mirrored")
        return picture


def tone_map(
    codes: UInt16[np.ndarray, "h w c"], transfer: int, primaries: int
) -> UInt8[np.ndarray, "h w c"]:
    """Return RGB or RGBA for an SDR display with BT.709 primaries.

    Light is taken relative to diffuse white (203 cd/m²) and its brightest channel m goes through

        f(m) = m                        up to k = 0.7
        f(m) = k + (1 - k) t / (1 + t)  above, with t = (m - k) / (1 - k)

    which is smooth at k and tends to 1; the other channels keep their ratio to it, and so the hue.
    Diffuse white becomes 238 of 255 and 1,000 cd/m² become 253. HLG is shown as on a display of
    1,000 cd/m² (ITU-R BT.2100).

    Args:
        codes: RGB or RGBA with 16 bits of full range.
        transfer: Code point of H.273: 16 is PQ, 18 is HLG; any other counts as SDR.
        primaries: Code point of H.273: 9 is BT.2020, 12 is Display P3.
    """
    light_of = _linear_light(transfer)
    to_bt709 = np.asarray(_WIDE_PRIMARIES[primaries], np.float32).T
    encode = _display_codes()
    height, width, channels = codes.shape
    shown = np.empty((height, width, channels), np.uint8)
    for top in range(0, height, _ROWS_AT_ONCE):
        rows = slice(top, top + _ROWS_AT_ONCE)
        light = light_of[codes[rows, :, :3]]
        if transfer == _HLG:
            # the system gamma of 1.2 acts on luminance, which keeps hues
            luma = light @ np.asarray(_BT2020_LUMA, np.float32)
            light *= (1000 / _DIFFUSE_WHITE) * np.power(luma, 0.2)[..., None]
        light = np.maximum(light @ to_bt709, 0)
        if transfer in (_PQ, _HLG):
            light *= _compression(light.max(axis=-1, keepdims=True))
        roots = np.sqrt(np.minimum(light, 1))  # finer steps for dark light
        shown[rows, :, :3] = encode[(roots * 65535 + 0.5).astype(np.uint16)]
    if channels == 4:
        shown[..., 3] = codes[..., 3] >> 8
    return shown


def _compression(peak: Float32[np.ndarray, "h w 1"]) -> Float32[np.ndarray, "h w 1"]:
    """Return f(m) / m of `tone_map`."""
    above = np.maximum(peak - _KNEE, 0) / (1 - _KNEE)
    mapped = np.minimum(peak, _KNEE) + (1 - _KNEE) * above / (1 + above)
    return mapped / np.maximum(peak, 1e-6)


@lru_cache(maxsize=4)
def _linear_light(transfer: int) -> Float32[np.ndarray, " 65536"]:
    """Return the light of every code of 16 bits: of PQ and SDR relative to diffuse white."""
    code = np.linspace(0, 1, 1 << 16)
    if transfer == _PQ:  # the EOTF of SMPTE ST 2084
        root = code ** (1 / 78.84375)
        light = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
        light = 10000 / _DIFFUSE_WHITE * light ** (1 / 0.1593017578125)
    elif transfer == _HLG:  # the inverse OETF of ARIB STD-B67: light of the scene, from 0 to 1
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    else:
        light = code**_DISPLAY_GAMMA
    return light.astype(np.float32)


@lru_cache(maxsize=1)
def _display_codes() -> UInt8[np.ndarray, " 65536"]:
    """Return the SDR code of every square root of linear light."""
    codes = 255 * np.linspace(0, 1, 1 << 16) ** (2 / _DISPLAY_GAMMA)
    return np.round(codes).astype(np.uint8)


def _matrix_of(frame: VideoFrame, is_hdr: bool) -> int:
    """Return the YUV matrix to use, where the file states none or one that swscale lacks."""
    if frame.colorspace in _KNOWN_MATRICES:
        return frame.colorspace
    if is_hdr or frame.colorspace == _BT2020_CONSTANT:
        return _BT2020
    # the rule of players, mpv's to the pixel
    return _BT709 if frame.width >= 1280 or frame.height > 576 else _BT601


def _scale_side(side: int, factor: Fraction) -> int:
    """Return a scaled side; an even one stays even, since most video codecs store no odd sides."""
    step = 1 if side % 2 else 2
    return max(step, round(side * factor / step) * step)


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    """Return a, b, c and d of the display matrix, or None where there is none to apply."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None or data.buffer_size < 36:
        return None
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data)[:36])
    return None if (a, b, c, d) == (1 << 16, 0, 0, 1 << 16) else (a, b, c, d)


def _has_dolby_vision(frame: VideoFrame) -> bool:
    return "DOVI_RPU_BUFFER" in frame.side_data or "DOVI_METADATA" in frame.side_data


def show_image(image: Image.Image) -> Image.Image:
    """Return a still picture, or a frame of an animation, as viewers show it, in RGB or RGBA.

    EXIF orientations are applied. Grey pictures of more than 8 bits are scaled to 8: of the ranges
    0 to 1 (floats), 0 to 255, 0 to 65,535 and 0 to 2³¹ - 1 the smallest that holds the picture;
    16-bit files always have the range 0 to 65,535. Colour profiles are converted to sRGB.

    Raises:
        OSError: If the picture is cut off.
    """
    image.load()
    shown = _apply_profile(_to_eight_bits(image), image.info.get("icc_profile"))
    has_alpha = shown.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in shown.info
    shown = shown.convert("RGBA" if has_alpha else "RGB")
    return apply_orientation(shown, exif_orientation(image))


_EXIF_WAYS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a picture, from 1 to 8; 1, upright, where it is damaged."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return 1
    return orientation if orientation in _EXIF_WAYS else 1


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Return a picture turned and mirrored as an EXIF orientation, from 1 to 8, says."""
    way = _EXIF_WAYS.get(orientation)
    return image if way is None else image.transpose(way)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Return a picture whose channels have 8 bits."""
    if image.mode.startswith("I;16"):
        scaled = np.asarray(image.convert("I"), np.float64) / 257
    elif image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float64))
        ranges = ((1,) if image.mode == "F" else ()) + (255, 65535, 2**31 - 1)
        largest = values.max(initial=0)
        scaled = values * (255 / next((top for top in ranges if largest <= top), largest))
    else:
        return image
    return Image.fromarray(np.clip(np.round(scaled), 0, 255).astype(np.uint8))


def _apply_profile(image: Image.Image, profile: object) -> Image.Image:
    """Return a picture in sRGB; one whose profile is damaged is taken as it is."""
    if not isinstance(profile, bytes) or image.mode not in ("RGB", "RGBA", "L", "CMYK"):
        return image
    try:
        source = ImageCms.getOpenProfile(BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source, target, outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return image if converted is None else converted
