"""The pipeline: from a prompt or a picture to frames, by the networks of one model folder."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from magicvideo.diffusion.noise import noise_for
from magicvideo.diffusion.sampler import make_scheduler, sample
from magicvideo.errors import UserError
from magicvideo.generate.folder import INDEX, SHIPPED, WEIGHTS, open_folder
from magicvideo.generate.hints import WORDS_FILE, prompt_hints
from magicvideo.generate.loading import load_component, load_scheduler, load_tokenizer
from magicvideo.generate.picture import describe_picture
from magicvideo.generate.planning import ModelTraits
from magicvideo.generate.request import Request, Settings, choose_seeds
from magicvideo.generate.video import Video, VideoOutput
from magicvideo.models.autoencoder import Autoencoder, decode_latents, spatial_factor
from magicvideo.models.conditioning import ImageConditioner, encode_text
from magicvideo.models.denoiser import image_tokens
from magicvideo.models.unet import VideoUNet
from magicvideo.shapes import Frames, Latents, Tokens
from magicvideo.storage import atomic_folder, folder_hash

logger = logging.getLogger(__name__)

Progress: TypeAlias = Callable[[str, int, int], None]


class MagicVideoPipeline(DiffusionPipeline):
    """Text to video, and picture to video, by latent diffusion.

    Source: MagicVideo (2211.11018), key frames. `generate` is the flow, in order.

    Args:
        vae: Autoencoder between pixels and latents.
        text_encoder: CLIP's text tower.
        tokenizer: The text encoder's own.
        image_encoder: CLIP's image tower, with its projection.
        image_conditioner: From image embeddings to tokens.
        unet: The denoiser.
        scheduler: The noise schedule that the denoiser was trained with.
        default_fps: Frames a second where a call gives none.
        default_steps: Diffusion steps where a call gives none.
        default_guidance_scale: Guidance where a call gives none.
        default_scheduler: `ddim` or `dpm++`, where a call gives none.
        shared_noise: Share of the noise that all frames of a video have, as in training.
        license: Licence of the weights.
    """

    model_hash: str | None = None
    words: frozenset[str] = frozenset()

    def __init__(
        self,
        vae: Autoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        image_encoder: CLIPVisionModelWithProjection,
        image_conditioner: ImageConditioner,
        unet: VideoUNet,
        scheduler: DDIMScheduler,
        default_fps: float = 8.0,
        default_steps: int = 25,
        default_guidance_scale: float = 4.0,
        default_scheduler: str = "ddim",
        shared_noise: float = 0.0,
        license: str | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            image_conditioner=image_conditioner,
            unet=unet,
            scheduler=scheduler,
        )
        self.register_to_config(
            default_fps=default_fps,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
            default_scheduler=default_scheduler,
            shared_noise=shared_noise,
            license=license,
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path | None = None, *, torch_dtype: torch.dtype = torch.float32
    ) -> "MagicVideoPipeline":
        """Load a model folder; without an argument, the emoji model that comes with the package.

        Every file is checked against `SHA256SUMS` and every tensor against its network. Weights
        are safetensors only, and nothing is downloaded.

        Raises:
            UserError: If the folder is no whole model. It names the file or the tensor.
        """
        folder = SHIPPED if folder is None else Path(folder)
        index = open_folder(folder)
        networks = {
            name: load_component(folder, name, index.class_of(name), torch_dtype)
            for name in WEIGHTS
        }
        pipeline = cls(
            **networks,
            tokenizer=load_tokenizer(folder / "tokenizer"),
            scheduler=load_scheduler(folder / "scheduler"),
            default_fps=index.default_fps,
            default_steps=index.default_steps,
            default_guidance_scale=index.default_guidance_scale,
            default_scheduler=index.default_scheduler,
            shared_noise=index.shared_noise,
            license=index.license,
        )
        pipeline.model_hash = folder_hash(folder)
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
        self.model_hash = folder_hash(folder)

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
        seed: int | list[int] | None = None,
        scheduler: str | None = None,
        progress: Progress | None = None,
    ) -> VideoOutput:
        """Make one video for each prompt.

        Args:
            prompt: Text, or several.
            negative_prompt: What guidance moves away from.
            image: A picture as condition, in place of the text or beside it.
            num_frames: At most and by default as many as the denoiser was trained with.
            fps: Frames a second: the network paces the motion by it.
            num_inference_steps: Diffusion steps.
            guidance_scale: 1 is no guidance.
            seed: One for each prompt, or that of the first, from which the others count on. By
                default a random one, to be found in the request of each video.
            scheduler: `ddim` or `dpm++`.
            progress: Called with a stage, the steps done in it and their number.

        Raises:
            UserError: If a value is out of its range.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        settings = Settings(
            negative_prompt=negative_prompt,
            num_frames=num_frames,
            fps=fps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
        )
        requests = self.plan(prompts, choose_seeds(seed, len(prompts)), settings, image)
        return VideoOutput([self.generate(request, progress) for request in requests])

    def plan(
        self,
        prompts: list[str],
        seeds: list[int],
        settings: Settings,
        image: Image.Image | str | Path | None = None,
    ) -> list[Request]:
        """Return one complete request for each prompt, and log hints on the prompts.

        Raises:
            UserError: If a value is out of the model's range.
        """
        picture = None if image is None else describe_picture(self.image_encoder, image)
        requests = self.traits.plan(prompts, seeds, settings, picture)
        for text in dict.fromkeys([*prompts, settings.negative_prompt]):
            for hint in prompt_hints(text, self.tokenizer, self.words):
                logger.warning(hint)
        return requests

    @property
    def traits(self) -> ModelTraits:
        """Return what this model can do, and does by default."""
        config = self.config
        return ModelTraits(
            hash=self.model_hash,
            device=self.device.type,
            side=self.unet.config.sample_size * spatial_factor(self.vae),
            max_frames=self.unet.config.num_frames,
            max_steps=self.scheduler.config.num_train_timesteps,
            default_fps=config.default_fps,
            default_steps=config.default_steps,
            default_guidance_scale=config.default_guidance_scale,
            default_scheduler=config.default_scheduler,
        )

    @torch.no_grad()
    def generate(self, request: Request, progress: Progress | None = None) -> Video:
        """Make one video: the whole flow.

        Videos are made one at a time, so that a seed gives the same video in any company.

        Raises:
            UserError: If the request is for another model, or beyond this one.
        """
        self.traits.check(request)
        tokens, negative_tokens = self.encode_condition(request)
        keys = self.sample_keyframes(request, tokens, negative_tokens, progress)
        frames = self.decode(keys, progress)
        return Video(frames[0].float().cpu(), request)

    def encode_condition(self, request: Request) -> tuple[Tokens, Tokens]:
        """Return the tokens of the condition, and those that guidance moves away from.

        A picture alone takes the place of the text, as in training. Beside a text its tokens are
        joined to the text's, and attention weighs them; no training stage has seen such pairs.
        """
        text = encode_text(self.text_encoder, self.tokenizer, [request.prompt])
        negative = encode_text(self.text_encoder, self.tokenizer, [request.negative_prompt])
        if request.picture is None:
            return text, negative
        embedding = torch.from_numpy(request.picture.values()).to(self.device, self.dtype)
        width = self.image_conditioner.config.embedding_dim
        if len(embedding) != width:
            raise UserError(
                f"The picture's embedding has {len(embedding)} values; this model's have {width}."
            )
        image = image_tokens(self.image_conditioner, embedding[None], text.shape[1])
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
        """Return the latents of the key frames."""
        config = self.unet.config
        shape = (request.num_frames, config.in_channels, config.sample_size, config.sample_size)
        noise = noise_for(request.seed, shape, self.config.shared_noise).to(self.device, self.dtype)
        steps = request.num_inference_steps

        def report(done: int) -> None:
            if progress is not None:
                progress("sampling", done, steps)

        return sample(
            self.unet,
            noise,
            make_scheduler(self.scheduler.config, request.scheduler),
            steps,
            request.guidance_scale,
            tokens,
            negative_tokens,
            torch.tensor([request.fps], device=self.device),
            report,
        )

    def decode(self, latents: Latents, progress: Progress | None = None) -> Frames:
        """Return the frames of latents."""
        if progress is not None:
            progress("decoding", 0, 1)
        return decode_latents(self.vae, latents)
