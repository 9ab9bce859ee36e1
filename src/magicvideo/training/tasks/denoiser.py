"""Stages `image`, `unsupervised` and `keyframes`: one denoiser learns frames, motion and words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from magicvideo.diffusion.loss import denoising_loss, prediction_target, sample_timesteps
from magicvideo.diffusion.noise import correlated_noise, initial_latent_noise
from magicvideo.diffusion.sampling import make_scheduler, sample_with_cfg
from magicvideo.models.autoencoder import decode_latents
from magicvideo.models.conditioning import encode_text
from magicvideo.models.inflate import is_temporal_key
from magicvideo.models.pretrained_encoders import FrozenEncoders
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Latents
from magicvideo.training.loader import AnyBatch, BatchSource
from magicvideo.training.lora_denoiser import Denoiser
from magicvideo.training.metrics_logger import image_grid
from magicvideo.training.recipe import DenoiserStageConfig, NoiseConfig, VideoStageConfig
from magicvideo.training.tasks.batches import (
    encode_captions,
    encode_frame_embeds,
    encode_latents,
    to_device,
)

_PREVIEW_STEPS, _PREVIEW_GUIDANCE = 20, 3.0


class DenoiserTask:
    """Denoise latents of frames or clips under text, an image embedding, or no condition.

    Args:
        network: The denoiser with its image condition, initialised; or with LoRA layers to train.
        encoders: The frozen encoders.
        config: The stage's settings; `VideoStageConfig` for clips, else single frames.
        noise: The diffusion process.
        batches: Clips of the training split, or single frames, with their captions.
    """

    def __init__(
        self,
        network: Denoiser,
        encoders: FrozenEncoders,
        config: DenoiserStageConfig,
        noise: NoiseConfig,
        batches: BatchSource,
    ) -> None:
        self.network, self.encoders, self.config, self.batches = network, encoders, config, batches
        self.scheduler = build_training_scheduler(noise)
        self.noise_correlation = noise.noise_correlation
        self.num_frames = batches.num_frames
        video = config if isinstance(config, VideoStageConfig) else None
        self.image_condition = video.image_condition if video else 0.0
        self.temporal_weight = video.temporal_weight if video else 1.0
        self.weight_interpolation = video.weight_interpolation if video else 0.0
        self.pretrained_lr_scale = video.pretrained_lr_scale if video else 1.0
        self._initial_weights = _pretrained_weights(network) if self.weight_interpolation else {}
        encoders.freeze()

    def lr_scale(self, name: str) -> float:
        """Return the factor on the learning rate: weights of the image network have their own."""
        return self.pretrained_lr_scale if _is_pretrained(name) else 1.0

    def losses(
        self, network: nn.Module, batch: AnyBatch, generator: StackedGenerator
    ) -> dict[str, Tensor]:
        """Return the weighted denoising error."""
        device = next(network.parameters()).device
        size = len(batch.captions)
        dropped = generator.uniform(size) < self.config.condition_dropout
        by_image = generator.uniform(size) < self.image_condition
        timesteps = sample_timesteps(
            size,
            self.scheduler.config.num_train_timesteps,
            self.config.terminal_step_prob,
            generator,
        )
        shown = generator.integers(self.num_frames, size)
        with torch.no_grad():
            latents = encode_latents(self.encoders, batch, device)
            tokens = encode_captions(self.encoders, batch, dropped, device)
            if self.image_condition > 0:
                embeddings = encode_frame_embeds(self.encoders, batch, shown, device)
            else:
                width = self.network.image_embed_dim
                embeddings = tokens.new_zeros(size, width)
        noise = correlated_noise(tuple(latents.shape), generator, self.noise_correlation)
        noise, timesteps = to_device(noise, device), to_device(timesteps, device)
        prediction = network(
            self.scheduler.add_noise(latents, noise, timesteps),
            timesteps,
            tokens,
            embeddings,
            to_device(by_image & ~dropped, device),
            batch.fps.to(device),
        )
        target = prediction_target(self.scheduler, latents, noise, timesteps)
        loss = denoising_loss(
            self.scheduler,
            prediction,
            target,
            timesteps,
            self.config.snr_gamma,
            self.temporal_weight,
        )
        return {"loss": loss}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return samples of the captions of some clips: a row a clip, or a grid of pictures."""
        rows, columns = (4, 1) if self.num_frames > 1 else (4, 8)
        captions, fps = self.batches.preview_captions(rows * columns)
        samples = self._sample(captions, fps)
        frames = decode_latents(self.encoders.vae, samples)
        if self.num_frames == 1:
            frames = rearrange(frames, "(r f) 1 c h w -> r f c h w", r=rows)
        return image_grid(frames, enlarge=1)

    def save(self, folder: Path) -> None:
        """Write the denoiser, or what was learned beside it, and the component `scheduler`."""
        with self._interpolated_weights():
            has_images = self.encoders.image_encoder is not None
            self.network.save_components(folder, image_conditioner=has_images)
        self.scheduler.save_pretrained(folder / "scheduler")

    @contextmanager
    def _interpolated_weights(self) -> Iterator[None]:
        """Interpolate pretrained weights towards their initial values within the block.

        Source: Wortsman et al., "Robust fine-tuning of zero-shot models", 2109.01903.
        """
        learnt = {}
        for name, parameter in self.network.named_parameters():
            if name in self._initial_weights:
                learnt[name] = parameter.detach().clone()
                parameter.data.lerp_(
                    self._initial_weights[name].to(parameter.device), self.weight_interpolation
                )
        try:
            yield
        finally:
            for name, parameter in self.network.named_parameters():
                if name in learnt:
                    parameter.data.copy_(learnt[name])

    def _sample(self, captions: list[str], fps: float) -> Latents:
        device = next(self.network.parameters()).device
        self.encoders.to(device)
        config = self.network.unet.config
        shape = (self.num_frames, config.in_channels, config.sample_size, config.sample_size)
        noise = torch.cat(
            [
                initial_latent_noise(seed, shape, self.noise_correlation)
                for seed in range(len(captions))
            ]
        )
        encode = (self.encoders.text_encoder, self.encoders.tokenizer)

        def denoise(latents: Tensor, timestep: Tensor, tokens: Tensor, fps: Tensor) -> Tensor:
            return self.network.unet(latents, timestep, tokens, fps).sample

        return sample_with_cfg(
            denoise,
            noise.to(device),
            make_scheduler(dict(self.scheduler.config), "ddim"),
            _PREVIEW_STEPS,
            _PREVIEW_GUIDANCE,
            encode_text(*encode, captions),
            encode_text(*encode, [""] * len(captions)),
            torch.full((len(captions),), fps, device=device),
        )


def _pretrained_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights of a video U-Net that are an image network's."""
    return {
        name: parameter.detach().clone()
        for name, parameter in network.named_parameters()
        if _is_pretrained(name)
    }


def _is_pretrained(name: str) -> bool:
    """Return whether a parameter of the denoiser is one of an image network's."""
    return name.startswith("unet.") and not is_temporal_key(name)


def build_training_scheduler(noise: NoiseConfig) -> DDIMScheduler:
    """Return the diffusion process of a recipe, as the scheduler that a model folder carries."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        beta_schedule=noise.beta_schedule,
        prediction_type=noise.prediction_type,
        rescale_betas_zero_snr=noise.zero_terminal_snr,
        timestep_spacing="trailing" if noise.zero_terminal_snr else "leading",
        clip_sample=False,
        set_alpha_to_one=True,
    )
