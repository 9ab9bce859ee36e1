"""A contact sheet: one row per prompt with its text and some frames of its video."""

import textwrap
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from magicvideo.atomic_io import atomic_file
from magicvideo.evaluation.prompt_sets import to_uint8

DEFAULT_PROMPTS = Path(__file__).parent / "prompts" / "sheet.txt"
_GAP, _LABEL, _FONT = 4, 220, 14
_LETTERS_A_LINE = 28


def write_sheet(
    rows: Iterable[tuple[str, Float[Tensor, "f 3 h w"]]],
    num_shown: int,
    path: Path,
    cell: int = 96,
) -> None:
    """Write a PNG with the prompt and `num_shown` evenly spaced frames of each video.

    Args:
        rows: Prompts, or other words, and their videos.
        num_shown: How many frames of each.
        path: The file, replaced.
        cell: Side in pixels that frames are shown at.
    """
    strips = [_strip(prompt, video, num_shown, cell) for prompt, video in rows]
    height = sum(strip.height + _GAP for strip in strips) + _GAP
    sheet = Image.new("RGB", (strips[0].width, height), "white")
    top = _GAP
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + _GAP
    with atomic_file(path) as partial:
        sheet.save(partial, format="PNG", optimize=True)


def _strip(prompt: str, video: Float[Tensor, "f 3 h w"], num_shown: int, cell: int) -> Image.Image:
    chosen = torch.linspace(0, len(video) - 1, min(num_shown, len(video))).round().long()
    width = _LABEL + num_shown * (cell + _GAP)
    strip = Image.new("RGB", (width, cell), "white")
    text = "\n".join(textwrap.wrap(prompt, _LETTERS_A_LINE))
    ImageDraw.Draw(strip).text((_GAP, _GAP), text, fill="black", font=ImageFont.load_default(_FONT))
    for place, picture in enumerate(to_uint8(video[chosen])):
        frame = Image.fromarray(picture.numpy()).resize((cell, cell), Image.Resampling.BICUBIC)
        strip.paste(frame, (_LABEL + place * (cell + _GAP), 0))
    return strip
