"""What the judge is trained on: clips on backgrounds, true captions, and captions that are near.

Many captions differ by a skin tone, a gender or a colour alone. Every clip therefore meets such
near captions of itself and of its siblings, besides those of the other clips in the batch.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from magicvideo.data.backgrounds import parse_background, random_background
from magicvideo.data.batch_order import sample_indices, sample_rng
from magicvideo.data.captions import canonical_caption
from magicvideo.data.dataset import ClipDataset, Sample
from magicvideo.data.manifest import Attributes, ClipRecord
from magicvideo.shapes import Frames

DEFAULT_TONE = "default"
_VARIED_WORDING = 0.3
_RANDOM_RIVALS = 8
_NOISE, _BLURRED, _SHIFT = 0.15, 0.3, 3
_SPAN = 60  # source frames that a judged clip covers, as in 16 key frames at stride 4


@dataclass(frozen=True)
class JudgeBatch:
    """Videos and captions; caption i is video i's own, those after the videos' are rivals."""

    frames: Frames
    captions: list[str]
    tones: Int[Tensor, " b"]
    also_true: Bool[Tensor, "b n"]
    """Captions, other than the own one, that are true of a video: they count neither way."""


class JudgeBatchSampler:
    """Makes the batch of a step as a pure function of the seed and the step.

    Args:
        dataset: All clips, held-out ones included: the judge must know what it is asked about.
        tones: The classes of the tone head.
        num_frames: Fewest and most frames a clip, spread over what 16 key frames at stride 4 span.
            All clips of a batch have the same count, drawn anew for each batch.
        seed: Start of all random choices.
    """

    def __init__(
        self, dataset: ClipDataset, tones: tuple[str, ...], num_frames: tuple[int, int], seed: int
    ) -> None:
        self.dataset, self.tones, self.num_frames, self.seed = dataset, tones, num_frames, seed
        self._families = [_families(dataset.clips, key) for key in _KEYS]

    def batch(self, step: int, batch_size: int) -> JudgeBatch:
        """Return the batch of a step."""
        first = step * batch_size
        fewest, most = self.num_frames
        num_frames = int(np.random.default_rng((self.seed, step)).integers(fewest, most + 1))
        chosen = sample_indices(self.seed, first, batch_size, len(self.dataset))
        drawn = [
            self._draw(index, num_frames, sample_rng(self.seed, first + place))
            for place, index in enumerate(chosen)
        ]
        rivals = [rival for one in drawn for rival in one.rivals]
        pairs = [one.own for one in drawn] + rivals
        also_true = torch.tensor([[one.own == pair for pair in pairs] for one in drawn])
        clips = [self.dataset.clips[index] for index in chosen]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return JudgeBatch(
            frames=augment(torch.stack([one.sample.frames for one in drawn]), generator),
            captions=[one.sample.caption for one in drawn] + [self._plain(pair) for pair in rivals],
            tones=torch.tensor([self.tones.index(tone_of(clip)) for clip in clips]),
            also_true=also_true & ~torch.eye(len(drawn), len(pairs), dtype=torch.bool),
        )

    def _draw(self, index: int, num_frames: int, rng: np.random.Generator) -> "_Drawn":
        own = self._on_some_background(index, rng)
        widest = max(1, _SPAN // max(1, num_frames - 1))
        sample = self.dataset.sample(
            index,
            rng,
            num_frames=num_frames,
            strides=(max(1, widest // 2), widest),
            background=own.background,
            caption_style="varied" if rng.random() < _VARIED_WORDING else "plain",
        )
        return _Drawn(sample, own, self._rivals(own, rng))

    def _rivals(self, own: "_Pair", rng: np.random.Generator) -> list["_Pair"]:
        """Draw near captions: another background, siblings of each family, and random clips."""
        rivals = [self._on_some_background(own.index, rng)]
        for family in self._families:
            members = family[own.index]
            rivals.append(_Pair(members[rng.integers(len(members))], own.background))
        others = rng.integers(len(self.dataset), size=_RANDOM_RIVALS)
        return rivals + [_Pair(int(other), own.background) for other in others]

    def _on_some_background(self, index: int, rng: np.random.Generator) -> "_Pair":
        name = random_background(rng).name
        return _Pair(index, name if self.dataset.clips[index].channels == 4 else None)

    def _plain(self, pair: "_Pair") -> str:
        return canonical_caption(
            self.dataset.clips[pair.index],
            parse_background(pair.background) if pair.background else None,
        )


@dataclass(frozen=True)
class _Pair:
    """A clip on a background, which is None where the clip brings its own."""

    index: int
    background: str | None


@dataclass(frozen=True)
class _Drawn:
    """A sample, what it shows, and captions that are near."""

    sample: Sample
    own: _Pair
    rivals: list[_Pair]


def tone_of(clip: ClipRecord) -> str:
    """Return the named skin tone, or `DEFAULT_TONE` where there is none."""
    tone = clip.attributes.skin_tone if clip.attributes else None
    return tone or DEFAULT_TONE


_KEYS: tuple[Callable[[Attributes], str], ...] = (
    lambda attributes: attributes.base,
    lambda attributes: attributes.activity,
    lambda attributes: attributes.subgroup,
)


def _families(clips: list[ClipRecord], key: Callable[[Attributes], str]) -> list[list[int]]:
    """Return for every clip those that share its key; for clips without attributes, all."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        members[key(clip.attributes) if clip.attributes else ""].append(index)
    return [members[key(clip.attributes) if clip.attributes else ""] for clip in clips]


def augment(frames: Frames, generator: torch.Generator) -> Frames:
    """Add noise, blur and a small shift, so that the judge looks at content, not at rendering.

    Generated videos are a little noisy and soft; that is for other scores to say.
    """
    b, f, _, h, w = frames.shape
    noise = torch.rand(b, 1, 1, 1, 1, generator=generator) * _NOISE
    noise = noise * (torch.rand(b, 1, 1, 1, 1, generator=generator) < 0.5)
    blurred = torch.rand(b, generator=generator) < _BLURRED
    shifts = torch.randint(2 * _SHIFT + 1, (b, 2), generator=generator).tolist()
    videos = []
    for video, soft, (down, right) in zip(frames, blurred, shifts, strict=True):
        padded = F.pad(_soften(video) if soft else video, (_SHIFT,) * 4, mode="replicate")
        videos.append(padded[..., down : down + h, right : right + w])
    return torch.stack(videos) + noise * torch.randn(b, f, 3, h, w, generator=generator)


def _soften(video: Float[Tensor, "f c h w"]) -> Float[Tensor, "f c h w"]:
    half = F.avg_pool2d(video, kernel_size=2)
    return F.interpolate(half, size=video.shape[-2:], mode="bilinear")
