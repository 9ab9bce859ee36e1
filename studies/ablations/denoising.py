"""The denoising error on held-out clips, with the same noise and timesteps for all models.

The scores of generated videos vary much by chance. The denoising error is the training objective
itself, so it distinguishes two networks after little training, long before their videos differ. All
random numbers depend only on the seed and the clip, so networks with the same autoencoder, text
encoder and noise can be compared on each clip.
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

_SEED_STRIDE = 1_000_000  # distance between the noise seeds of two evaluation seeds


@dataclass(frozen=True, kw_only=True)
class DenoisingErrors:
    """Mean squared errors of the network's prediction, which is noise or velocity.

    Attributes:
        clips: Names of the clips.
        timesteps: The timesteps, the same for every clip.
        error: Mean squared error.
        deviation: The part that differs from frame to frame: the error minus the squared mean of
            the residual over the frames. This part causes flicker.
        seconds: CPU seconds of a forward pass over one clip, median.
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
    """Add noise to clips and measure the error of the denoiser, conditioned on their captions.

    Args:
        pipeline: The model.
        dataset: Clips on which it was not trained.
        count: Number of clips; each is used once, on a plain background.
        num_frames: Frames per clip.
        stride: Distance between frames.
        timesteps: The timesteps.
        seed: Seed of the choice of clips and backgrounds, and of the noise.
        on_clip: Called with the number of finished clips.

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
            chosen = (seed * _SEED_STRIDE + place) * len(timesteps) + number
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
    """Return the error at one timestep, and the part that differs between frames."""
    noise = initial_latent_noise(
        seed,
        tuple(latents.shape[1:]),
        pipeline.config.noise_correlation,
        pipeline.config.noise_decay,
    ).to(latents)
    timestep = torch.tensor([step], device=latents.device)
    noisy = pipeline.scheduler.add_noise(latents, noise, timestep)
    predicted = pipeline.unet(noisy, timestep, tokens, fps).sample
    residual = (
        predicted.float() - prediction_target(pipeline.scheduler, latents, noise, timestep).float()
    )
    whole, common = residual.square().mean().item(), residual.mean(dim=1).square().mean().item()
    return whole, whole - common
