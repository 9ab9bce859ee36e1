"""The networks of one model folder: loaded with every key accounted for, and written again."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from magicvideo.atomic_io import atomic_folder, hash_folder
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import Autoencoder, vae_scale_factor
from magicvideo.models.conditioning import ImageConditioner
from magicvideo.models.interpolator import Interpolator
from magicvideo.models.unet import VideoUNet
from magicvideo.models.upscaler import Upscaler
from magicvideo.pipelines.capabilities import ModelCapabilities
from magicvideo.pipelines.hints import WORDS_FILE
from magicvideo.pipelines.loading import load_scheduler, load_tokenizer
from magicvideo.pipelines.lora import COMPONENTS, LoraStack, read_lora
from magicvideo.pipelines.model_folder import (
    BUNDLED_MODEL_DIR,
    INDEX,
    OPTIONAL,
    verify_model_folder,
)
from magicvideo.pipelines.offload import LazyComponentLoader
from magicvideo.pipelines.request import STAGES

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound="VideoModel")


class VideoModel(DiffusionPipeline):
    """What a model folder holds, in diffusers' manner; `MagicVideoPipeline` adds the flow.

    Args:
        vae: Autoencoder between pixels and latents.
        text_encoder: CLIP's text tower.
        tokenizer: The text encoder's own.
        unet: The denoiser of key frames.
        scheduler: The noise schedule that the denoisers of latents were trained with.
        image_encoder: CLIP's image tower, with its projection, or None.
        image_conditioner: From image embeddings to tokens, or None; pictures need both.
        interpolator: The denoiser of the frames between them, or None.
        upscaler: The denoiser of large frames, or None.
        upscaler_scheduler: The noise schedule that it was trained with, or None.
        default_fps: Key frames a second where a call gives none.
        default_steps: Diffusion steps where a call gives none.
        default_guidance_scale: Guidance where a call gives none.
        default_guidance_stop: Share of the steps after which guidance ends.
        default_scheduler: `ddim` or `dpm++`, where a call gives none.
        default_interpolation_steps: Diffusion steps of the interpolation.
        default_upscaler_steps: Diffusion steps of the super-resolution.
        interpolation_noise_level: Diffusion step up to which the interpolator's keys are noised.
        upscaler_noise_level: Deviation of the noise on the frames that the upscaler is shown.
        noise_correlation: Share of the noise that all frames of a video have, as in training.
        license: Licence of the weights.
    """

    _optional_components = sorted(OPTIONAL)
    model_hash: str | None = None
    words: frozenset[str] = frozenset()
    loader: LazyComponentLoader | None = None

    def __init__(
        self,
        vae: Autoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: VideoUNet,
        scheduler: DDIMScheduler,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        image_conditioner: ImageConditioner | None = None,
        interpolator: Interpolator | None = None,
        upscaler: Upscaler | None = None,
        upscaler_scheduler: DDIMScheduler | None = None,
        default_fps: float = 8.0,
        default_steps: int = 25,
        default_guidance_scale: float = 4.0,
        default_guidance_stop: float = 1.0,
        default_scheduler: str = "ddim",
        default_interpolation_steps: int = 8,
        default_upscaler_steps: int = 2,
        interpolation_noise_level: int = 0,
        upscaler_noise_level: float = 0.0,
        noise_correlation: float = 0.0,
        license: str | None = None,
    ) -> None:
        super().__init__()
        self.lora_stack = LoraStack()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            image_conditioner=image_conditioner,
            unet=unet,
            scheduler=scheduler,
            interpolator=interpolator,
            upscaler=upscaler,
            upscaler_scheduler=upscaler_scheduler,
        )
        self.register_to_config(
            default_fps=default_fps,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
            default_guidance_stop=default_guidance_stop,
            default_scheduler=default_scheduler,
            default_interpolation_steps=default_interpolation_steps,
            default_upscaler_steps=default_upscaler_steps,
            interpolation_noise_level=interpolation_noise_level,
            upscaler_noise_level=upscaler_noise_level,
            noise_correlation=noise_correlation,
            license=license,
        )

    @classmethod
    def from_pretrained(
        cls: type[Model],
        folder: str | Path | None = None,
        *,
        torch_dtype: torch.dtype = torch.float32,
        offload_device: torch.device | str | None = None,
    ) -> Model:
        """Load a model folder; without an argument, the emoji model that comes with the package.

        Every file is checked against `SHA256SUMS` and every tensor against its network. Weights
        are safetensors only, and nothing is downloaded.

        Args:
            folder: The model folder.
            torch_dtype: Of the weights in memory.
            offload_device: A device: each stage loads its networks there when it begins and frees
                them at its end, so that memory holds one stage at a time. None loads all at once,
                to the CPU.

        Raises:
            UserError: If the folder is no whole model. It names the file or the tensor.
        """
        folder = BUNDLED_MODEL_DIR if folder is None else Path(folder)
        index = verify_model_folder(folder)
        loader = LazyComponentLoader(
            folder, index, torch_dtype, torch.device(offload_device or "cpu")
        )
        take = loader.load if offload_device is None else loader.outline
        networks = {name: take(name) for name in index.networks()}
        pipeline = cls(
            **networks,
            tokenizer=load_tokenizer(folder / "tokenizer"),
            scheduler=load_scheduler(folder / "scheduler"),
            upscaler_scheduler=(
                load_scheduler(folder / "upscaler_scheduler")
                if index.class_of("upscaler_scheduler")
                else None
            ),
            default_fps=index.default_fps,
            default_steps=index.default_steps,
            default_guidance_scale=index.default_guidance_scale,
            default_guidance_stop=index.default_guidance_stop,
            default_scheduler=index.default_scheduler,
            default_interpolation_steps=index.default_interpolation_steps,
            default_upscaler_steps=index.default_upscaler_steps,
            interpolation_noise_level=index.interpolation_noise_level,
            upscaler_noise_level=index.upscaler_noise_level,
            noise_correlation=index.noise_correlation,
            license=index.license,
        )
        pipeline.loader = None if offload_device is None else loader
        pipeline.model_hash = hash_folder(folder)
        if (folder / WORDS_FILE).is_file():
            pipeline.words = frozenset((folder / WORDS_FILE).read_text(encoding="utf-8").split())
        return pipeline

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder that `from_pretrained` accepts; an older model is replaced.

        Raises:
            UserError: If the folder exists and holds something that is no model.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / INDEX).is_file():
            raise UserError(f"{folder} exists and is no model folder; choose another name.")
        with atomic_folder(folder) as partial:
            super().save_pretrained(partial)
            if self.words:
                text = "".join(f"{word}\n" for word in sorted(self.words))
                (partial / WORDS_FILE).write_text(text, encoding="utf-8")
        self.model_hash = hash_folder(folder)
        self.lora_stack.forget()  # they are part of what was written

    def load_lora(self, path: str | Path, scale: float = 1.0) -> None:
        """Merge a LoRA into U-Net and text encoder, on top of those that were loaded before.

        Requests and files of videos name it.

        Args:
            path: A safetensors file in the layout of peft, diffusers or kohya.
            scale: Factor of its updates.

        Raises:
            UserError: If the file cannot be read, or a tensor in it does not fit this model.
        """
        networks = {name: getattr(self, name) for name in COMPONENTS}
        lora = read_lora(Path(path), scale, networks)
        if lora.base not in (None, self.model_hash):
            logger.warning(
                f"{path} was trained on the model {lora.base}, and this is {self.model_hash}."
            )
        self.lora_stack.add(lora, networks if self.loader is None else {})

    def unload_loras(self) -> None:
        """Take all LoRAs out again; the weights are those of the model folder to the last bit."""
        self.lora_stack.clear({name: getattr(self, name) for name in COMPONENTS})

    @property
    def device(self) -> torch.device:
        """Return where the networks are, or go when their stage begins."""
        return super().device if self.loader is None else self.loader.device

    @contextmanager
    def load_components(self, *names: str) -> Iterator[None]:
        """Have the weights of some networks for a while, in a model that is loaded offload_device.

        The others have all their weights all the time, and nothing happens. Networks that a model
        lacks are passed over.
        """
        if self.loader is None:
            yield
            return
        outlines = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        try:
            for name in outlines:
                network = self.loader.load(name)
                self.lora_stack.merge_all(name, network)
                setattr(self, name, network)
            yield
        finally:
            for name, outline in outlines.items():
                setattr(self, name, outline)

    @property
    def image_condition_models(self) -> tuple[CLIPVisionModelWithProjection, ImageConditioner]:
        """Return what turns a picture into tokens.

        Raises:
            UserError: If this model has no such networks.
        """
        if self.image_encoder is None or self.image_conditioner is None:
            raise UserError(
                "This model takes no picture, since it has no image encoder; leave the picture "
                "out, or choose a model with one (`magicvideo info` lists what a model has)."
            )
        return self.image_encoder, self.image_conditioner

    @property
    def capabilities(self) -> ModelCapabilities:
        """Return what this model can do, and does by default."""
        config = self.config
        present = {
            "keyframes": True,
            "interpolation": self.interpolator is not None,
            "upscaler": self.upscaler is not None,
        }
        return ModelCapabilities(
            hash=self.model_hash,
            device=self.device.type,
            side=self.unet.config.sample_size * vae_scale_factor(self.vae),
            max_frames=self.unet.config.num_frames,
            max_steps=self.scheduler.config.num_train_timesteps,
            default_fps=config.default_fps,
            default_steps=config.default_steps,
            default_guidance_scale=config.default_guidance_scale,
            default_guidance_stop=config.default_guidance_stop,
            default_scheduler=config.default_scheduler,
            stages=tuple(name for name in STAGES if present[name]),
            num_inserted=self.interpolator.config.num_inserted if self.interpolator else 0,
            upscale_factor=self.upscaler.config.factor if self.upscaler else 1,
            min_tile_size=self.upscaler.min_tile_size if self.upscaler else 0,
            default_interpolation_steps=config.default_interpolation_steps,
            default_upscaler_steps=config.default_upscaler_steps,
            loras=self.lora_stack.uses,
        )
