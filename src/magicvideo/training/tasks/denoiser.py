"""Stages `image`, `unsupervised` and `keyframes`: one denoiser learns frames, motion and words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from magicvideo.data.dataset import ClipDataset
from magicvideo.data.shards.dataset import ShardDataset
from magicvideo.diffusion.loss import denoising_loss, prediction_target, sample_timesteps
from magicvideo.diffusion.noise import correlated_noise, initial_latent_noise
from magicvideo.diffusion.sampling import make_scheduler, sample_with_cfg
from magicvideo.models.autoencoder import decode_latents
from magicvideo.models.conditioning import encode_text
from magicvideo.models.inflate import is_temporal_key
from magicvideo.models.pretrained_encoders import FrozenEncoders
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Latents
from magicvideo.training.lora_denoiser import Denoiser
from magicvideo.training.metrics_logger import image_grid
from magicvideo.training.recipe import DenoiserStageConfig, NoiseConfig, VideoStageConfig
from magicvideo.training.task import AnyBatch
from magicvideo.training.tasks.batches import (
    encode_captions,
    encode_frame_embeds,
    encode_latents,
    get_batch,
    preview_captions,
)

_PREVIEW_STEPS, _PREVIEW_GUIDANCE = 20, 3.0


class DenoiserTask:
    """Denoise latents of frames or clips under text, an image embedding, or no condition.

    Args:
        network: The denoiser with its image condition, initialised, or with adapters to train.
        frozen: The parts below it.
        settings: The stage's settings; `VideoStageConfig` for clips, else single frames.
        noise: The diffusion process.
        dataset: Clips of the training split.
        seed: Of the order of samples.
    """

    def __init__(
        self,
        network: Denoiser,
        frozen: FrozenEncoders,
        settings: DenoiserStageConfig,
        noise: NoiseConfig,
        dataset: ClipDataset | ShardDataset,
        seed: int,
    ) -> None:
        self.network, self.frozen, self.settings = network, frozen, settings
        self.dataset, self.seed = dataset, seed
        self.scheduler, self.noise_correlation = (
            build_training_scheduler(noise),
            noise.noise_correlation,
        )
        video = isinstance(settings, VideoStageConfig)
        self.num_frames = network.unet.config.num_frames if video else 1
        self.strides = settings.strides if isinstance(settings, VideoStageConfig) else (1, 1)
        self.image_share = (
            settings.image_condition if isinstance(settings, VideoStageConfig) else 0.0
        )
        self.temporal_weight = (
            settings.temporal_weight if isinstance(settings, VideoStageConfig) else 1.0
        )
        self.weight_interpolation = (
            settings.weight_interpolation if isinstance(settings, VideoStageConfig) else 0.0
        )
        self._start = _reused(network) if self.weight_interpolation else {}
        for part in (frozen.vae, frozen.text_encoder, frozen.image_encoder):
            part.requires_grad_(requires_grad=False).eval()

    def get_batch(self, position: int) -> AnyBatch:
        """Return clips, or single frames in the image stage, with their captions."""
        return get_batch(
            self.dataset,
            self.seed,
            position,
            self.settings.batch_size,
            num_frames=self.num_frames,
            strides=self.strides,
            subject_balance=self.settings.subject_balance,
        )

    def losses(
        self, network: nn.Module, batch: AnyBatch, generator: StackedGenerator
    ) -> dict[str, Tensor]:
        """Return the weighted denoising error."""
        device = next(network.parameters()).device
        size = len(batch.captions)
        dropped = generator.uniform(size) < self.settings.condition_dropout
        by_image = generator.uniform(size) < self.image_share
        timesteps = sample_timesteps(
            size,
            self.scheduler.config.num_train_timesteps,
            self.settings.terminal_step_prob,
            generator,
        )
        shown = generator.integers(self.num_frames, size)
        with torch.no_grad():
            latents = encode_latents(self.frozen, batch, device)
            tokens = encode_captions(self.frozen, batch, dropped, device)
            if self.image_share > 0:
                embeddings = encode_frame_embeds(self.frozen, batch, shown, device)
            else:
                embeddings = tokens.new_zeros(size, self.frozen.image_encoder.config.projection_dim)
        noise = correlated_noise(tuple(latents.shape), generator, self.noise_correlation).to(device)
        timesteps = timesteps.to(device)
        prediction = network(
            self.scheduler.add_noise(latents, noise, timesteps),
            timesteps,
            tokens,
            embeddings,
            (by_image & ~dropped).to(device),
            batch.fps.to(device),
        )
        target = prediction_target(self.scheduler, latents, noise, timesteps)
        loss = denoising_loss(
            self.scheduler,
            prediction,
            target,
            timesteps,
            self.settings.snr_gamma,
            self.temporal_weight,
        )
        return {"loss": loss}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return samples of the captions of some clips: a row a clip, or a grid of pictures."""
        rows, columns = (4, 1) if self.num_frames > 1 else (4, 8)
        captions, fps = preview_captions(self.dataset, rows * columns)
        samples = self._sample(captions, fps)
        frames = decode_latents(self.frozen.vae, samples)
        if self.num_frames == 1:
            frames = rearrange(frames, "(r f) 1 c h w -> r f c h w", r=rows)
        return image_grid(frames, enlarge=1)

    def save(self, folder: Path) -> None:
        """Write the denoiser, or what was learned beside it, and the component `scheduler`."""
        with self._leaning_back():
            self.network.save_components(folder)
        self.scheduler.save_pretrained(folder / "scheduler")

    @contextmanager
    def _leaning_back(self) -> Iterator[None]:
        """Let reused weights lie between what they became and what they began as, for a while.

        Source: Wortsman et al., "Robust fine-tuning of zero-shot models", 2109.01903.
        """
        learnt = {}
        for name, parameter in self.network.named_parameters():
            if name in self._start:
                learnt[name] = parameter.detach().clone()
                parameter.data.lerp_(
                    self._start[name].to(parameter.device), self.weight_interpolation
                )
        try:
            yield
        finally:
            for name, parameter in self.network.named_parameters():
                if name in learnt:
                    parameter.data.copy_(learnt[name])

    def _sample(self, captions: list[str], fps: float) -> Latents:
        device = next(self.network.parameters()).device
        self.frozen.to(device)
        config = self.network.unet.config
        shape = (self.num_frames, config.in_channels, config.sample_size, config.sample_size)
        noise = torch.cat(
            [
                initial_latent_noise(seed, shape, self.noise_correlation)
                for seed in range(len(captions))
            ]
        )
        encode = (self.frozen.text_encoder, self.frozen.tokenizer)
        return sample_with_cfg(
            self.network.unet,
            noise.to(device),
            make_scheduler(dict(self.scheduler.config), "ddim"),
            _PREVIEW_STEPS,
            _PREVIEW_GUIDANCE,
            encode_text(*encode, captions),
            encode_text(*encode, [""] * len(captions)),
            torch.full((len(captions),), fps, device=device),
        )


def _reused(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights of a video U-Net that are an image network's."""
    return {
        name: parameter.detach().clone()
        for name, parameter in network.named_parameters()
        if name.startswith("unet.") and not is_temporal_key(name)
    }


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
