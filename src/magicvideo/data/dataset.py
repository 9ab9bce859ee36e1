"""Training samples from a prepared folder: frames on a background, their rate and a caption."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from magicvideo.data.backgrounds import (
    Background,
    parse_background,
    random_background,
    render_background,
)
from magicvideo.data.captions import canonical_caption, random_caption
from magicvideo.data.manifest import ClipRecord, DatasetInfo, Split, read_info, read_manifest
from magicvideo.errors import UserError
from magicvideo.shapes import Frames

if TYPE_CHECKING:
    from typing_extensions import Self

CaptionStyle: TypeAlias = Literal["varied", "plain"]


@dataclass(frozen=True)
class Sample:
    """Some frames of one clip, pixels in [-1, 1], at `fps` frames per second."""

    frames: Float[Tensor, "f 3 h w"]
    fps: float
    caption: str
    clip_id: str


class TensorBatch:
    """A dataclass of tensors and lists whose tensors move together."""

    def to(self, device: torch.device) -> "Self":
        """Return the batch on a device; from pinned memory without waiting for the copy."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def pin_memory(self) -> "Self":
        """Return the batch in pinned memory; torch's `DataLoader` calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Note that a stream uses the tensors, so that their memory is not reused before."""
        for value in vars(self).values():
            if isinstance(value, Tensor):
                value.record_stream(stream)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Self":
        tensors = {n: function(v) for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)  # type: ignore[type-var]


@dataclass(frozen=True)
class Batch(TensorBatch):
    """Samples of equal length, stacked."""

    frames: Frames
    fps: Float[Tensor, " b"]
    captions: list[str]
    clip_ids: list[str]


class ClipDataset:
    """The clips of a prepared folder, read from the disk on demand.

    Args:
        folder: The prepared folder.
        splits: The splits whose clips are read.
        captioned: Whether clips without a caption are left out.

    Attributes:
        folder: The prepared folder.
        info: Its settings.
        clips: The clips, in the order of their ids.

    Raises:
        UserError: If the folder is not prepared, a file is missing or cut off, or no clip is in
            `splits`.
    """

    def __init__(
        self, folder: Path, splits: tuple[Split, ...] = ("train",), *, captioned: bool = False
    ) -> None:
        self.folder = folder
        self._weights: dict[float, tuple[float, ...]] = {}
        self.info = read_info(folder)
        self.clips = [
            clip
            for clip in read_manifest(folder)
            if clip.split in splits and (clip.has_caption or not captioned)
        ]
        if not self.clips:
            raise UserError(
                f"{folder} has no clip{' with a caption' * captioned} in {' or '.join(splits)}; "
                "`magicvideo data doctor` reports what became of every file."
            )
        for clip in self.clips:
            _check_file(folder / clip.file, clip, self.info)

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.clips)

    def sampling_weights(self, subject_balance: float) -> tuple[float, ...]:
        """Return the fraction of training samples that each clip gets; they sum to 1.

        Args:
            subject_balance: From 0, where every clip has the same weight, to 1, where every
                subject has (`ClipRecord.subject`), however many clips show it.
        """
        if subject_balance not in self._weights:
            counts = Counter(clip.subject for clip in self.clips)
            weights = [counts[clip.subject] ** -subject_balance for clip in self.clips]
            total = sum(weights)
            self._weights[subject_balance] = tuple(weight / total for weight in weights)
        return self._weights[subject_balance]

    def sample(
        self,
        index: int,
        rng: np.random.Generator,
        *,
        num_frames: int,
        strides: tuple[int, int] = (1, 4),
        background: str | None = None,
        caption_style: CaptionStyle = "varied",
    ) -> Sample:
        """Return frames of clip number `index` at a random rate and start.

        Args:
            index: Which clip.
            rng: Source of every random choice; an equal state gives an equal sample.
            num_frames: How many frames; `sample_frame_indices` documents how short clips are
                filled.
            strides: Lowest and highest stride between frames.
            background: Its name; None draws one. Clips without transparency keep their own.
            caption_style: "plain" for the canonical caption, which always names the background.

        Raises:
            UserError: If `background` is not a known name.
        """
        clip = self.clips[index]
        chosen, stride = sample_frame_indices(
            clip.frames, num_frames, strides, rng, loops=clip.loops
        )
        pixels = self._read(clip)[chosen]
        behind = None
        if clip.channels == 4:
            behind = parse_background(background) if background else random_background(rng)
        if caption_style == "varied":
            caption = random_caption(clip, behind, rng)
        else:
            caption = canonical_caption(clip, behind)
        return Sample(composite_background(pixels, behind), clip.fps / stride, caption, clip.id)

    def read_frames(self, index: int) -> NDArray[np.uint8]:
        """Return all frames of clip number `index`, `f h w c`, mapped from the disk.

        Four channels are premultiplied RGBA, three are RGB.
        """
        return self._read(self.clips[index])

    def _read(self, clip: ClipRecord) -> NDArray[np.uint8]:
        # A bare mmap: np.load, which parses the header again, takes five times as long as the rest
        path = self.folder / clip.file
        _check_file(path, clip, self.info)  # it may have changed since
        shape = _shape(clip, self.info)
        header = _npy_header(shape)
        with path.open("rb") as file:
            if file.read(len(header)) != header:
                raise UserError(
                    f"{path} has other frames than the manifest says; delete it and run "
                    "`magicvideo data prepare` again."
                )
            mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
        return np.frombuffer(mapped, np.uint8, offset=len(header)).reshape(shape)


