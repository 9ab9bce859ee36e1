"""Training batches of the judge: augmented clips, their captions, and captions that are near.

A matcher that is trained on plain clips learns colours, which tell most clips of a batch apart.
Three things force it to look at what is drawn:

- The colours of most figures are shifted before the background is put behind them: channels are
  permuted, the hue is rotated, the figure turns grey or is tinted.
- A batch consists of subjects of about equal colour, of equal outline and of the same subgroup, and
  two batches of three have one background.
- Some figures are made unrecognisable: blurred beyond recognition, or their colours filled into the
  outline of another figure. No caption is true of them, so all captions must fit them alike.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from magicvideo.data.backgrounds import Background, random_background, render_background
from magicvideo.data.captions import canonical_caption
from magicvideo.data.dataset import ClipDataset
from magicvideo.evaluation.subjects import Subjects, tone_of
from magicvideo.shapes import Frames

NOT_SHOWN = -100
"""The tone of a clip whose colours were shifted: cross entropy leaves it out."""

Kind: TypeAlias = Literal["plain", "shifted", "shifted whole", "unrecognisable"]
"""Colours as drawn; those of the figure shifted; those of whole frames; a figure that is none."""

_KINDS: tuple[Kind, ...] = ("plain", "shifted", "shifted whole", "unrecognisable")
_KIND_SHARES = (0.40, 0.32, 0.14, 0.14)
_FRAME_COUNTS, _FRAME_SHARES = (1, 2, 4), (0.65, 0.25, 0.10)
_ONE_BACKGROUND = 0.65  # share of batches whose clips have one background
_FURTHER_CAPTIONS = 64  # of random subjects
_BACKGROUND_UNSAID = 0.1
_ARTICLE = 0.15  # share of captions that begin with "a"
_SPAN = 60  # source frames that a judged clip covers, as in 16 key frames at stride 4
_LUMA = (0.299, 0.587, 0.114)  # BT.601
_PERMUTATIONS = ((1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2), (2, 1, 0))

Figure: TypeAlias = Float[Tensor, "f rgba h w"]
"""Premultiplied colours and alpha in [0, 1]."""


@dataclass(frozen=True)
class Statement:
    """What a caption says, or what a clip shows; None is not said, or cannot be seen."""

    subject: int
    tone: str | None
    background: Background | None


@dataclass(frozen=True)
class JudgeBatch:
    """Videos and captions; caption i is video i's own, those after the videos' are of others.

    Attributes:
        frames: The videos, pixels in about [-1, 1].
        captions: At least as many as videos.
        tones: The class of each video's skin tone, or `NOT_SHOWN`.
        recognisable: Whether the own caption is true of a video.
        undecided: Captions, other than the own one, that are true of a video or cannot be told from
            its own: they count neither way.
        on_background: Captions that do not contradict the background of a video.
    """

    frames: Frames
    captions: list[str]
    tones: Int[Tensor, " b"]
    recognisable: Bool[Tensor, " b"]
    undecided: Bool[Tensor, "b n"]
    on_background: Bool[Tensor, "b n"]


class JudgeBatchSampler:
    """Makes the batch of a step as a pure function of the seed and the step.

    Args:
        dataset: All clips, held-out ones included: the judge must know what it is asked about.
        subjects: Of the data set.
        tones: The classes of the tone head.
        seed: Start of all random choices.
    """

    def __init__(
        self, dataset: ClipDataset, subjects: Subjects, tones: tuple[str, ...], seed: int
    ) -> None:
        self.dataset, self.subjects, self.tones, self.seed = dataset, subjects, tones, seed
        self._clip_with = {
            (subject, tone_of(dataset.clips[index])): index
            for subject, members in enumerate(subjects.clips)
            for index in members
        }
        self._tones_of = [
            sorted({tone_of(dataset.clips[index]) for index in members})
            for members in subjects.clips
        ]

    def batch(self, step: int, batch_size: int) -> JudgeBatch:
        """Return the batch of a step."""
        rng = np.random.default_rng((self.seed, step))
        num_frames = int(rng.choice(_FRAME_COUNTS, p=_FRAME_SHARES))
        common = random_background(rng) if rng.random() < _ONE_BACKGROUND else None
        videos, shown, own, kinds = [], [], [], []
        for subject in self._subjects(batch_size, rng):
            members = self.subjects.clips[subject]
            index = members[rng.integers(len(members))]
            kind: Kind = _KINDS[rng.choice(len(_KINDS), p=_KIND_SHARES)]
            background = common or random_background(rng)
            is_opaque = self.dataset.clips[index].channels == 3
            seen = Statement(
                subject,
                tone_of(self.dataset.clips[index]) if kind == "plain" else None,
                None if is_opaque or kind == "shifted whole" else background,
            )
            videos.append(self._video(index, num_frames, background, kind, rng))
            shown.append(seen)
            kinds.append(kind)
            unsaid = rng.random() < _BACKGROUND_UNSAID
            own.append(Statement(subject, seen.tone, None if unsaid else seen.background))
        captions = [self._caption(said, rng) for said in own]
        others = self._near(shown, rng)
        statements = [*own, *others]
        same, on_background = self._compare(shown, statements, kinds)
        diagonal = torch.eye(len(own), len(statements), dtype=torch.bool)
        return JudgeBatch(
            frames=torch.stack(videos),
            captions=[*captions, *(self._caption(said, None) for said in others)],
            tones=torch.tensor(
                [NOT_SHOWN if s.tone is None else self.tones.index(s.tone) for s in shown]
            ),
            recognisable=torch.tensor([kind != "unrecognisable" for kind in kinds]),
            undecided=same & ~diagonal,
            on_background=on_background,
        )

    def _subjects(self, count: int, rng: np.random.Generator) -> list[int]:
        """Draw subjects, each followed by one near in colour, in outline, and in kind."""
        found: list[int] = []
        while len(found) < count:
            subject = int(rng.integers(len(self.subjects)))
            found.append(subject)
            found += [_draw(family, rng) for family in self.subjects.rivals[subject]]
        return found[:count]

    def _near(self, shown: list[Statement], rng: np.random.Generator) -> list[Statement]:
        """Return captions that differ from what videos show in one thing, and random ones."""
        found: list[Statement] = []
        for seen in shown:
            near = [_draw(family, rng) for family in self.subjects.rivals[seen.subject]]
            found += [
                self._statement(subject, seen.background, rng) for subject in (*near, seen.subject)
            ]
            if seen.background is not None:
                found.append(Statement(seen.subject, seen.tone, random_background(rng)))
        for _ in range(_FURTHER_CAPTIONS):
            background = shown[rng.integers(len(shown))].background
            found.append(self._statement(int(rng.integers(len(self.subjects))), background, rng))
        return list(dict.fromkeys(found))

    def _statement(
        self, subject: int, background: Background | None, rng: np.random.Generator
    ) -> Statement:
        tones = self._tones_of[subject]
        return Statement(subject, tones[rng.integers(len(tones))], background)

    def _caption(self, said: Statement, rng: np.random.Generator | None) -> str:
        tone = said.tone or self._tones_of[said.subject][0]
        clip = self.dataset.clips[self._clip_with[said.subject, tone]]
        if said.tone is None and clip.attributes:
            attributes = clip.attributes.model_copy(update={"skin_tone": None})
            clip = clip.model_copy(update={"attributes": attributes})
        caption = canonical_caption(clip, said.background)
        if rng is None or rng.random() >= _ARTICLE or not caption:
            return caption
        return f"{'an' if caption[0] in 'aeiou' else 'a'} {caption}"

    def _compare(
        self, shown: list[Statement], statements: list[Statement], kinds: list[Kind]
    ) -> tuple[Bool[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Return which captions are true of videos, and which do not contradict the background."""
        subjects = torch.tensor([seen.subject for seen in shown])
        said = torch.tensor([statement.subject for statement in statements])
        is_shifted = torch.tensor([kind.startswith("shifted") for kind in kinds])[:, None]
        same = self.subjects.alike[subjects][:, said]
        same |= is_shifted & self.subjects.alike_without_colour[subjects][:, said]
        tones = _agree([s.tone for s in shown], [s.tone for s in statements])
        grounds = _agree(
            [s.background.name if s.background else None for s in shown],
            [s.background.name if s.background else None for s in statements],
        )
        return same & tones & grounds, grounds

    def _video(
        self, index: int, count: int, background: Background, kind: Kind, rng: np.random.Generator
    ) -> Float[Tensor, "f 3 h w"]:
        figure, is_opaque = self._figure(index, count, rng)
        if kind == "unrecognisable" and not is_opaque and rng.random() < 0.4:
            other, _ = self._figure(int(rng.integers(len(self.dataset))), count, rng)
            figure = _fill(figure, other[:, 3:], rng)
            kind = "plain"
        figure = warp(figure, rng)
        if kind == "shifted" and not is_opaque:
            figure = shift_colours(figure, rng)
        colour, alpha = _vary_light(figure[:, :3], figure[:, 3:], rng), figure[:, 3:]
        height, width = figure.shape[-2:]
        behind = torch.from_numpy(render_background(background, height, width) / 255)
        frames = colour + behind.permute(2, 0, 1) * (1 - alpha)
        if kind == "shifted whole" or (kind == "shifted" and is_opaque):
            frames = torch.einsum("dc,fchw->fdhw", colour_matrix(rng), frames)
        if kind == "unrecognisable":
            frames = blur(frames, rng.uniform(0.065, 0.13) * width)
        elif rng.random() < 0.3:
            frames = blur(frames, rng.uniform(0.006, 0.022) * width)
        frames = frames * 2 - 1
        if rng.random() < 0.4:
            noise = torch.from_numpy(rng.standard_normal(tuple(frames.shape), dtype=np.float32))
            frames = frames + noise * rng.uniform(0, 0.15)
        return frames

    def _figure(self, index: int, count: int, rng: np.random.Generator) -> tuple[Figure, bool]:
        """Return some frames of a clip, spread over what a judged clip covers; is it opaque?"""
        pixels = self.dataset.read_frames(index)
        span = min(len(pixels) - 1, int(rng.uniform(0.5, 1) * _SPAN))
        start = int(rng.integers(len(pixels) - span))
        places = start + np.linspace(0, span, count).round().astype(int)
        if count == 1:
            places = rng.integers(len(pixels), size=1)
        planes = pixels[places].transpose(0, 3, 1, 2).astype(np.float32) / 255
        figure = torch.from_numpy(planes)
        is_opaque = figure.shape[1] == 3
        if is_opaque:
            figure = torch.cat([figure, torch.ones_like(figure[:, :1])], dim=1)
        return figure, is_opaque


