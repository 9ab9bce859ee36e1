"""Preparation: every clip of a source is decoded once into a cache that training reads quickly.

A run that was killed continues where it stopped: each finished clip is recorded in
`progress.jsonl`, and kept if the source file and the cached file are still those of the record.
"""

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256 as hash_bytes
from pathlib import Path
from typing import TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from magicvideo.atomic_io import atomic_file, lock_output, remove_partial, sha256
from magicvideo.data.manifest import (
    DATASET,
    MANIFEST,
    ClipFile,
    ClipRecord,
    DatasetInfo,
    Fit,
    FrameSize,
    read_info,
    write_info,
    write_manifest,
)
from magicvideo.data.scenes import longest_scene
from magicvideo.data.sources.source import SkippedFile, Source, SourceClip
from magicvideo.data.workers import OnProgress, map_unordered
from magicvideo.errors import ClipError, UserError
from magicvideo.limits import MAX_CLIP_FRAMES
from magicvideo.media.video_reader import FrameReader

CLIPS = "clips"
PROGRESS = "progress.jsonl"
SKIPPED = "skipped.jsonl"
SIZE_STEP = 8
MAX_SIDE = 1024

_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")


@dataclass(frozen=True)
class FrameSettings:
    """The frames of prepared clips.

    Attributes:
        height: In pixels, a multiple of 8.
        width: Likewise.
        fit: How frames of another shape are fitted: "crop" cuts the centre out, "pad" adds black
            bars, or transparent ones where the clip is transparent.
        step: One frame in so many of the source is kept, from the first on.

    Raises:
        UserError: If one of them does not fit.
    """

    height: int
    width: int
    fit: Fit = "crop"
    step: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        for side in (self.height, self.width):
            if not SIZE_STEP <= side <= MAX_SIDE or side % SIZE_STEP:
                raise UserError(
                    f"size {side} is not a multiple of {SIZE_STEP} between {SIZE_STEP} and "
                    f"{MAX_SIDE}."
                )
        if self.fit not in get_args(Fit):
            raise UserError(f"--fit {self.fit!r} is unknown; take {' or '.join(get_args(Fit))}.")
        if self.step < 1:
            raise UserError(f"--frame-step {self.step} is not 1 (all frames) or more.")

    @classmethod
    def square(cls, side: int, *, step: int = 1) -> "FrameSettings":
        """Return the settings of square frames."""
        return cls(side, side, step=step)

    @property
    def size(self) -> str:
        """Return the size as the command line has it: "64", or "96x64" for 96 pixels of width."""
        return str(FrameSize(self.height, self.width))


def parse_size(text: str) -> FrameSize:
    """Return the height and width of a size such as "64" or, width first, "96x64".

    Raises:
        UserError: If it is neither.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if not match:
        raise UserError(f"--size {text!r} is not a size; give one such as 64, or 96x64.")
    width, height = match[1], match[2] or match[1]
    return FrameSize(int(height), int(width))


class CachedFile(BaseModel):
    """One line of `progress.jsonl`: which bytes of the source gave which file of the cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    source_sha256: str
    """Of the source file, and the part of it that was taken, if not all."""
    file: ClipFile
    bytes: int
    frames: int
    fps: float
    channels: int
    sha256: str


@dataclass(frozen=True)
class FittedClip:
    """The decoded frames of a clip in the size of the preparation.

    Attributes:
        pixels: Uint8 `f h w c`, c=4 premultiplied RGBA or c=3 RGB.
        fps: Frames per second.
        source_height: Of the first frame as it is shown, in pixels.
        source_width: Likewise.
        changes: What was done to show the frames, such as "deinterlaced".
    """

    pixels: NDArray[np.uint8]
    fps: float
    source_height: int
    source_width: int
    changes: tuple[str, ...]


@dataclass(frozen=True)
class PrepareReport:
    """The result of a preparation."""

    clips: list[ClipRecord]
    skipped: list[SkippedFile]
    num_kept: int
    """Clips that an earlier run had finished."""


def prepare(
    source: Source,
    out: Path,
    frames: FrameSettings,
    *,
    workers: int = 1,
    on_clip: OnProgress | None = None,
) -> PrepareReport:
    """Decode all clips of a source into `out` and write its manifest.

    Args:
        source: What to decode.
        out: A new folder, or one that an earlier run with the same source and settings began.
        frames: The size of the frames, and which are kept.
        workers: Processes that decode.
        on_clip: Called with the numbers of finished clips and of all clips.

    Raises:
        UserError: If no clip of the source can be used, or `out` holds something else.
    """
    info = DatasetInfo(
        source=source.name,
        origin=str(source.folder.resolve()),
        height=frames.height,
        width=frames.width,
        fit=frames.fit,
        frame_step=frames.step,
        licence=source.licence,
        split_rule=source.split_rule,
    )
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with lock_output(out.absolute()):
        _open_folder(out, info)
        return _prepare_all(source, out, frames, workers, on_clip)