def sample_frame_indices(
    length: int,
    num_frames: int,
    strides: tuple[int, int],
    rng: np.random.Generator,
    *,
    loops: bool,
) -> tuple[NDArray[np.intp], int]:
    """Choose `num_frames` evenly spaced frames of a clip that has `length`, at a random rate.

    The stride is drawn from `strides` (both ends included) among those at which the frames fit, and
    the start among those that then remain. Where not even stride 1 fits, the clip starts at its
    first frame and either starts over (`loops`) or repeats its last frame, at stride 1.

    Returns:
        The frame numbers, and the stride between them.
    """
    lowest, highest = strides
    fitting = (length - 1) // (num_frames - 1) if num_frames > 1 else highest
    if fitting < 1:
        steps = np.arange(num_frames)
        return (steps % length if loops else np.minimum(steps, length - 1)), 1
    highest = min(highest, fitting)
    stride = int(rng.integers(min(lowest, highest), highest + 1))
    start = int(rng.integers(length - (num_frames - 1) * stride))
    return start + stride * np.arange(num_frames), stride


def sample_systematically(
    weights: NDArray[np.float64], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw `count` items in random order, each in proportion to its weight.

    Item i is drawn `count * weights[i] / sum(weights)` times, rounded up or down at random
    (systematic sampling, Madow 1949), so that the frequencies have the least variance.
    """
    order = rng.permutation(len(weights))
    ends = np.cumsum(weights[order])
    points = (np.arange(count) + rng.random()) * ends[-1] / max(count, 1)
    return rng.permutation(order[np.searchsorted(ends, points, side="right")])


def composite_background(
    pixels: NDArray[np.uint8], background: Background | None
) -> Float[Tensor, "f 3 h w"]:
    """Put a background behind premultiplied RGBA pixels `f h w 4`; RGB pixels `f h w 3` stay.

    Returns:
        Pixels in [-1, 1].
    """
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    colour: NDArray[np.float32] = planes[:, :3].astype(np.float32)
    if background:
        # "over" of Porter and Duff (1984): the colour is premultiplied by alpha already
        transparency = (255 - planes[:, 3:]) * np.float32(1 / 255)
        behind = render_background(background, pixels.shape[1], pixels.shape[2])
        colour += behind.transpose(2, 0, 1) * transparency
    colour *= 2 / 255
    colour -= 1
    return torch.from_numpy(colour)


def collate(samples: list[Sample]) -> Batch:
    """Stack samples of equal length."""
    return Batch(
        frames=torch.stack([sample.frames for sample in samples]),
        fps=torch.tensor([sample.fps for sample in samples]),
        captions=[sample.caption for sample in samples],
        clip_ids=[sample.clip_id for sample in samples],
    )


def _shape(clip: ClipRecord, info: DatasetInfo) -> tuple[int, int, int, int]:
    return clip.frames, info.height, info.width, clip.channels


@lru_cache(maxsize=1024)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the first bytes of an .npy file of uint8."""
    file = BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _check_file(path: Path, clip: ClipRecord, info: DatasetInfo) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing; run `magicvideo data prepare` again.")
    shape = _shape(clip, info)
    expected = len(_npy_header(shape)) + math.prod(shape)
    if path.stat().st_size != expected:
        raise UserError(f"{path} is cut off; delete it and run `magicvideo data prepare` again.")
