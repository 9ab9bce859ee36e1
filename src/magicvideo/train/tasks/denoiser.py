"""Stages `image`, `unsupervised` and `keyframes`: one denoiser learns frames, motion and words."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from magicvideo.data.dataset import Batch, ClipDataset
from magicvideo.data.order import read_batch
from magicvideo.diffusion.noise import draw_noise, noise_for
from magicvideo.diffusion.objective import denoising_loss, draw_timesteps, target_of
from magicvideo.diffusion.sampler import make_scheduler, sample
from magicvideo.draws import Draws
from magicvideo.models.autoencoder import Autoencoder, decode_latents, encode_frames
from magicvideo.models.conditioning import embed_frames, encode_text
from magicvideo.models.denoiser import ConditionedDenoiser
from magicvideo.shapes import Latents
from magicvideo.train.settings import DenoiserSettings, NoiseSettings, VideoSettings
from magicvideo.train.sheet import contact_sheet

_PREVIEW_STEPS, _PREVIEW_GUIDANCE = 20, 3.0


@dataclass(frozen=True)
class Frozen:
    """The trained parts that the denoiser stands on; none of them changes in its stages."""

    vae: Autoencoder
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    image_encoder: CLIPVisionModelWithProjection

    def to(self, device: torch.device) -> None:
        """Move the networks."""
        for network in (self.vae, self.text_encoder, self.image_encoder):
            network.to(device)


class DenoiserTask:
    """Denoise latents of frames or clips under text, an image embedding, or no condition.

    Args:
        network: The denoiser with its image condition, initialised.
        frozen: The parts below it.
        settings: The stage's settings; `VideoSettings` for clips, else single frames.
        noise: The diffusion process.
        dataset: Clips of the training split.
        seed: Of the order of samples.
    """

    def __init__(
        self,
        network: ConditionedDenoiser,
        frozen: Frozen,
        settings: DenoiserSettings,
        noise: NoiseSettings,
        dataset: ClipDataset,
        seed: int,
    ) -> None:
        self.network, self.frozen, self.settings = network, frozen, settings
        self.dataset, self.seed = dataset, seed
        self.scheduler, self.shared_noise = training_scheduler(noise), noise.shared
        video = isinstance(settings, VideoSettings)
        self.num_frames = network.unet.config.num_frames if video else 1
        self.strides = settings.strides if isinstance(settings, VideoSettings) else (1, 1)
        self.image_share = settings.image_condition if isinstance(settings, VideoSettings) else 0.0
        self.deviation_weight = (
            settings.deviation_weight if isinstance(settings, VideoSettings) else 1.0
        )
        for part in (frozen.vae, frozen.text_encoder, frozen.image_encoder):
            part.requires_grad_(requires_grad=False).eval()

    def begin_step(self, step: int) -> None:
        """Nothing changes in the course of this stage."""

    def read(self, position: int) -> Batch:
        """Return clips, or single frames in the image stage, with their captions."""
        return read_batch(
            self.dataset,
            self.seed,
            position,
            self.settings.batch_size,
            num_frames=self.num_frames,
            strides=self.strides,
            balance=self.settings.balance,
        )

    def losses(self, network: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Return the weighted denoising error."""
        device = next(network.parameters()).device
        self.frozen.to(device)
        size = len(batch.captions)
        dropped = draws.uniform(size) < self.settings.drop_condition
        by_image = draws.uniform(size) < self.image_share
        timesteps = draw_timesteps(
            size,
            self.scheduler.config.num_train_timesteps,
            self.settings.full_noise,
            draws,
        )
        shown = draws.integers(self.num_frames, size)
        frames = batch.frames.to(device)
        with torch.no_grad():
            latents = encode_frames(self.frozen.vae, frames)
            prompts = [
                "" if drop else text for drop, text in zip(dropped, batch.captions, strict=True)
            ]
            tokens = encode_text(self.frozen.text_encoder, self.frozen.tokenizer, prompts)
            if self.image_share > 0:
                chosen = frames[torch.arange(size), shown][:, None]
                embeddings = embed_frames(self.frozen.image_encoder, chosen)[:, 0]
            else:
                embeddings = tokens.new_zeros(size, self.frozen.image_encoder.config.projection_dim)
        noise = draw_noise(tuple(latents.shape), draws, self.shared_noise).to(device)
        timesteps = timesteps.to(device)
        prediction = network(
            self.scheduler.add_noise(latents, noise, timesteps),
            timesteps,
            tokens,
            embeddings,
            (by_image & ~dropped).to(device),
            batch.fps.to(device),
        )
        target = target_of(self.scheduler, latents, noise, timesteps)
        loss = denoising_loss(
            self.scheduler,
            prediction,
            target,
            timesteps,
            self.settings.snr_gamma,
            self.deviation_weight,
        )
        return {"loss": loss}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return samples of the captions of some clips: a row a clip, or a grid of pictures."""
        rows, columns = (4, 1) if self.num_frames > 1 else (4, 8)
        captions, fps = _captions(self.dataset, rows * columns)
        samples = self._sample(captions, fps)
        frames = decode_latents(self.frozen.vae, samples)
        if self.num_frames == 1:
            frames = rearrange(frames, "(r f) 1 c h w -> r f c h w", r=rows)
        return contact_sheet(frames, enlarge=1)

    def save(self, folder: Path) -> None:
        """Write the components `unet`, `image_conditioner` and `scheduler`."""
        self.network.unet.save_pretrained(folder / "unet")
        self.network.image_conditioner.save_pretrained(folder / "image_conditioner")
        self.scheduler.save_pretrained(folder / "scheduler")

    def _sample(self, captions: list[str], fps: float) -> Latents:
        device = next(self.network.parameters()).device
        config = self.network.unet.config
        shape = (self.num_frames, config.in_channels, config.sample_size, config.sample_size)
        noise = torch.cat(
            [noise_for(seed, shape, self.shared_noise) for seed in range(len(captions))]
        )
        encode = (self.frozen.text_encoder, self.frozen.tokenizer)
        return sample(
            self.network.unet,
            noise.to(device),
            make_scheduler(dict(self.scheduler.config), "ddim"),
            _PREVIEW_STEPS,
            _PREVIEW_GUIDANCE,
            encode_text(*encode, captions),
            encode_text(*encode, [""] * len(captions)),
            torch.full((len(captions),), fps, device=device),
        )


def training_scheduler(noise: NoiseSettings) -> DDIMScheduler:
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


def _captions(dataset: ClipDataset, count: int) -> tuple[list[str], float]:
    """Return canonical captions of clips spread over the data set, and a slow frame rate."""
    chosen = np.linspace(0, len(dataset) - 1, count).astype(int)
    rng = np.random.default_rng(0)
    samples = [
        dataset.sample(int(i), rng, num_frames=1, strides=(4, 4), wording="plain") for i in chosen
    ]
    return [sample.caption for sample in samples], min(sample.fps for sample in samples)
