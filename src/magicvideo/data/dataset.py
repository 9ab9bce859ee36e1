"""Training samples out of a prepared folder: frames on a background, their rate and a caption."""

from collections import Counter
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from magicvideo.data.backgrounds import Background, paint, parse_background, random_background
from magicvideo.data.captions import describe, plain_caption
from magicvideo.data.frame_sampling import choose_frames
from magicvideo.data.manifest import Clip, Split, read_info, read_manifest
from magicvideo.errors import UserError
from magicvideo.shapes import Frames

_HEADER = 128  # bytes before the pixels in an .npy file of four axes

Wording: TypeAlias = Literal["varied", "plain"]


@dataclass(frozen=True)
class Sample:
    """Some frames of one clip, pixels in [-1, 1], at `fps` frames a second."""

    frames: Float[Tensor, "f 3 h w"]
    fps: float
    caption: str
    clip_id: str


@dataclass(frozen=True)
class Batch:
    """Samples of equal length, stacked."""

    frames: Frames
    fps: Float[Tensor, " b"]
    captions: list[str]
    clip_ids: list[str]


class ClipDataset:
    """The clips of a prepared folder, read from the disk as they are asked for.

    Args:
        folder: The prepared folder.
        splits: Which clips count.
        captioned: Whether clips without a caption are left out.

    Raises:
        UserError: If the folder is not prepared, a file is missing or cut, or no clip is in
            `splits`.
    """

    def __init__(
        self, folder: Path, splits: tuple[Split, ...] = ("train",), *, captioned: bool = False
    ) -> None:
        self.folder = folder
        self._shares: dict[float, tuple[float, ...]] = {}
        self.info = read_info(folder)
        self.clips = [
            clip
            for clip in read_manifest(folder)
            if clip.split in splits and (clip.has_caption or not captioned)
        ]
        if not self.clips:
            raise UserError(
                f"{folder} has no clip{' with a caption' * captioned} in {' or '.join(splits)}; "
                "`magicvideo data doctor` says what became of every file."
            )
        for clip in self.clips:
            _check_file(folder / clip.file, clip, self.info.size)

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.clips)

    def shares(self, subject_balance: float) -> tuple[float, ...]:
        """Return how much of the training belongs to each clip; the shares sum to 1.

        Args:
            subject_balance: From 0, where every clip has the same share, to 1, where every subject
                has, however many clips show it. A subject is the name without skin tone, or a
                caption; a clip without a caption is one of its own.
        """
        if subject_balance in self._shares:
            return self._shares[subject_balance]
        subjects = [_subject(clip) for clip in self.clips]
        clips_of = Counter(subjects)
        weights = [clips_of[subject] ** -subject_balance for subject in subjects]
        total = sum(weights)
        self._shares[subject_balance] = tuple(weight / total for weight in weights)
        return self._shares[subject_balance]

    def sample(
        self,
        index: int,
        rng: np.random.Generator,
        *,
        num_frames: int,
        strides: tuple[int, int] = (1, 4),
        background: str | None = None,
        wording: Wording = "varied",
    ) -> Sample:
        """Return frames of clip number `index` at a random rate and start.

        Args:
            index: Which clip.
            rng: Source of every random choice; an equal state gives an equal sample.
            num_frames: How many frames; `sampling.choose_frames` says how short clips are filled.
            strides: Lowest and highest stride between frames.
            background: Its name; None draws one. Clips without transparency keep their own.
            wording: "plain" for the canonical caption, which always names the background.

        Raises:
            UserError: If `background` is not a known name.
        """
        clip = self.clips[index]
        chosen, stride = choose_frames(clip.frames, num_frames, strides, rng, loops=clip.loops)
        pixels = self._read(clip)[chosen]
        behind = None
        if clip.channels == 4:
            behind = parse_background(background) if background else random_background(rng)
        caption = (
            describe(clip, behind, rng) if wording == "varied" else plain_caption(clip, behind)
        )
        return Sample(compose(pixels, behind), clip.fps / stride, caption, clip.id)

    def _read(self, clip: Clip) -> NDArray[np.uint8]:
        # A bare mmap: np.load, which parses the header again, takes five times as long as the rest
        _check_file(self.folder / clip.file, clip, self.info.size)  # it may have gone since
        shape = (clip.frames, self.info.size, self.info.size, clip.channels)
        with (self.folder / clip.file).open("rb") as file:
            mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
        return np.frombuffer(mapped, np.uint8, offset=_HEADER).reshape(shape)


def compose(pixels: NDArray[np.uint8], background: Background | None) -> Float[Tensor, "f 3 h w"]:
    """Put a background behind premultiplied RGBA pixels `f h w 4`; RGB pixels `f h w 3` stay.

    Returns:
        Pixels in [-1, 1].
    """
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    colour: NDArray[np.float32] = planes[:, :3].astype(np.float32)
    if background:
        see_through = (255 - planes[:, 3:]) * np.float32(1 / 255)
        colour += paint(background, pixels.shape[1]).transpose(2, 0, 1) * see_through
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


def _subject(clip: Clip) -> str:
    return clip.attributes.base if clip.attributes else clip.text or clip.id


def _check_file(path: Path, clip: Clip, size: int) -> None:
    pixels = clip.frames * size * size * clip.channels
    if not path.is_file():
        raise UserError(f"{path} is missing; run `magicvideo data prepare` again.")
    if path.stat().st_size != pixels + _HEADER:
        raise UserError(f"{path} is cut off; delete it and run `magicvideo data prepare` again.")
