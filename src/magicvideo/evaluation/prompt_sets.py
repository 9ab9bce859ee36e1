"""The prompts of an evaluation, drawn from clips, and the real videos that belong to them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from magicvideo.data.backgrounds import COLOURS, parse_background
from magicvideo.data.captions import canonical_caption
from magicvideo.data.dataset import ClipDataset
from magicvideo.errors import UserError
from magicvideo.evaluation.judge.batches import tone_of


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One caption to be judged, and the real clip that it was written for."""

    index: int
    """Number of the clip in the data set."""
    background: str | None
    """Name of the plain colour; None where the clip brings its own background."""
    caption: str
    tone: str
    seed: int


def sample_prompts(dataset: ClipDataset, count: int, seed: int) -> list[Prompt]:
    """Draw `count` different clips, each with a plain background, in canonical wording.

    Raises:
        UserError: If there are fewer clips.
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
        _prompt(dataset, index, colour, seed=place)
        for place, (index, colour) in enumerate(zip(chosen, colours, strict=True))
    ]


def caption_for(dataset: ClipDataset, prompt: Prompt, background: str | None) -> str:
    """Return the caption of a prompt's clip on another background."""
    clip = dataset.clips[prompt.index]
    named = parse_background(background) if background and clip.channels == 4 else None
    return canonical_caption(clip, named)


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
    prompts: list[Prompt], num_frames: int, size: int
) -> Iterator[Float[Tensor, "f 3 h w"]]:
    """Yield still videos of each prompt's background alone: what knowing only the colour earns."""
    for prompt in prompts:
        colour = torch.tensor(COLOURS[prompt.background or "white"], dtype=torch.uint8)
        yield from_uint8(colour.expand(num_frames, size, size, 3))


def to_uint8(video: Float[Tensor, "f 3 h w"]) -> UInt8[Tensor, "f h w 3"]:
    """Round pixels in [-1, 1] to the 8 bits that a viewer gets to see."""
    levels = (video.float().clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


def from_uint8(pixels: UInt8[Tensor, "f h w 3"]) -> Float[Tensor, "f 3 h w"]:
    """Return pixels in [-1, 1]; the inverse of `to_bytes` on what it returns."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _prompt(dataset: ClipDataset, index: int, colour: str, seed: int) -> Prompt:
    clip = dataset.clips[index]
    background = colour if clip.channels == 4 else None
    named = parse_background(background) if background else None
    return Prompt(
        index=index,
        background=background,
        caption=canonical_caption(clip, named),
        tone=tone_of(clip),
        seed=seed,
    )
