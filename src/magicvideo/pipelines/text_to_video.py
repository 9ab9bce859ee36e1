"""The pipeline: from a prompt or a picture to frames, by the networks of one model folder."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from magicvideo.diffusion.noise import initial_latent_noise
from magicvideo.diffusion.sampling import make_scheduler, sample_with_cfg
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import decode_latents
from magicvideo.models.conditioning import encode_text, image_to_condition_tokens
from magicvideo.pipelines.chunking import DEFAULT_CHUNKS, ChunkSizes
from magicvideo.pipelines.hints import prompt_hints
from magicvideo.pipelines.image_condition import encode_image_condition
from magicvideo.pipelines.interpolate import interpolate_latents
from magicvideo.pipelines.model import VideoModel
from magicvideo.pipelines.request import GenerationSettings, Request, resolve_seeds
from magicvideo.pipelines.upscale import upscale_frames
from magicvideo.pipelines.video import Video, VideoOutput
from magicvideo.shapes import Frames, Latents, Tokens

logger = logging.getLogger(__name__)

Progress: TypeAlias = Callable[[str, int, int], None]


class MagicVideoPipeline(VideoModel):
    """Text to video, and picture to video, by latent diffusion.

    Source: MagicVideo (2211.11018): key frames, interpolation, decoding, super-resolution.
    `generate` is the flow, in order; `VideoModel` tells what the networks are.
    """

    def __call__(
        self,
        prompt: str | list[str] = "",
        *,
        negative_prompt: str = "",
        image: Image.Image | str | Path | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_stop: float | None = None,
        seed: int | list[int] | None = None,
        scheduler: str | None = None,
        stages: tuple[str, ...] | None = None,
        interpolation_steps: int | None = None,
        upscaler_steps: int | None = None,
        progress: Progress | None = None,
    ) -> VideoOutput:
        """Make one video for each prompt.

        Args:
            prompt: Text, or several.
            negative_prompt: What guidance moves away from.
            image: A picture as condition, in place of the text or beside it.
            num_frames: Key frames, at most and by default as many as the denoiser was trained
                with. Interpolation puts new frames between them.
            fps: Key frames a second: the network paces the motion by it.
            num_inference_steps: Diffusion steps of the key frames.
            guidance_scale: 1 is no guidance.
            guidance_stop: Share of those steps after which guidance ends; 1 guides all of them.
            seed: One for each prompt, or that of the first, from which the others count on. By
                default a random one, to be found in the request of each video.
            scheduler: `ddim` or `dpm++`.
            stages: `keyframes`, and any of `interpolation` and `upscaler` after it; by default all
                that the model has.
            interpolation_steps: Diffusion steps of the interpolation.
            upscaler_steps: Diffusion steps of the super-resolution.
            progress: Called with a stage, the steps done in it, from 0 on, and their number; of
                decoding these are frames.

        Raises:
            UserError: If a value is out of its range.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        settings = GenerationSettings(
            negative_prompt=negative_prompt,
            num_frames=num_frames,
            fps=fps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_stop=guidance_stop,
            scheduler=scheduler,
            stages=stages,
            interpolation_steps=interpolation_steps,
            upscaler_steps=upscaler_steps,
        )
        requests = self.build_requests(prompts, resolve_seeds(seed, len(prompts)), settings, image)
        return VideoOutput([self.generate(request, progress) for request in requests])

    def build_requests(
        self,
        prompts: list[str],
        seeds: list[int],
        settings: GenerationSettings,
        image: Image.Image | str | Path | None = None,
    ) -> list[Request]:
        """Return one complete request for each prompt, and log hints on the prompts.

        Raises:
            UserError: If a value is out of the model's range.
        """
        picture = None
        if image is not None:
            with self.load_components("image_encoder"):
                picture = encode_image_condition(self.image_condition_models[0], image)
        requests = self.capabilities.build_requests(prompts, seeds, settings, picture)
        for text in dict.fromkeys([*prompts, settings.negative_prompt]):
            for hint in prompt_hints(text, self.tokenizer, self.words):
                logger.warning(hint)
        return requests

    def generate(
        self,
        request: Request,
        progress: Progress | None = None,
        bounds: ChunkSizes = DEFAULT_CHUNKS,
    ) -> Video:
        """Make one video: the whole flow.

        Videos are made one at a time, so that a seed gives the same video in any company. Between
        its two halves `latent_checkpoint.write_latents` can keep what the first one made.

        Args:
            request: What to make.
            progress: Called with a stage, the steps done in it and their number.
            bounds: What decoder and upscaler see at a time.

        Raises:
            UserError: If the request is for another model, or beyond this one.
        """
        return self.decode_and_upscale(
            request, self.generate_latents(request, progress), progress, bounds
        )

    @torch.no_grad()
    def generate_latents(self, request: Request, progress: Progress | None = None) -> Latents:
        """Return the latents of all frames: the first half of the flow.

        Raises:
            UserError: If the request is for another model, or beyond this one.
        """
        self.capabilities.validate(request)
        self.capabilities.check_loras(request)
        with self.load_components("text_encoder", "image_conditioner"):
            tokens, negative_tokens = self.encode_condition(request)
        with self.load_components("unet"):
            keys = self.sample_keyframes(request, tokens, negative_tokens, progress)
        if "interpolation" not in request.stages:
            return keys
        with self.load_components("interpolator"):
            return self.interpolate(request, keys, tokens, progress)

    @torch.no_grad()
    def decode_and_upscale(
        self,
        request: Request,
        latents: Latents,
        progress: Progress | None = None,
        bounds: ChunkSizes = DEFAULT_CHUNKS,
    ) -> Video:
        """Return the video of finished latents: the second half of the flow.

        Raises:
            UserError: If a tile is too small for the upscaler.
        """
        with self.load_components("vae"):
            frames = self.decode(latents, progress, bounds)
        if "upscaler" in request.stages:
            with self.load_components("upscaler"):
                frames = self.upscale(request, frames, progress, bounds)
        return Video(frames[0].cpu(), request)

    def encode_condition(self, request: Request) -> tuple[Tokens, Tokens]:
        """Return the tokens of the condition, and those that guidance moves away from.

        A picture alone takes the place of the text, as in training. Beside a text its tokens are
        joined to the text's, and attention weighs them; no training stage has seen such pairs.
        """
        text = encode_text(self.text_encoder, self.tokenizer, [request.prompt])
        negative = encode_text(self.text_encoder, self.tokenizer, [request.negative_prompt])
        if request.image_condition is None:
            return text, negative
        _, conditioner = self.image_condition_models
        embedding = torch.from_numpy(request.image_condition.values()).to(self.device, self.dtype)
        width = conditioner.config.embedding_dim
        if len(embedding) != width:
            raise UserError(
                f"The picture's embedding has {len(embedding)} values; this model's have {width}."
            )
        image = image_to_condition_tokens(conditioner, embedding[None], text.shape[1])
        if not request.prompt.strip():
            return image, negative
        return torch.cat([text, image], dim=1), torch.cat([negative, negative], dim=1)

    def sample_keyframes(
        self,
        request: Request,
        tokens: Tokens,
        negative_tokens: Tokens,
        progress: Progress | None = None,
    ) -> Latents:
        """Return the latents of the key frames, in single precision like the noise."""
        config = self.unet.config
        shape = (request.num_frames, config.in_channels, config.sample_size, config.sample_size)
        noise = initial_latent_noise(request.seed, shape, self.config.noise_correlation).to(
            self.device
        )
        steps = request.num_inference_steps
        return sample_with_cfg(
            self.unet,
            noise,
            make_scheduler(self.scheduler.config, request.scheduler),
            steps,
            request.guidance_scale,
            tokens,
            negative_tokens,
            torch.tensor([request.fps], device=self.device),
            _reporter(progress, "key frames", steps),
            request.guidance_stop,
        )

    def interpolate(
        self,
        request: Request,
        keys: Latents,
        tokens: Tokens,
        progress: Progress | None = None,
        noise_level: int | None = None,
    ) -> Float[Tensor, "b all c h w"]:
        """Return the latents of all frames, the keys among them unchanged.

        The network's view of the keys is noised up to `noise_level`, or else the model's own.
        """
        assert self.interpolator is not None
        steps = request.interpolation_steps
        if noise_level is None:
            noise_level = self.config.interpolation_noise_level
        return interpolate_latents(
            self.interpolator,
            make_scheduler(self.scheduler.config, request.scheduler),
            keys,
            tokens,
            fps=request.video_fps,
            seed=request.seed,
            num_steps=steps,
            noise_correlation=self.config.noise_correlation,
            noise_level=noise_level,
            on_step=_reporter(progress, "interpolation", steps),
        )

    def decode(
        self,
        latents: Latents,
        progress: Progress | None = None,
        bounds: ChunkSizes = DEFAULT_CHUNKS,
    ) -> Frames:
        """Return the frames of latents."""
        on_chunk = None if progress is None else partial(progress, "decoding")
        return decode_latents(self.vae, latents, bounds.decoder_frames, on_chunk)

    def upscale(
        self,
        request: Request,
        frames: Frames,
        progress: Progress | None = None,
        bounds: ChunkSizes = DEFAULT_CHUNKS,
    ) -> Float[Tensor, "b f 3 tall wide"]:
        """Return large frames."""
        assert self.upscaler is not None
        assert self.upscaler_scheduler is not None
        return upscale_frames(
            self.upscaler,
            make_scheduler(self.upscaler_scheduler.config, request.scheduler),
            frames,
            [request.seed],
            num_steps=request.upscaler_steps,
            noise_level=self.config.upscaler_noise_level,
            tile=bounds.upscaler_tile,
            frames_at_once=bounds.upscaler_frames,
            on_step=None if progress is None else partial(progress, "super-resolution"),
        )


def _reporter(progress: Progress | None, stage: str, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    progress(stage, 0, total)
    return lambda done: progress(stage, done, total)
