"""The subjects of a data set: what its clips show, which of them look alike, and which are near.

A subject is the name of a clip without its skin tone; a clip without a name has its caption's.
"""

import re
from collections import defaultdict

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import ClipRecord

DEFAULT_TONE = "default"
"""The tone of clips whose caption names none."""
ALIKE = 0.05
"""Subjects whose thumbnails differ by less than this (root mean square, pixels in [0, 1]) count as
one: nobody can tell "man with veil" from "person with veil" where the drawings are the same."""

_SIDE, _FRAMES = 32, 8  # of a thumbnail
_NEIGHBOURS = 12
_COLOUR_WORD = re.compile(
    r"\b(?:white|black|gr[ae]y|red|orange|yellow|green|blue|purple|pink|brown|blond) ?"
)


class Subjects:
    """The subjects of a data set, numbered in alphabetical order.

    Attributes:
        names: Of the subjects.
        of_clip: The subject of each clip.
        clips: The clips of each subject, those without a named tone first.
        alike: Which subjects look alike; every subject is like itself.
        alike_without_colour: Which subjects have the same name but for words of colour.
        rivals: For each subject the subjects that are nearest in colour, those nearest in outline,
            and those of the same subgroup.
    """

    names: list[str]
    of_clip: list[int]
    clips: list[list[int]]
    alike: Bool[Tensor, "n n"]
    alike_without_colour: Bool[Tensor, "n n"]
    rivals: list[tuple[list[int], list[int], list[int]]]

    def __init__(self, dataset: ClipDataset) -> None:
        of_clip = [clip.subject for clip in dataset.clips]
        self.names = sorted(set(of_clip))
        number = {name: place for place, name in enumerate(self.names)}
        self.of_clip = [number[name] for name in of_clip]
        self.clips = [[] for _ in self.names]
        order = sorted(range(len(dataset)), key=lambda i: tone_of(dataset.clips[i]) != DEFAULT_TONE)
        for index in order:
            self.clips[self.of_clip[index]].append(index)
        first = [dataset.clips[members[0]] for members in self.clips]
        thumbnails = torch.stack([_thumbnail(dataset, members[0]) for members in self.clips])
        flat = thumbnails.flatten(1)
        self.alike = torch.cdist(flat, flat) < ALIKE * flat.shape[1] ** 0.5
        self.alike.fill_diagonal_(fill_value=True)
        plain = np.array([_COLOUR_WORD.sub("", name) for name in self.names])
        self.alike_without_colour = torch.from_numpy(plain[:, None] == plain)
        self.rivals = _rivals(first, thumbnails)

    def __len__(self) -> int:
        """Return the number of subjects."""
        return len(self.names)


def tone_of(clip: ClipRecord) -> str:
    """Return the named skin tone, or `DEFAULT_TONE` where there is none."""
    tone = clip.attributes.skin_tone if clip.attributes else None
    return tone or DEFAULT_TONE


def _thumbnail(dataset: ClipDataset, index: int) -> Float[Tensor, "f rgba 32 32"]:
    """Return eight evenly spaced frames, premultiplied, in [0, 1]; opaque clips have alpha 1."""
    pixels = dataset.read_frames(index)
    chosen = pixels[np.linspace(0, len(pixels) - 1, _FRAMES).round().astype(int)]
    planes = torch.from_numpy(chosen.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    if planes.shape[1] == 3:
        planes = torch.cat([planes, torch.ones_like(planes[:, :1])], dim=1)
    return F.adaptive_avg_pool2d(planes, _SIDE)


def _rivals(
    clips: list[ClipRecord], thumbnails: Float[Tensor, "n f rgba 32 32"]
) -> list[tuple[list[int], list[int], list[int]]]:
    """Return for each subject those near in colour, in outline, and those of its subgroup."""
    alpha = thumbnails[:, :, 3:]
    colour = thumbnails[:, :, :3].sum(dim=(1, 3, 4)) / alpha.sum(dim=(1, 3, 4)).clamp(min=1)
    outline = F.adaptive_avg_pool2d(alpha.mean(dim=1), _SIDE // 2).flatten(1)
    near_in_colour, near_in_outline = _neighbours(colour), _neighbours(outline)
    groups: dict[str, list[int]] = defaultdict(list)
    for place, clip in enumerate(clips):
        groups[clip.attributes.subgroup if clip.attributes else ""].append(place)
    found = []
    for place, clip in enumerate(clips):
        group = groups[clip.attributes.subgroup if clip.attributes else ""]
        others = [other for other in group if other != place]
        by_colour, by_outline = near_in_colour[place], near_in_outline[place]
        found.append((by_colour, by_outline, others or by_outline))
    return found


def _neighbours(features: Float[Tensor, "n d"]) -> list[list[int]]:
    """Return the nearest other rows of each row; of a single row, itself."""
    distance = torch.cdist(features, features)
    if len(features) > 1:
        distance.fill_diagonal_(torch.inf)
    count = min(_NEIGHBOURS, max(1, len(features) - 1))
    nearest: list[list[int]] = distance.topk(count, largest=False).indices.tolist()
    return nearest