def colour_matrix(rng: np.random.Generator) -> Float[Tensor, "3 3"]:
    """Draw a colour shift: permuted channels, a rotated hue, grey, or a tinted near-grey."""
    grey = np.tile(np.array(_LUMA), (3, 1))
    kind = rng.integers(4)
    if kind == 0:
        matrix = np.eye(3)[list(_PERMUTATIONS[rng.integers(len(_PERMUTATIONS))])]
    elif kind == 1:
        # a rotation of RGB about the grey axis (1, 1, 1), by Rodrigues' formula
        angle, axis = rng.uniform(0.4, 2 * np.pi - 0.4), 3**-0.5
        cross = axis * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
        matrix = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3
    elif kind == 2:
        matrix = grey
    else:
        mixed = grey * rng.uniform(0.6, 1) + np.eye(3) * rng.uniform(0, 0.3)
        matrix = np.diag(rng.uniform(0.3, 1.3, 3)) @ mixed
    return torch.from_numpy(matrix.astype(np.float32))


def shift_colours(figure: Figure, rng: np.random.Generator) -> Figure:
    """Shift the colours of a figure by `colour_matrix`; one in seven becomes its negative."""
    colour = torch.einsum("dc,fchw->fdhw", colour_matrix(rng), figure[:, :3])
    if rng.random() < 0.15:
        colour = figure[:, 3:] - colour  # colours are premultiplied: alpha is their white
    return torch.cat([colour, figure[:, 3:]], dim=1)


