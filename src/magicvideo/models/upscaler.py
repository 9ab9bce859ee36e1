"""Super-resolution: diffusion of the residual from bicubic upsampling, by a factor of 4."""

from collections.abc import Sequence
from itertools import pairwise

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from jaxtyping import Float, Shaped
from torch import Tensor, addcmul, cat, channels_last, nn
from torch.nn import functional as F

from magicvideo.shapes import FoldedFrames

LargeFrames = Float[Tensor, "n c height width"]
Features = Float[Tensor, "n _ _ _"]

_FREQUENCIES = 64
_LEVEL_UNITS = 1000  # scales noise levels of pixels to the range of diffusion steps


class Upscaler(ModelMixin, ConfigMixin):
    """Predict the velocity of a frame's residual from bicubic upsampling.

    Source: MagicVideo's last stage is a pixel diffusion model trained on images; its network is not
    published (departure D13 in docs/paper_map.md). The model diffuses the residual r = (x -
    up(s)) / k, with x the large frame, up(s) the bicubically upsampled small frame, and k =
    `residual_scale`, which gives r unit variance. The small frame determines nearly all of x. A
    residual of zero means plain upsampling, so colours cannot drift and flat areas stay flat.

    Blocks of 4x4 pixels are rearranged into channels, so the network runs at the resolution of the
    small frame and below, which is fast. Norms are over the channels of each position and there is
    no attention, so an output depends only on inputs within `receptive_radius`, and large frames
    can be processed in tiles.

    Args:
        channels: Colour channels.
        factor: Ratio of the sides of large and small frames.
        widths: Channels of each resolution, starting with that of the small frame.
        num_blocks: Residual blocks per resolution, in the encoder and in the decoder; the last
            number counts the middle blocks.
        residual_scale: Standard deviation of the difference from the upsampled small frame.
        max_noise_level: Maximal standard deviation of the noise on small frames in training; pixels
            are in [-1, 1].

    Raises:
        ValueError: If `widths` and `num_blocks` differ in length.
    """

    _no_split_modules = ("FiLMResBlock",)  # FSDP and compile units

    @register_to_config
    def __init__(
        self,
        channels: int = 3,
        factor: int = 4,
        widths: Sequence[int] = (48, 96, 176),
        num_blocks: Sequence[int] = (1, 1, 2),
        residual_scale: float = 1.0,  # noqa: ARG002 - registered
        max_noise_level: float = 0.2,  # noqa: ARG002 - registered
    ) -> None:
        super().__init__()
        if len(widths) != len(num_blocks):
            raise ValueError(f"{len(widths)} widths and {len(num_blocks)} numbers of blocks")
        folded, first = channels * factor * factor, widths[0]
        embed_dim = 4 * first
        self.frequencies = Timesteps(_FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        # the diffusion step and the noise level have separate embeddings, which are summed
        self.time_embedding = TimestepEmbedding(_FREQUENCIES, embed_dim)
        self.level_embedding = TimestepEmbedding(_FREQUENCIES, embed_dim)
        self.conv_in = nn.Conv2d(folded + channels, first, 3, padding=1)
        *finer, deepest = zip(widths, num_blocks, strict=True)
        self.down_blocks = nn.ModuleList(FiLMStack(*level, embed_dim) for level in finer)
        self.downsamplers = nn.ModuleList(
            nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * fine, coarse, 1))
            for fine, coarse in pairwise(widths)
        )
        self.mid_blocks = FiLMStack(*deepest, embed_dim)
        self.upsamplers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2))
            for fine, coarse in pairwise(widths)
        )
        self.up_blocks = nn.ModuleList(FiLMStack(*level, embed_dim) for level in finer)
        self.norm_out = LayerNorm2d(first)
        self.conv_out = _zero(nn.Conv2d(first, folded, 3, padding=1))
        self.gain_out = _zero(nn.Conv2d(first, folded, 1))

    @property
    def size_divisor(self) -> int:
        """Return the divisor of the sides of a small frame."""
        return int(2 ** (len(self.config.widths) - 1))

    @property
    def receptive_radius(self) -> int:
        """Return the radius of the receptive field, in pixels of the small frame.

        A block adds 2 positions, with its two 3x3 convolutions. A radius r at one resolution is 2 r
        + 1 at the next higher one, because 2x2 positions are merged into one. The first and last
        convolutions add 1 each.
        """
        *finer, deepest = self.config.num_blocks
        radius = 2 * deepest
        for count in reversed(finer):
            # 2 per block, for `count` blocks in the encoder and `count` in the decoder
            radius = 2 * radius + 1 + 4 * count
        return int(radius + 2)

    @property
    def tile_overlap(self) -> int:
        """Return the overlap of tiles: the radius, rounded up to a multiple of `size_divisor`."""
        return -(-self.receptive_radius // self.size_divisor) * self.size_divisor

    @property
    def min_tile_size(self) -> int:
        """Return the shortest side of a tile, in pixels of the small frame."""
        return 2 * self.tile_overlap + self.size_divisor

    def forward(
        self,
        noisy: LargeFrames,
        small: FoldedFrames,
        timestep: Shaped[Tensor, " n"],
        noise_level: Float[Tensor, " n"],
    ) -> LargeFrames:
        """Return the velocity.

        Args:
            noisy: Noisy residuals.
            small: Small frames in [-1, 1], with noise of `noise_level` added; their sides are
                multiples of `size_divisor`.
            timestep: Diffusion step of each frame.
            noise_level: Standard deviation of the noise added to each small frame.

        Raises:
            ValueError: If the sides are inconsistent.
        """
        factor = self.config.factor
        sides, expected = noisy.shape[-2:], [factor * side for side in small.shape[-2:]]
        if list(sides) != expected or any(side % self.size_divisor for side in small.shape[-2:]):
            raise ValueError(
                f"small frames of {tuple(small.shape[-2:])} and residuals of {tuple(sides)}: the "
                f"former must be multiples of {self.size_divisor}, the latter {factor} times as "
                "large"
            )
        # each frame is conditioned on its diffusion step and the noise level of its small frame
        embedding = F.silu(
            self.time_embedding(self.frequencies(timestep).to(noisy.dtype))
            + self.level_embedding(self.frequencies(_LEVEL_UNITS * noise_level).to(noisy.dtype))
        )
        # 4x4 pixels become channels: all convolutions run at the small resolution or below
        folded = F.pixel_unshuffle(noisy, factor)
        x = self.conv_in(cat([folded, small], dim=1).contiguous(memory_format=channels_last))
        skips = []
        for blocks, downsample in zip(self.down_blocks, self.downsamplers, strict=True):
            skips.append(blocks(x, embedding))
            x = downsample(skips[-1])
        x = self.mid_blocks(x, embedding)
        halves = list(zip(self.up_blocks, self.upsamplers, skips, strict=True))
        for blocks, upsample, skip in reversed(halves):
            # skip connections are added, not concatenated: fewer channels at high resolution
            x = blocks(upsample(x) + skip, embedding)
        x = F.silu(self.norm_out(x))
        # Where the residual r is 0, the input is sigma * e and the velocity alpha * e is a multiple
        # of it. The per-pixel gain expresses this; the hidden layers are too narrow to copy all
        # noisy pixels.
        return F.pixel_shuffle(addcmul(self.conv_out(x), self.gain_out(x), folded), factor)


def upsample_bicubic(frames: FoldedFrames, factor: int) -> LargeFrames:
    """Upsample frames by `factor` with bicubic interpolation."""
    return F.interpolate(frames, scale_factor=factor, mode="bicubic", align_corners=False)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each position (as in ConvNeXt)."""

    def forward(self, x: FoldedFrames) -> FoldedFrames:
        """Return the normalized input."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class FiLMResBlock(nn.Module):
    """Residual block with FiLM conditioning (Perez et al., 1709.07871).

    h = conv2(SiLU((1 + scale) * norm2(conv1(SiLU(norm1(x)))) + shift)), and the output is x + h.
    """

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(embed_dim, 2 * channels)
        self.norm2 = LayerNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: FoldedFrames, embedding: Float[Tensor, "n e"]) -> FoldedFrames:
        """Return the block's output."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        # 1 + scale: with zero modulation this is a plain residual block
        h = addcmul(shift, self.norm2(h), 1 + scale)
        return x + self.conv2(F.silu(h))


class FiLMStack(nn.ModuleList):
    """Blocks in sequence with the same embedding."""

    def __init__(self, channels: int, count: int, embed_dim: int) -> None:
        super().__init__(FiLMResBlock(channels, embed_dim) for _ in range(count))

    def forward(self, x: FoldedFrames, embedding: Float[Tensor, "n e"]) -> FoldedFrames:
        """Return the last block's output."""
        for block in self:
            x = block(x, embedding)
        return x


def _zero(convolution: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