def _prepare_all(
    source: Source, out: Path, frames: FrameSettings, workers: int, on_clip: OnProgress | None
) -> PrepareReport:
    finished = _clean_progress(out)
    jobs = [(clip, out, frames, finished.get(clip.id)) for clip in source.clips]
    (out / MANIFEST).unlink(missing_ok=True)
    cached, skipped, num_kept = _cache_all(jobs, out / PROGRESS, workers, on_clip)
    skipped = [*source.skipped, *skipped]
    clips = [to_clip_record(clip, cached[clip.id]) for clip in source.clips if clip.id in cached]
    if not clips:
        raise UserError(_nothing_usable(source, skipped))
    _remove_foreign_clips(out, clips)
    _write_skipped(out, skipped)
    write_manifest(out, clips)
    return PrepareReport(clips, skipped, num_kept)


def decode_source_clip(clip: SourceClip, frames: FrameSettings) -> FittedClip:
    """Decode a clip: a whole file, a time range of one, or the longest scene of either.

    Args:
        clip: What to decode.
        frames: The size of the frames, and which are kept.

    Raises:
        ClipError: If it cannot be used; the message is the reason.
    """
    reader = FrameReader(clip.path, MAX_CLIP_FRAMES, clip.span)
    fitted, is_opaque, count, size = list[NDArray[np.uint8]](), True, 0, (1, 1)
    for picture in reader:
        size = picture.size if count == 0 else size
        if clip.longest_scene or count % frames.step == 0:
            pixels, opaque = fit_frame(picture, frames.height, frames.width, frames.fit)
            fitted.append(pixels)
            is_opaque &= opaque
        count += 1
    if count < 2:
        raise ClipError("a still picture" if count else "no frame can be decoded")
    if clip.frames and count != clip.frames:
        raise ClipError(f"has {count} frames instead of {clip.frames}")
    clips = np.stack([pixels[..., :3] if is_opaque else pixels for pixels in fitted])
    if clip.longest_scene:
        clips = longest_scene(clips)
        if len(clips) < 2:
            raise ClipError("no two frames without a cut between them")
        clips = clips[:: frames.step]
    return FittedClip(
        clips,
        reader.fps / frames.step,
        source_height=size[1],
        source_width=size[0],
        changes=tuple(sorted(reader.changes)),
    )


def fit_frame(
    picture: Image.Image, height: int, width: int, fit: Fit
) -> tuple[NDArray[np.uint8], bool]:
    """Return a frame in another size, and whether it was opaque.

    Args:
        picture: RGB, or premultiplied RGBA.
        height: Of the result, in pixels.
        width: Likewise.
        fit: "crop" keeps the largest centred part of the shape of the result; "pad" keeps the whole
            picture and adds bars of zeros, which are black or transparent.
    """
    if fit == "crop":
        crop_width = min(picture.width, round(picture.height * width / height))
        crop_height = min(picture.height, round(picture.width * height / width))
        left, top = (picture.width - crop_width) // 2, (picture.height - crop_height) // 2
        box = (left, top, left + crop_width, top + crop_height)
        pixels = _resize(picture, (width, height), box)
    else:
        scale = min(width / picture.width, height / picture.height)
        inner_width = min(width, max(1, round(picture.width * scale)))
        inner_height = min(height, max(1, round(picture.height * scale)))
        box = (0, 0, picture.width, picture.height)
        pixels = _resize(picture, (inner_width, inner_height), box)
    is_opaque = pixels.shape[-1] == 3 or bool(pixels[..., 3].min() == 255)
    down, right = height - pixels.shape[0], width - pixels.shape[1]
    bars = ((down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0))
    return (np.pad(pixels, bars) if down or right else pixels), is_opaque


def fingerprint(clip: SourceClip) -> str:
    """Return a text that changes whenever the clip would give other frames.

    Raises:
        ClipError: If the file cannot be read.
    """
    path = clip.path
    try:
        status = path.stat() if path.is_file() else None
        digest = _sha256(path, status.st_size, status.st_mtime_ns) if status else ""
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror})") from None
    if clip.span:
        digest += f" from {clip.span[0]!r} to {clip.span[1]!r}"
    return digest + " longest scene" * clip.longest_scene


def cache_path(clip_id: str) -> str:
    """Return where a clip is cached: its id, made safe for every file system and kept unique."""
    safe = re.sub(r"[^a-z0-9_-]", "_", clip_id.lower())[:80]
    if safe != clip_id:
        safe += "-" + hash_bytes(clip_id.encode()).hexdigest()[:12]
    return f"{CLIPS}/{safe}.npy"


def read_progress(out: Path) -> dict[str, CachedFile]:
    """Return the finished clips of a folder by id, without the line that a kill cut off."""
    path = out / PROGRESS
    finished = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValidationError):
            cached = CachedFile.model_validate_json(line)
            finished[cached.id] = cached
    return finished


def to_clip_record(clip: SourceClip, cached: CachedFile) -> ClipRecord:
    """Return the line of the manifest for a decoded clip."""
    return ClipRecord.model_validate(
        {
            **cached.model_dump(include={"id", "file", "frames", "fps", "channels", "sha256"}),
            "split": clip.split,
            "loops": clip.loops,
            "text": clip.text,
            "alt_captions": clip.alt_captions,
            "attributes": clip.attributes,
        }
    )


