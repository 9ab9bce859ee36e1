"""The judge: its networks, its tokenizer and its folder.

It maps videos and captions to unit features that agree where a caption is true of a video. It
shares nothing with the generator: words instead of byte pairs, and networks that see whole clips.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from magicvideo.atomic_io import atomic_folder, verify_checksums
from magicvideo.errors import UserError
from magicvideo.shapes import Frames, Tokens

PADDING, UNKNOWN = 0, 1
_FIRST_WORD = 2
_WORD = re.compile(r"\w+(?:[-']\w+)*")


def split_words(caption: str) -> list[str]:
    """Return the words in lower case; a hyphen joins, so that "medium-light" is one tone."""
    return _WORD.findall(caption.lower())


def count_words(captions: Iterable[str], limit: int) -> tuple[str, ...]:
    """Return the `limit` most frequent words, equally frequent ones in alphabetical order."""
    counts = Counter(word for caption in captions for word in split_words(caption))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:limit])


class WordTokenizer:
    """Turns captions into rows of word indices, padded to the longest of them.

    Words that the vocabulary lacks share one index; words beyond `max_words` are dropped.
    """

    def __init__(self, words: tuple[str, ...], max_words: int) -> None:
        self.max_words = max_words
        self._index = {word: index for index, word in enumerate(words, start=_FIRST_WORD)}

    def __call__(self, captions: list[str]) -> Int[Tensor, "n l"]:
        """Return the indices; an empty caption counts as one unknown word."""
        rows = [
            [self._index.get(word, UNKNOWN) for word in split_words(caption)[: self.max_words]]
            or [UNKNOWN]
            for caption in captions
        ]
        padded = torch.full((len(rows), max(map(len, rows))), PADDING)
        for row, indices in zip(padded, rows, strict=True):
            row[: len(indices)] = torch.tensor(indices)
        return padded


_SIDE = 64
_GROUPS = 8


class JudgeConfig(BaseModel):
    """All that rebuilds a judge. The feature width stays at 64, where Frechet bias is small."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: tuple[str, ...]
    tones: tuple[str, ...]
    """The classes of the tone head; the first one stands for no tone or the default one."""
    num_frames: PositiveInt = 8
    """Frames used of a clip, evenly spaced from its first to its last."""
    patch: PositiveInt = 2
    """Side of the squares of pixels that become channels."""
    widths: tuple[PositiveInt, ...] = (32, 64, 128, 256)
    """Channels at each resolution, from `64 / patch` down; each halves the one before."""
    depths: tuple[PositiveInt, ...] = (1, 2, 1)
    """Residual blocks at each resolution but the first."""
    text_width: PositiveInt = 128
    feature_width: PositiveInt = 64
    max_words: PositiveInt = 32

    @model_validator(mode="after")
    def _check_depths(self) -> "JudgeConfig":
        if len(self.depths) != len(self.widths) - 1:
            raise ValueError("depths has one number less than widths")
        return self


class Judge(nn.Module):
    """A video-text matcher with a head for the skin tone.

    Videos and captions become unit vectors of `feature_width`; their cosine says how well they fit.

    Args:
        config: All that rebuilds it.
        name: What results call it; never I3D, Inception or CLIP, whose scores compare with others.

    Attributes:
        layer: What the features are, as results say it.
        resizing: How frames are brought to the network's size, as results say it.
    """

    feature_layer = "features"
    resizing = f"all of a frame to {_SIDE} x {_SIDE}, bilinear with antialiasing, in floats"

    def __init__(self, config: JudgeConfig, name: str = "judge") -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.tokenizer = WordTokenizer(config.words, config.max_words)
        self.video = VideoEncoder(config.patch, config.widths, config.depths)
        self.text = CaptionEncoder(len(config.words) + 2, config.text_width, config.max_words)
        self.to_feature = nn.Linear(config.widths[-1], config.feature_width)
        self.text_to_feature = nn.Linear(config.text_width, config.feature_width)
        self.tone_head = nn.Linear(config.widths[-1], len(config.tones))
        self.log_scale = nn.Parameter(torch.tensor(2.7))

    def forward(
        self, frames: Frames, words: Int[Tensor, "n l"]
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b tones"]]:
        """Return scaled cosines of every video with every caption, and the tone logits."""
        pooled = self.video(self._look(frames))
        cosine = F.normalize(self.to_feature(pooled)) @ self._text_features(words).mT
        return cosine * self.log_scale.exp(), self.tone_head(pooled)

    @property
    def preprocessing(self) -> dict[str, int | str]:
        """Return how videos become features, as results repeat it."""
        return {
            "frames": self.config.num_frames,
            "resizing": self.resizing,
            "layer": (
                f"{self.config.feature_width} {self.feature_layer} of the projection, at length 1"
            ),
        }

    @torch.inference_mode()
    def embed_videos(self, frames: Frames) -> Float[Tensor, "b d"]:
        """Return the unit features of videos."""
        return F.normalize(self.to_feature(self.video(self._look(frames))))

    @torch.inference_mode()
    def embed_captions(self, captions: list[str]) -> Float[Tensor, "n d"]:
        """Return the unit features of captions."""
        return self._text_features(self.tokenizer(captions))

    @torch.inference_mode()
    def read_tones(self, frames: Frames) -> list[str]:
        """Name the skin tone seen in each video, one of `config.tones`."""
        logits = self.tone_head(self.video(self._look(frames)))
        return [self.config.tones[index] for index in logits.argmax(dim=1).tolist()]

    def _look(self, frames: Frames) -> Float[Tensor, "b looked 3 64 64"]:
        """Pick at most `num_frames` frames, evenly from first to last, at 64x64."""
        length = frames.shape[1]
        count = min(length, self.config.num_frames)
        frames = frames[:, torch.linspace(0, length - 1, count).round().long()]
        if frames.shape[-2:] == (_SIDE, _SIDE):
            return frames
        b = len(frames)
        pictures = rearrange(frames, "b f c h w -> (b f) c h w")
        pictures = F.interpolate(pictures, size=(_SIDE, _SIDE), mode="bilinear", antialias=True)
        return rearrange(pictures, "(b f) c h w -> b f c h w", b=b)

    def _text_features(self, words: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        return F.normalize(self.text_to_feature(self.text(words)))


class VideoEncoder(nn.Module):
    """A convolutional network on each frame, and attention over the frames."""

    def __init__(self, patch: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.patch = patch
        last = widths[-1]
        self.stem = nn.Conv2d(3 * patch**2, widths[0], kernel_size=3, padding=1)
        stages: list[nn.Module] = []
        for before, after, depth in zip(widths[:-1], widths[1:], depths, strict=True):
            stages.append(nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1))
            stages += [ResidualBlock(after) for _ in range(depth)]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.GroupNorm(_GROUPS, last)
        self.pool = nn.Linear(2 * last, last)
        self.over_time = AttentionBlock(last)
        self.norm_out = nn.LayerNorm(last)
        for parameter in self.parameters():
            if parameter.ndim == 4:  # convolutions run faster this way on a CPU
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, frames: Frames) -> Float[Tensor, "b d"]:
        """Return one vector a video."""
        b, f = frames.shape[:2]
        pictures = F.pixel_unshuffle(rearrange(frames, "b f c h w -> (b f) c h w"), self.patch)
        maps = self.stages(self.stem(pictures.contiguous(memory_format=torch.channels_last)))
        maps = F.silu(self.norm(maps))
        pooled = torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)
        track = rearrange(self.pool(pooled), "(b f) d -> b f d", b=b)
        track = track + sine_positions(f, track.shape[-1], track)
        mixed: Tensor = self.norm_out(self.over_time(track)).mean(dim=1)
        return mixed


