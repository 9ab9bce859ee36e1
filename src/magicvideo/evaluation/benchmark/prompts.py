"""Reference clips of a benchmark, prompts drawn from them, and videos from elsewhere."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from magicvideo.data.manifest import MANIFEST, Split, read_info, read_manifest
from magicvideo.data.sources.registry import open_source
from magicvideo.data.sources.source import SourceClip
from magicvideo.errors import ClipError, UserError
from magicvideo.evaluation.benchmark.protocol import Benchmark, Prompts
from magicvideo.media.video_reader import (
    ANIMATION_SUFFIXES,
    VIDEO_SUFFIXES,
    read_clip_native,
)
from magicvideo.pipelines.video import read_request

_PREPARED = ".npy"


@dataclass(frozen=True, kw_only=True)
class ReferenceClip:
    """A real clip: its id, its file and its captions.

    In data sets of classes the one caption is the name of the class.
    """

    id: str
    path: Path
    captions: tuple[str, ...]
    fps: float | None = None
    """Where the file does not know it."""


@dataclass(frozen=True, kw_only=True)
class ClipPixels:
    """The frames of a file at their own size and rate."""

    pixels: UInt8[np.ndarray, "f h w 3"]
    fps: float


def reference_clips(folder: Path, split: Split) -> list[ReferenceClip]:
    """Return the clips of one split that have captions, sorted by id.

    Raises:
        UserError: If the folder is not a data set, lacks the clip, or its clips are parts of files.
    """
    if (folder / MANIFEST).is_file():
        clips = _prepared(folder, split)
    else:
        candidates = [one for one in open_source(folder).clips if one.split == split]
        if any(one.span for one in candidates):
            raise UserError(
                f"{folder} has clips that are parts of longer files; prepare it, and name the "
                "prepared folder."
            )
        clips = [
            ReferenceClip(id=one.id, path=one.path, captions=captions_of(one))
            for one in candidates
            if captions_of(one)
        ]
    if not clips:
        raise UserError(
            f"{folder} has no clip with a caption in the split {split}, which the protocol asks "
            "for; name another folder with --reference."
        )
    return sorted(clips, key=lambda clip: clip.id)


def prepared_side(folder: Path) -> int | None:
    """Return the side of the frames of a prepared folder in pixels, None for any other folder.

    Raises:
        UserError: If the prepared folder does not say it.
    """
    return read_info(folder).size if (folder / MANIFEST).is_file() else None


def captions_of(candidate: SourceClip) -> tuple[str, ...]:
    """Return all captions of a clip."""
    others = candidate.alt_captions
    return () if candidate.text is None else (candidate.text, *others)


def read_clip_pixels(path: Path, fps: float | None = None) -> ClipPixels:
    """Decode a video file, or a clip of a prepared folder, which needs its rate from the manifest.

    Raises:
        ClipError: If it cannot be used; the message is the reason.
    """
    if path.suffix == _PREPARED:
        try:
            pixels = np.load(path)
        except (OSError, ValueError, EOFError):
            raise ClipError("cannot be read") from None
        return ClipPixels(pixels=_opaque(pixels), fps=fps or 1.0)
    decoded = read_clip_native(path)
    return ClipPixels(pixels=_opaque(decoded.pixels), fps=decoded.fps)


def _opaque(pixels: UInt8[np.ndarray, "f h w c"]) -> UInt8[np.ndarray, "f h w 3"]:
    if pixels.shape[-1] != 3:
        raise ClipError("transparent, and there is no background to put behind it")
    return pixels


def _prepared(folder: Path, split: Split) -> list[ReferenceClip]:
    return [
        ReferenceClip(
            id=clip.id,
            path=folder / clip.file,
            captions=(clip.text, *clip.alt_captions),
            fps=clip.fps,
        )
        for clip in read_manifest(folder)
        if clip.split == split and clip.text is not None
    ]


_OF_CLASSES = ("class_mix", "even_classes")


@dataclass(frozen=True)
class BenchmarkPrompt:
    """One requested video."""

    prompt: str
    seed: int


def sample_prompts(benchmark: Benchmark, clips: list[ReferenceClip]) -> list[BenchmarkPrompt]:
    """Return the prompts of a benchmark, ordered so that any first part is a fair sample.

    Args:
        benchmark: Says which.
        clips: Of the split that the prompts come from, sorted by id.

    Returns:
        As many as the benchmark asks for, or fewer if there are too few clips. The seed of prompt k
        is k.

    Raises:
        UserError: If classes cannot be taken equally often.
    """
    rng = np.random.default_rng(benchmark.seed)
    wanted = benchmark.prompts
    if wanted.kind == "all_captions":
        texts = [caption for clip in clips for caption in clip.captions]
        texts = [texts[place] for place in rng.permutation(len(texts))]
    elif wanted.kind == "one_caption":
        chosen = [clips[place] for place in rng.permutation(len(clips))[: wanted.count]]
        texts = [clip.captions[rng.integers(len(clip.captions))] for clip in chosen]
    else:
        names = _classes(wanted, clips)
        texts = [_sentence(wanted, names[place]) for place in rng.permutation(len(names))]
    return [BenchmarkPrompt(text, seed) for seed, text in enumerate(texts)]


def caption_of(benchmark: Benchmark, clip: ReferenceClip) -> str:
    """Return the prompt of a real clip: its caption, or its class as a prompt."""
    wanted = benchmark.prompts
    if wanted.kind in _OF_CLASSES:
        return _sentence(wanted, clip.captions[0])
    return clip.captions[0]


def prompts_hash(texts: list[str]) -> str:
    """Return the SHA-256 of a set of prompts, independent of their order."""
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()


def class_counts(
    benchmark: Benchmark, clips: list[ReferenceClip], texts: list[str]
) -> dict[str, int]:
    """Return the number of prompts of each class; prompts without a class are left out.

    Args:
        benchmark: Says how a class becomes a prompt. Where prompts are captions, none has a class.
        clips: Of all classes.
        texts: The prompts.
    """
    if benchmark.prompts.kind not in _OF_CLASSES:
        return {}
    names = {caption_of(benchmark, clip): clip.captions[0] for clip in clips}
    return dict(sorted(Counter(names[text] for text in texts if text in names).items()))


def _classes(wanted: Prompts, clips: list[ReferenceClip]) -> list[str]:
    """Return the name of a class for each prompt."""
    sizes = Counter(clip.captions[0] for clip in clips)
    if wanted.kind == "class_mix":
        counts = _apportion(sizes, wanted.count)
    else:
        each, rest = divmod(wanted.count, len(sizes))
        if rest:
            raise UserError(
                f"{wanted.count} prompts cannot be shared equally by the {len(sizes)} classes of "
                "this data set; give the whole data set, or ask for a multiple."
            )
        counts = dict.fromkeys(sizes, each)
    return [name for name in sorted(counts) for _ in range(counts[name])]


def _apportion(sizes: Counter[str], count: int) -> dict[str, int]:
    """Split `count` in proportion to sizes by the method of largest remainders."""
    total = sizes.total()
    shares = {name: divmod(size * count, total) for name, size in sizes.items()}
    counts = {name: whole for name, (whole, _) in shares.items()}
    by_rest = sorted(shares, key=lambda name: (-shares[name][1], name))
    for name in by_rest[: count - sum(counts.values())]:
        counts[name] += 1
    return counts


def _sentence(wanted: Prompts, name: str) -> str:
    return wanted.sentences.get(name) or wanted.wording.format(name=name)


_SUFFIXES = VIDEO_SUFFIXES | ANIMATION_SUFFIXES
_NUMBERED = re.compile(r"(.+)-(\d+)")


@dataclass(frozen=True)
class ExternalVideo:
    """A file and its prompt."""

    path: Path
    prompt: str


def find_external_videos(folder: Path) -> list[ExternalVideo]:
    """Return the videos of a folder and its subfolders, sorted by name.

    The prompt is in `video.txt` next to `video.mp4`, or in the file as magicvideo writes it, or is
    the name, in VBench's manner: `PROMPT-0.mp4`.

    Raises:
        UserError: If there is none, or one has no prompt.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name a folder of videos.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise UserError(
            f"{folder} holds no video ({', '.join(sorted(_SUFFIXES))}); name another folder."
        )
    return [ExternalVideo(path, _prompt(path)) for path in paths]


def vbench_name(prompt: str, number: int) -> str:
    """Return the name that VBench reads: `PROMPT-NUMBER`.

    Raises:
        UserError: If no file can be called so.
    """
    name = f"{prompt}-{number}"
    if re.search(r"[/\\\0\n]", name) or prompt.startswith(".") or len(name.encode()) > 240:
        raise UserError(
            f"The prompt {prompt[:40]!r} cannot be the name of a file, as VBench wants it; take "
            "prompts without slashes, of at most 230 bytes."
        )
    return name


def _prompt(path: Path) -> str:
    beside = path.with_suffix(".txt")
    if beside.is_file():
        return " ".join(beside.read_text(encoding="utf-8-sig", errors="replace").split())
    try:
        return read_request(path).prompt
    except UserError:
        pass
    if named := _NUMBERED.fullmatch(path.stem):
        return named.group(1)
    raise UserError(
        f"{path} does not tell its prompt; put it into {beside.name} beside it, or call the file "
        f"PROMPT-0{path.suffix}."
    )