def warp(figure: Figure, rng: np.random.Generator) -> Figure:
    """Scale, turn, move and slightly bend a figure; one in five stays as it is."""
    if rng.random() < 0.2:
        return figure
    scale, angle = math.exp(rng.uniform(-0.22, 0.22)), rng.uniform(-0.15, 0.15)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    right, down = rng.uniform(-0.15, 0.15, 2)
    theta = torch.tensor([[cos, -sin, right], [sin, cos, down]], dtype=figure.dtype)
    size = [1, *figure.shape[1:]]
    grid = F.affine_grid(theta[None], size, align_corners=False)
    if rng.random() < 0.4:
        bend = torch.from_numpy(rng.standard_normal((1, 2, 5, 5)).astype(np.float32)) * 0.03
        bend = F.interpolate(bend, size=size[2:], mode="bicubic")
        grid = grid + bend.permute(0, 2, 3, 1)
    return F.grid_sample(figure, grid.expand(len(figure), -1, -1, -1), align_corners=False)


def blur(frames: Float[Tensor, "f c h w"], sigma: float) -> Float[Tensor, "f c h w"]:
    """Blur frames by a Gaussian of `sigma` pixels; edges are repeated."""
    radius = max(1, round(2.5 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=frames.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    f, c, h, w = frames.shape
    planes = F.pad(frames.reshape(f * c, 1, h, w), (radius,) * 4, mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return planes.view(f, c, h, w)


def _fill(figure: Figure, alpha: Float[Tensor, "f 1 h w"], rng: np.random.Generator) -> Figure:
    """Fill the blurred colours of a figure into another outline."""
    soft = blur(figure, rng.uniform(0.06, 0.12) * figure.shape[-1])
    inside = (soft[:, :3] / soft[:, 3:].clamp(min=0.05)).clamp(0, 1)
    return torch.cat([inside * alpha, alpha], dim=1)


def _vary_light(
    colour: Float[Tensor, "f 3 h w"], alpha: Float[Tensor, "f 1 h w"], rng: np.random.Generator
) -> Float[Tensor, "f 3 h w"]:
    gain = rng.uniform(0.85, 1.15) if rng.random() < 0.5 else 1.0
    offset = rng.uniform(-0.08, 0.08) if rng.random() < 0.5 else 0.0
    return colour * gain + alpha * offset


def _agree(first: list[str | None], second: list[str | None]) -> Bool[Tensor, "b n"]:
    """Tell which pairs of values are equal, or of which one is not known."""
    pairs = [[a is None or b is None or a == b for b in second] for a in first]
    return torch.tensor(pairs)


def _draw(members: list[int], rng: np.random.Generator) -> int:
    return int(members[rng.integers(len(members))])