class CaptionEncoder(nn.Module):
    """Word vectors mixed by two blocks of attention, and their mean."""

    def __init__(self, num_words: int, width: int, max_words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, width, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(max_words, width) * 0.02)
        self.blocks = nn.ModuleList(AttentionBlock(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, words: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """Return one vector a caption; word 0 is padding and changes nothing."""
        real = words != 0
        tokens = self.embedding(words) + self.positions[: words.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, real)
        weights = real / real.sum(dim=1, keepdim=True).clamp(min=1)
        pooled: Tensor = torch.einsum("nld,nl->nd", self.norm(tokens), weights)
        return pooled


class AttentionBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after a norm and added to its input."""

    def __init__(self, width: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_in = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tokens, real: Bool[Tensor, "b l"] | None = None) -> Tokens:
        """Mix tokens; those that are not `real` are masked."""
        qkv = self.to_qkv(self.norm_in(tokens))
        q, k, v = rearrange(qkv, "b l (three n d) -> three b n l d", three=3, n=self.num_heads)
        mask = None if real is None else real[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        tokens = tokens + self.to_out(rearrange(mixed, "b n l d -> b l (n d)"))
        updated: Tensor = tokens + self.mlp(tokens)
        return updated


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after a norm, added to their input; the second begins at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            nn.GroupNorm(_GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.GroupNorm(_GROUPS, channels),
            nn.SiLU(),
            last,
        )

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return maps of the same shape."""
        updated: Tensor = maps + self.layers(maps)
        return updated


def sine_positions(length: int, width: int, like: Tensor) -> Float[Tensor, "l d"]:
    """Return sines and cosines of the relative time 0 to 1, whatever the count of frames."""
    time = torch.linspace(0, 1, length, dtype=like.dtype)
    rates = torch.pi * torch.logspace(-2, 2, width // 2, base=2, dtype=like.dtype)
    angles = time[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(like.device)


CONFIG, WEIGHTS, SCORES = "config.json", "model.safetensors", "scores.json"

SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "judge"


def save_judge(judge: Judge, scores: str, folder: Path) -> None:
    """Write a judge and the JSON text of its own scores on real clips.

    Weights are rounded to float16, which halves the folder and moves no score that we report.
    """
    half = {name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}
    with atomic_folder(folder) as partial:
        (partial / CONFIG).write_text(judge.config.model_dump_json() + "\n", encoding="utf-8")
        (partial / SCORES).write_text(scores, encoding="utf-8")
        save_file(half, partial / WEIGHTS)


def load_judge(folder: Path) -> Judge:
    """Return the judge of a folder, in float32, checked and ready to judge.

    Raises:
        UserError: If the folder is not a judge, or a file is missing, unknown or damaged.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} holds no judge; train one with `magicvideo evaluate judge DATA {folder}`."
        )
    verify_checksums(folder)
    try:
        config = JudgeConfig.model_validate_json((folder / CONFIG).read_bytes())
        weights = load_file(folder / WEIGHTS)
        place = folder.resolve()
        judge = Judge(config, "emoji judge" if place == SHIPPED else f"judge {place.name}")
        judge.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except (ValidationError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder} is not a judge of this version; train it anew.") from error
    return judge.eval().requires_grad_(requires_grad=False)
