"""The denoising error on held-out clips at equal noise and steps for all models.

The scores of generated videos contain much chance. The denoising error is the training objective
itself, so it separates two networks after little training, long before their videos differ. All
draws depend only on the seed and the clip, so that networks with the same autoencoder, text encoder
and noise can be compared clip by clip.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from magicvideo.data.dataset import ClipDataset
from magicvideo.diffusion.loss import prediction_target
from magicvideo.diffusion.noise import initial_latent_noise
from magicvideo.evaluation.prompt_sets import real_videos, sample_prompts
from magicvideo.models.autoencoder import encode_frames
from magicvideo.models.conditioning import encode_text
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.shapes import Latents

_APART = 1_000_000  # between the noise of two seeds


@dataclass(frozen=True, kw_only=True)
class DenoisingErrors:
    """Mean squared errors of what the network predicts, noise or velocity.

    Attributes:
        clips: Names of the clips.
        timesteps: Diffusion steps, of which each clip was shown at every one.
        error: The whole error.
        deviation: The part of it that differs from frame to frame: the error less that of its mean
            over the frames. It is what flickers.
        seconds: CPU seconds of one pass of the network over one clip, the median.
    """

    clips: list[str]
    timesteps: tuple[int, ...]
    error: Float[np.ndarray, "clips steps"]
    deviation: Float[np.ndarray, "clips steps"]
    seconds: float


@torch.no_grad()
def measure_denoising_errors(
    pipeline: MagicVideoPipeline,
    dataset: ClipDataset,
    count: int,
    *,
    num_frames: int,
    stride: int,
    timesteps: Sequence[int],
    seed: int,
    on_clip: Callable[[int], None],
) -> DenoisingErrors:
    """Noise clips, conditioned on their captions, and measure how far the denoiser is off.

    Args:
        pipeline: The model.
        dataset: Clips that it was not trained on.
        count: How many; each once, on a plain background.
        num_frames: Frames of each.
        stride: Between frames.
        timesteps: Diffusion steps.
        seed: Of the draw of clips and backgrounds, and of the noise.
        on_clip: Called with the number of clips that are done.

    Raises:
        UserError: If there are too few clips.
    """
    prompts = sample_prompts(dataset, count, seed)
    errors: list[list[tuple[float, float]]] = []
    seconds = []
    for place, video in enumerate(real_videos(dataset, prompts, num_frames, stride)):
        prompt = prompts[place]
        latents = encode_frames(pipeline.vae, video[None].to(pipeline.device))
        tokens = encode_text(pipeline.text_encoder, pipeline.tokenizer, [prompt.caption])
        fps = torch.tensor([dataset.clips[prompt.index].fps / stride], device=pipeline.device)
        errors.append([])
        for number, step in enumerate(timesteps):
            chosen = (seed * _APART + place) * len(timesteps) + number
            started = time.process_time()
            errors[-1].append(_errors(pipeline, latents, step, tokens, fps, chosen))
            seconds.append(time.process_time() - started)
        on_clip(place + 1)
    figures = np.array(errors)
    return DenoisingErrors(
        clips=[dataset.clips[prompt.index].id for prompt in prompts],
        timesteps=tuple(timesteps),
        error=figures[..., 0],
        deviation=figures[..., 1],
        seconds=float(np.median(seconds)),
    )


def _errors(
    pipeline: MagicVideoPipeline,
    latents: Latents,
    step: int,
    tokens: Float[Tensor, "1 l d"],
    fps: Float[Tensor, "1"],
    seed: int,
) -> tuple[float, float]:
    """Return the error at one step, and its deviation from its mean over the frames."""
    noise = initial_latent_noise(
        seed,
        tuple(latents.shape[1:]),
        pipeline.config.noise_correlation,
        pipeline.config.noise_decay,
    ).to(latents)
    timestep = torch.tensor([step], device=latents.device)
    noisy = pipeline.scheduler.add_noise(latents, noise, timestep)
    off = pipeline.unet(noisy, timestep, tokens, fps).sample
    off = off.float() - prediction_target(pipeline.scheduler, latents, noise, timestep).float()
    whole, common = off.square().mean().item(), off.mean(dim=1).square().mean().item()
    return whole, whole - common
