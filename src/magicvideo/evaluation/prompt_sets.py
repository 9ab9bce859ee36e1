"""The prompts of an evaluation, drawn from clips, and the real videos that belong to them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from magicvideo.data.backgrounds import COLOURS, Background, parse_background
from magicvideo.data.captions import canonical_caption, heldout_caption
from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import ClipRecord, FrameSize
from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.text_alignment import draw_pools
from magicvideo.evaluation.subjects import Subjects, tone_of

Wording: TypeAlias = Literal["caption", "natural"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One caption to be judged, and the real clip that it was written for."""

    index: int
    """Number of the clip in the data set."""
    subject: str
    """What the clip shows."""
    background: str | None
    """Name of the plain colour; None where the clip brings its own background."""
    caption: str
    """The canonical caption, which judges read."""
    text: str
    """What the model is asked for: the caption, or the same in natural wording."""
    tone: str
    seed: int


def sample_prompts(
    dataset: ClipDataset, count: int, seed: int, wording: Wording = "caption"
) -> list[Prompt]:
    """Draw `count` different clips, each with a plain background.

    Args:
        dataset: The clips.
        count: How many.
        seed: Of the draw.
        wording: "natural" asks the model in wordings that no training saw.

    Raises:
        UserError: If there are fewer clips, or no natural wordings of them.
    """
    if count > len(dataset):
        raise UserError(
            f"The protocol asks for {count} clips, but {dataset.folder} has {len(dataset)} in "
            "this split; prepare more data or ask for fewer."
        )
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(dataset))[:count].tolist()
    colours = rng.choice(list(COLOURS), size=count).tolist()
    return [
        _prompt(dataset, index, colour, seed=place, wording=wording)
        for place, (index, colour) in enumerate(zip(chosen, colours, strict=True))
    ]


def real_videos(
    dataset: ClipDataset, prompts: list[Prompt], num_frames: int, stride: int
) -> Iterator[Float[Tensor, "f 3 h w"]]:
    """Yield each prompt's own clip on its background, at the protocol's stride."""
    for prompt in prompts:
        sample = dataset.sample(
            prompt.index,
            np.random.default_rng(prompt.seed),
            num_frames=num_frames,
            strides=(stride, stride),
            background=prompt.background,
            caption_style="plain",
        )
        yield from_uint8(to_uint8(sample.frames))


def background_only_videos(
    prompts: list[Prompt], num_frames: int, size: FrameSize
) -> Iterator[Float[Tensor, "f 3 h w"]]:
    """Yield still videos of each prompt's background alone: what knowing only the colour earns."""
    for prompt in prompts:
        colour = torch.tensor(COLOURS[prompt.background or "white"], dtype=torch.uint8)
        yield from_uint8(colour.expand(num_frames, *size, 3))


def to_uint8(video: Float[Tensor, "f 3 h w"]) -> UInt8[Tensor, "f h w 3"]:
    """Round pixels in [-1, 1] to the 8 bits that a viewer gets to see."""
    levels = (video.float().clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


def from_uint8(pixels: UInt8[Tensor, "f h w 3"]) -> Float[Tensor, "f 3 h w"]:
    """Return pixels in [-1, 1]; the inverse of `to_uint8` on what it returns."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def rival_captions(
    dataset: ClipDataset,
    subjects: Subjects,
    prompts: list[Prompt],
    pool_size: int,
    seed: int,
    *,
    on_one_background: bool,
) -> list[list[str]]:
    """Return for each prompt its caption and those of other subjects, drawn from all of them.

    Args:
        dataset: The clips that subjects are numbered by.
        subjects: Of the data set. Those that look alike are not drawn against each other.
        prompts: Of which the captions are.
        pool_size: Captions in a pool, the own one included.
        seed: Of the draw.
        on_one_background: All captions of a pool name the prompt's own background and, where the
            subject comes in it, the prompt's skin tone, so that neither tells anything.

    Raises:
        UserError: If there are too few subjects.
    """
    number = {name: place for place, name in enumerate(subjects.names)}
    own = [number[prompt.subject] for prompt in prompts]
    pools = draw_pools(own, subjects.alike.numpy(), pool_size, seed)
    found = []
    for place, (prompt, pool) in enumerate(zip(prompts, pools, strict=True)):
        rng = np.random.default_rng([seed, place, 1])
        captions = [prompt.caption]
        for subject in pool[1:]:
            clips = [dataset.clips[index] for index in subjects.clips[subject]]
            same_tone = [clip for clip in clips if tone_of(clip) == prompt.tone]
            background = str(rng.choice(list(COLOURS)))
            clip = clips[rng.integers(len(clips))]
            if on_one_background:
                background = prompt.background or background
                clip = same_tone[0] if same_tone else clips[0]
            captions.append(canonical_caption(clip, _ground(clip, background)))
        found.append(captions)
    return found


def _ground(clip: ClipRecord, background: str | None) -> Background | None:
    return parse_background(background) if background and clip.channels == 4 else None


def _prompt(
    dataset: ClipDataset, index: int, colour: str, *, seed: int, wording: Wording
) -> Prompt:
    clip = dataset.clips[index]
    background = _ground(clip, colour)
    caption = canonical_caption(clip, background)
    text = caption
    if wording == "natural":
        text = heldout_caption(clip, background, np.random.default_rng([seed, index]))
    return Prompt(
        index=index,
        subject=clip.subject,
        background=colour if background else None,
        caption=caption,
        text=text,
        tone=tone_of(clip),
        seed=seed,
    )
