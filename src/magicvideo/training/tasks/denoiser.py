"""Stages `image`, `unsupervised` and `keyframes`: training of the denoiser."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch
from diffusers import DDIMScheduler
from einops import rearrange
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from magicvideo.diffusion.loss import (
    denoising_loss,
    prediction_target,
    sample_timesteps,
    temporal_mode_weights,
)
from magicvideo.diffusion.noise import correlated_noise, initial_latent_noise, noise_covariance
from magicvideo.diffusion.sampling import make_scheduler, sample_with_cfg
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import decode_latents
from magicvideo.models.conditioning import ConditionedDenoiser, encode_text, motion_amount, tokenize
from magicvideo.models.inflate import is_temporal_key
from magicvideo.models.lora import BASE_MODEL, LORA_FILE, LoraWeights, to_peft_state_dict
from magicvideo.models.pretrained_encoders import FrozenEncoders
from magicvideo.models.unet import VideoUNet, latent_size
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Latents, Tokens
from magicvideo.training.components import LORA
from magicvideo.training.loader import AnyBatch, BatchSource, MixedBatch, TrainingBatch
from magicvideo.training.metrics_logger import image_grid
from magicvideo.training.optim import TEXT_ENCODER
from magicvideo.training.recipe import (
    DenoiserStageConfig,
    ImageStageConfig,
    KeyframesStageConfig,
    LoraTrainingConfig,
    NoiseConfig,
    VideoStageConfig,
)
from magicvideo.training.tasks.batches import (
    draw_given_frames,
    draw_motion,
    encode_captions,
    encode_frame_embeds,
    encode_latents,
    to_device,
)
from magicvideo.training.tasks.clip_model import WORDS

# endings of the names of the layers that get LoRA weights
_TARGETS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "feed_forward": ["ff.net.0.proj", "ff.net.2"],
    "projections": ["proj_in", "proj_out"],
    "convolutions": ["conv1", "conv2"],
    "temporal": ["temporal.to_qkv", "temporal.to_out"],
}
_ADAPTER = "default"
_PREVIEW_STEPS, _PREVIEW_GUIDANCE = 20, 3.0


class LoraDenoiser(nn.Module):
    """A frozen denoiser with trainable LoRA layers, which peft injects into its U-Net.

    Only the LoRA layers require gradients, so optimizer, EMA and checkpoints exclude the base.
    FSDP2 shards the base like any other weights.

    Args:
        base: The denoiser; it is frozen and gets LoRA layers.
        config: Rank, alpha and target layers.
        base_hash: Hash of the base's model folder, stored in the output.

    Raises:
        UserError: If the denoiser lacks a type of target layer.
    """

    def __init__(
        self, base: ConditionedDenoiser, config: LoraTrainingConfig, base_hash: str
    ) -> None:
        super().__init__()
        base.requires_grad_(requires_grad=False).eval()
        names = [name for name, _ in base.unet.named_modules()]
        for kind in config.targets:
            endings = tuple(f".{ending}" for ending in _TARGETS[kind])
            if not any(name.endswith(endings) for name in names):
                raise UserError(
                    f"keyframes.lora.targets has {kind}, but the U-Net has no such layers."
                )
        layers = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=[end for kind in config.targets for end in _TARGETS[kind]],
        )
        inject_adapter_in_model(layers, base.unet, _ADAPTER)
        self.alpha, self.base_hash = config.alpha, base_hash
        self.base = base
        self.text_encoder = None

    def train(self, mode: bool = True) -> "LoraDenoiser":
        """Set training mode; the base stays in evaluation mode."""
        super().train(mode)
        self.base.eval()
        return self

    @property
    def unet(self) -> VideoUNet:
        """Return the U-Net, including LoRA layers."""
        return self.base.unet

    @property
    def image_embed_dim(self) -> int:
        """Return the width of the image embeddings."""
        return self.base.image_embed_dim

    def lora_weights(self) -> dict[str, LoraWeights]:
        """Return the LoRA weights by name of the U-Net's weight."""
        return {
            f"{name}.weight": LoraWeights(
                layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight, self.alpha
            )
            for name, layer in self.unet.named_modules()
            if isinstance(layer, LoraLayer)
        }

    def forward(self, *inputs: Tensor | None) -> Float[Tensor, "b f out h w"]:
        """Return the prediction; the inputs are those of `ConditionedDenoiser`."""
        return self.base(*inputs)

    @torch.no_grad()
    def save_components(self, folder: Path, *, image_conditioner: bool = True) -> None:  # noqa: ARG002
        """Write the LoRA in the layout of diffusers and peft; the header has the base's hash."""
        (folder / LORA).mkdir()
        metadata = {"format": "pt", BASE_MODEL: self.base_hash}
        tensors = to_peft_state_dict(self.lora_weights(), "unet")
        (folder / LORA / LORA_FILE).write_bytes(_serialised(tensors, metadata))


