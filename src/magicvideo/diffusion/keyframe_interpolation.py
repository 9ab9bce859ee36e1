"""The gaps between key frames: estimated, corrected by diffusion, then woven into the video."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from magicvideo.diffusion.sampling import Scheduler, sample_with_cfg
from magicvideo.shapes import Latents, Tokens

Keys: TypeAlias = Float[Tensor, "g 2 c h w"]
Inserted: TypeAlias = Float[Tensor, "g k c h w"]
# (noisy residuals, timestep `g`, keys, noise level `g`, tokens, fps `g`) to its prediction
GapDenoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
# (keys, noisy keys, noise level `g`) to new frames and the unit of what is left, `g 1 1 1 1`
GapEstimator: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def pair_keyframes(keys: Latents) -> Keys:
    """Return the two ends of every gap, the gaps of a video one after the other."""
    pairs = torch.stack([keys[:, :-1], keys[:, 1:]], dim=2)
    return rearrange(pairs, "b gaps two c h w -> (b gaps) two c h w")


def interleave_frames(keys: Latents, inserted: Inserted) -> Float[Tensor, "b all c h w"]:
    """Return the whole video: every key, unchanged, and after it the new frames of its gap."""
    between = rearrange(inserted, "(b gaps) k c h w -> b gaps k c h w", b=keys.shape[0])
    woven = torch.cat([keys[:, :-1, None], between], dim=2)
    return torch.cat([rearrange(woven, "b gaps k c h w -> b (gaps k) c h w"), keys[:, -1:]], dim=1)


@torch.no_grad()
def sample_inbetweens(
    estimate: GapEstimator,
    denoise: GapDenoiser,
    pairs: Keys,
    noisy_keys: Keys,
    noise: Inserted,
    scheduler: Scheduler,
    num_steps: int,
    noise_level: int,
    tokens: Tokens,
    fps: Float[Tensor, "g"],
    on_step: Callable[[int], None] | None = None,
) -> Inserted:
    """Return the new frames of gaps: an estimate, and what the denoiser adds to it.

    Args:
        estimate: Tells the new frames in one pass, as `models.interpolation.Interpolator` does.
        denoise: Predicts from noisy residuals, likewise.
        pairs: Both keys of each gap.
        noisy_keys: The same, noised up to `noise_level`, as the networks see them.
        noise: Standard normal, in the shape of the result.
        scheduler: Tells the diffusion steps.
        num_steps: Evaluations of the denoiser.
        noise_level: Diffusion step up to which the keys were noised.
        tokens: Condition of each gap.
        fps: Frames a second of the finished video.
        on_step: Called with the number of finished steps.
    """
    level = torch.full((len(pairs),), noise_level, device=pairs.device)

    def denoise_gaps(x: Tensor, timestep: Tensor, condition: Tensor, rates: Tensor) -> Tensor:
        return denoise(x, timestep, noisy_keys, level, condition, rates)

    # the keys say nearly all; moving away from an empty prompt would add nothing but cost
    residuals = sample_with_cfg(
        denoise_gaps, noise, scheduler, num_steps, 1.0, tokens, tokens, fps, on_step
    )
    estimated, unit = estimate(pairs, noisy_keys, level)
    return estimated + unit * residuals