@lru_cache(maxsize=4)
def _sha256(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 (part of the key)
    # Clips of one long video come one after another, and its bytes are read once for all of them
    return sha256(path)


def _resize(
    picture: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]
) -> NDArray[np.uint8]:
    """Return a part of a picture in another size: the mean of areas, or bicubic to enlarge."""
    shrinks = box[2] - box[0] >= size[0] and box[3] - box[1] >= size[1]
    kernel = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(picture.resize(size, kernel, box=box))


def _write_skipped(out: Path, skipped: list[SkippedFile]) -> None:
    """Write `skipped.jsonl`: what became no clip and why, one file a line, sorted."""
    lines = sorted(json.dumps(asdict(file)) + "\n" for file in skipped)
    with atomic_file(out / SKIPPED) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def _nothing_usable(source: Source, skipped: list[SkippedFile]) -> str:
    """Return the sentence for a source without a usable clip, with the first reason in it."""
    reason = f" (the first: {skipped[0].file}, {skipped[0].reason})" if skipped else ""
    return (
        f"None of the {len(source.clips) + len(source.skipped)} files of this "
        f"{source.name} source can be used{reason}; `magicvideo data doctor` lists them all."
    )


def _open_folder(out: Path, info: DatasetInfo) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder to prepare into.")
    if not (out / DATASET).exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty and holds no prepared data; name a new folder.")
        (out / CLIPS).mkdir(parents=True, exist_ok=True)
        write_info(out, info)
        return
    existing = read_info(out)
    before, now = _describe(existing), _describe(info)
    if before != now:
        raise UserError(f"{out} holds {before}, not {now}; name a new folder.")
    write_info(out, info)
    (out / CLIPS).mkdir(exist_ok=True)
    remove_partial(out)
    remove_partial(out / CLIPS)


def _describe(info: DatasetInfo) -> str:
    frames = FrameSettings(info.height, info.width, info.fit, info.frame_step)
    fit = "" if frames.fit == "crop" else f" with --fit {frames.fit}"
    step = "" if frames.step == 1 else f" with --frame-step {frames.step}"
    return f"{info.origin} at size {frames.size}{fit}{step}"


def _clean_progress(out: Path) -> dict[str, CachedFile]:
    """Return the finished clips, and write them back without the line that a kill cut off."""
    finished = read_progress(out)
    with atomic_file(out / PROGRESS) as partial:
        lines = [cached.model_dump_json() + "\n" for cached in finished.values()]
        partial.write_text("".join(lines), encoding="utf-8")
    return finished


_Job: TypeAlias = tuple[SourceClip, Path, FrameSettings, CachedFile | None]


def _cache_all(
    jobs: list[_Job], progress: Path, workers: int, on_clip: OnProgress | None
) -> tuple[dict[str, CachedFile], list[SkippedFile], int]:
    """Return the cached files by clip id, the skipped files, and how many were cached before."""
    cached, skipped, num_kept = dict[str, CachedFile](), list[SkippedFile](), 0
    with progress.open("a", encoding="utf-8") as log:
        for done, result in enumerate(map_unordered(_cache, jobs, workers), start=1):
            if isinstance(result, SkippedFile):
                skipped.append(result)
            else:
                one, kept = result
                cached[one.id] = one
                num_kept += kept
                log.write("" if kept else one.model_dump_json() + "\n")
                log.flush()
            if on_clip:
                on_clip(done, len(jobs))
    return cached, skipped, num_kept


def _cache(job: _Job) -> tuple[CachedFile, bool] | SkippedFile:
    """Return the cached file and whether an earlier run had written it."""
    clip, out, frames, finished = job
    file = cache_path(clip.id)
    target = out / file
    try:
        source_sha256 = fingerprint(clip)
        if finished and finished.source_sha256 == source_sha256 and _is_whole(target, finished):
            return finished, True
        decoded = decode_source_clip(clip, frames)
    except ClipError as error:
        return SkippedFile(clip.file, str(error))
    pixels = np.ascontiguousarray(decoded.pixels)
    with atomic_file(target) as partial:
        _write_array(partial, pixels)
    cached = CachedFile(
        id=clip.id,
        source_sha256=source_sha256,
        file=file,
        bytes=target.stat().st_size,
        frames=len(pixels),
        fps=decoded.fps,
        channels=pixels.shape[-1],
        sha256=sha256(target),
    )
    return cached, False


def _write_array(path: Path, pixels: NDArray[np.uint8]) -> None:
    # np.save would lose the reason when a write fails, such as a full disk
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(pixels)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(pixels.data)


def _is_whole(target: Path, finished: CachedFile) -> bool:
    return target.is_file() and target.stat().st_size == finished.bytes


def _remove_foreign_clips(out: Path, clips: list[ClipRecord]) -> None:
    known = {out / clip.file for clip in clips}
    for path in (out / CLIPS).glob("*.npy"):
        if path not in known:
            path.unlink()