def _serialised(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Serialize to safetensors, with the same bytes for the same weights.

    The library writes the metadata in random order.
    """
    content = save(tensors, metadata=metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = metadata
    text = json.dumps(header, separators=(",", ":")).encode()
    return content[:8] + text.ljust(end - 8) + content[end:]


Denoiser: TypeAlias = ConditionedDenoiser | LoraDenoiser


class DenoiserTask:
    """Train the denoiser on frames or clips, conditioned on text, images or nothing.

    Args:
        network: The initialized denoiser, optionally with LoRA layers.
        encoders: The frozen encoders.
        config: The stage's settings; `VideoStageConfig` for clips, else single frames.
        noise: The diffusion process.
        batches: Clips of the training split, or single frames, with their captions.
        words: Words known to the text encoder if it is trained, stored in the output.
    """

    def __init__(
        self,
        network: Denoiser,
        encoders: FrozenEncoders,
        config: DenoiserStageConfig,
        noise: NoiseConfig,
        batches: BatchSource,
        words: list[str] | None = None,
    ) -> None:
        self.network, self.config, self.batches = network, config, batches
        self.words = words or []
        self.encoders = encoders
        if network.text_encoder is not None:
            self.encoders = replace(encoders, text_encoder=network.text_encoder)
        self.scheduler = build_training_scheduler(noise)
        self.noise_correlation, self.noise_decay = noise.noise_correlation, noise.noise_decay
        self.num_frames = batches.num_frames
        video = config if isinstance(config, VideoStageConfig) else None
        self.image_condition = video.image_condition if video else 0.0
        self.temporal_weight = video.temporal_weight if video else 1.0
        self.mode_weights = self._temporal_mode_weights(video)
        self.given_frames_prob = video.given_frames_prob if video else 0.0
        self.max_given_frames = min(video.max_given_frames, self.num_frames - 1) if video else 0
        self.has_motion = video is not None and network.unet.config.get("motion_condition", False)
        self.motion_dropout = video.motion_dropout if video else 1.0
        self.weight_interpolation = video.weight_interpolation if video else 0.0
        self.pretrained_lr_scale = video.pretrained_lr_scale if video else 1.0
        self._initial_weights = _pretrained_weights(network) if self.weight_interpolation else {}
        encoders.freeze()  # a trained text encoder is a copy of the one in it

    def lr_scale(self, name: str) -> float:
        """Return the factor on the learning rate.

        It differs for pretrained weights and for the text encoder.
        """
        if name.startswith(TEXT_ENCODER):
            config = self.config
            assert isinstance(config, ImageStageConfig | KeyframesStageConfig)
            return config.text_encoder_learning_rate / config.learning_rate
        return self.pretrained_lr_scale if _is_pretrained(name) else 1.0

    def losses(
        self, network: nn.Module, batch: TrainingBatch, generator: StackedGenerator
    ) -> dict[str, Tensor]:
        """Return the weighted denoising error of clips, and of single frames if any.

        The loss is the sum of both.
        """
        if not isinstance(batch, MixedBatch):
            return {"loss": self._loss(network, batch, generator)}
        clips = self._loss(network, batch.clips, generator)
        frames = batch.single_frames
        single = self._loss(network, frames, generator.spawn(len(frames.captions)))
        return {"loss": clips + single, "clip_loss": clips, "frame_loss": single}

    def _loss(
        self, network: nn.Module, batch: AnyBatch, generator: StackedGenerator
    ) -> Float[Tensor, ""]:
        device = next(network.parameters()).device
        size = len(batch.captions)
        # classifier-free guidance needs an unconditional model: drop conditions at random (Ho and
        # Salimans, 2207.12598, algorithm 1)
        dropped = generator.uniform(size) < self.config.condition_dropout
        by_image = generator.uniform(size) < self.image_condition
        timesteps = sample_timesteps(
            size,
            self.scheduler.config.num_train_timesteps,
            self.config.terminal_step_prob,
            generator,
            self.config.timestep_power,
        )
        with torch.no_grad():
            latents = encode_latents(self.encoders, batch, device)
            shown = generator.integers(latents.shape[1], size)
            text = self._text(batch, dropped, device)
            if self.image_condition > 0:
                embeddings = encode_frame_embeds(self.encoders, batch, shown, device)
            else:
                embeddings = latents.new_zeros(size, self.network.image_embed_dim)
        # noise is partly shared by the frames of a clip (D14); the paper's independent noise has
        # correlation 0
        noise = correlated_noise(
            tuple(latents.shape), generator, self.noise_correlation, self.noise_decay
        )
        noise, timesteps = to_device(noise, device), to_device(timesteps, device)
        is_clip = latents.shape[1] > 1
        given = None
        if is_clip and self.given_frames_prob and self.max_given_frames:
            given = draw_given_frames(
                size, self.num_frames, self.given_frames_prob, self.max_given_frames, generator
            )
        # x_t = alpha_t x + sigma_t e
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        frame_timesteps = timesteps
        if given is not None:
            given = to_device(given, device)
            # given frames are clean and have timestep 0, so that the network continues them
            noisy = torch.where(given[:, :, None, None, None], latents, noisy)
            frame_timesteps = timesteps[:, None].masked_fill(given, 0)
        motion = None
        if is_clip and self.has_motion:
            motion = draw_motion(latents, self.network.unet.config, self.motion_dropout, generator)
        # the network gets one timestep per frame if some frames are given, otherwise one per clip
        prediction = network(
            noisy,
            frame_timesteps,
            text,
            embeddings,
            to_device(by_image & ~dropped, device),
            batch.fps.to(device),
            motion,
        )
        target = prediction_target(self.scheduler, latents, noise, timesteps)
        if given is not None:
            # Given frames do not contribute to the loss: their target is the prediction itself, so
            # error and gradient are zero, even if mode weights mix the errors of frames.
            target = torch.where(given[:, :, None, None, None], prediction.to(target.dtype), target)
        return denoising_loss(
            self.scheduler,
            prediction,
            target,
            timesteps,
            self.config.snr_gamma,
            self.temporal_weight if is_clip else 1.0,
            self.mode_weights if is_clip else None,
        )

    def _text(
        self, batch: AnyBatch, dropped: Bool[Tensor, " b"], device: torch.device
    ) -> Tokens | Int[Tensor, "b l"]:
        """Return the tokens of the captions, or token ids if the network encodes them."""
        if self.network.text_encoder is None:
            return encode_captions(self.encoders, batch, dropped, device)
        texts = ["" if drop else text for drop, text in zip(dropped, batch.captions, strict=True)]
        return tokenize(self.encoders.tokenizer, texts).to(device)

    @torch.no_grad()
    def calibrate(self, batches: int = 16) -> None:
        """Measure mean and standard deviation of motion, and store them in the network's config.

        Does nothing without a motion condition.
        """
        if not self.has_motion:
            return
        device = next(self.network.parameters()).device
        amounts = torch.cat(
            [
                motion_amount(encode_latents(self.encoders, batch, device))
                for batch in (
                    self.batches.get_other_batch(1, position, self.config.batch_size)
                    for position in range(batches)
                )
            ]
        )
        self.network.unet.register_to_config(
            motion_mean=amounts.mean().item(), motion_std=max(amounts.std().item(), 1e-3)
        )

    def _temporal_mode_weights(self, config: VideoStageConfig | None) -> Tensor | None:
        if config is None or config.mode_weight_limit is None:
            return None
        # W = s U diag(min(1 / l, limit)) U^T of the noise's covariance over frames
        covariance = noise_covariance(self.num_frames, self.noise_correlation, self.noise_decay)
        return temporal_mode_weights(covariance, config.mode_weight_limit)

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Return samples for some captions: one row per clip, or a grid of images."""
        rows, columns = (4, 1) if self.num_frames > 1 else (4, 8)
        captions, fps = self.batches.preview_captions(rows * columns)
        samples = self._sample(captions, fps)
        frames = decode_latents(self.encoders.vae, samples)
        if self.num_frames == 1:
            frames = rearrange(frames, "(r f) 1 c h w -> r f c h w", r=rows)
        return image_grid(frames, enlarge=1)

    def save(self, folder: Path) -> None:
        """Write the denoiser or its LoRA, and the component `scheduler`."""
        with self._interpolated_weights():
            has_images = self.encoders.image_encoder is not None
            self.network.save_components(folder, image_conditioner=has_images)
        self.scheduler.save_pretrained(folder / "scheduler")
        if self.network.text_encoder is not None:
            self.encoders.tokenizer.save_pretrained(folder / "tokenizer")
            (folder / WORDS).write_text("\n".join(self.words) + "\n", encoding="utf-8")

    @contextmanager
    def _interpolated_weights(self) -> Iterator[None]:
        """Interpolate pretrained weights towards their initial values within the block.

        Source: Wortsman et al., "Robust fine-tuning of zero-shot models", 2109.01903.
        """
        learnt = {}
        for name, parameter in self.network.named_parameters():
            if name in self._initial_weights:
                learnt[name] = parameter.detach().clone()
                # w <- (1 - a) w + a w_0: keeps abilities of the image model that fine-tuning would
                # lose
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
        shape = (self.num_frames, config.in_channels, *latent_size(config.sample_size))
        noise = torch.cat(
            [
                initial_latent_noise(seed, shape, self.noise_correlation, self.noise_decay)
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
    """Copy the weights of a video U-Net that exist in an image network."""
    return {
        name: parameter.detach().clone()
        for name, parameter in network.named_parameters()
        if _is_pretrained(name)
    }


def _is_pretrained(name: str) -> bool:
    """Return whether a parameter of the denoiser exists in an image network."""
    return name.startswith("unet.") and not is_temporal_key(name)


def build_training_scheduler(noise: NoiseConfig) -> DDIMScheduler:
    """Build the scheduler of a recipe's diffusion process, which is stored in model folders."""
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
