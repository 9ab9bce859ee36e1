"""Generation stage by stage, for programs that store intermediate results, such as ComfyUI.

Running all stages gives the same frames as `MagicVideoPipeline.generate`. Images have ComfyUI's
format: `f h w c` in [0, 1].
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from magicvideo.errors import UserError
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline, ProgressCallback
from magicvideo.shapes import Frames, Latents


@dataclass(frozen=True)
class StagedLatents:
    """Latents between two stages.

    Attributes:
        request: Their request; its stages are the finished ones.
        latents: Latents of all frames so far.
    """

    request: Request
    latents: Latents

    @property
    def fps(self) -> float:
        """Return the frame rate of these frames."""
        return self.request.video_fps


def sample_keyframe_latents(
    pipeline: MagicVideoPipeline,
    prompt: str,
    seed: int,
    settings: GenerationSettings,
    image: Float[Tensor, "n h w c"] | None = None,
    progress: ProgressCallback | None = None,
) -> StagedLatents:
    """Sample the latents of key frames.

    Args:
        pipeline: The model.
        prompt: Text; may be empty if there is an image.
        seed: Seed of the noise of all stages.
        settings: Other settings; their stages are ignored.
        image: Condition; only the first image of the batch is used.
        progress: Called with the stage, the number of finished steps and the total.

    Raises:
        UserError: If the model does not support a value.
    """
    picture = None if image is None else to_pil(image)
    keys_only = replace(settings, stages=("keyframes",))
    (request,) = pipeline.build_requests([prompt], [seed], keys_only, picture)
    return StagedLatents(request, pipeline.generate_latents(request, progress))


@torch.no_grad()
def interpolate_staged(
    pipeline: MagicVideoPipeline,
    keys: StagedLatents,
    steps: int | None = None,
    progress: ProgressCallback | None = None,
) -> StagedLatents:
    """Interpolate the latents of key frames.

    Raises:
        UserError: If the model cannot interpolate, or the frames are not key frames.
    """
    model = pipeline.capabilities
    if keys.request.stages != ("keyframes",):
        raise UserError("These frames are already interpolated.")
    request = replace(
        keys.request,
        stages=("keyframes", "interpolation"),
        num_inserted=model.num_inserted,
        interpolation_steps=steps or keys.request.interpolation_steps,
    )
    model.validate(request)
    with pipeline.load_components("text_encoder", "image_conditioner"):
        tokens, _ = pipeline.encode_condition(request)
    with pipeline.load_components("interpolator"):
        return StagedLatents(request, pipeline.interpolate(request, keys.latents, tokens, progress))


@torch.no_grad()
def decode_staged(
    pipeline: MagicVideoPipeline, staged: StagedLatents, progress: ProgressCallback | None = None
) -> Float[Tensor, "f h w c"]:
    """Decode latents to frames."""
    with pipeline.load_components("vae"):
        return to_images(pipeline.decode(staged.latents, progress))


@torch.no_grad()
def upscale_images(
    pipeline: MagicVideoPipeline,
    images: Float[Tensor, "f h w c"],
    request: Request,
    steps: int | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "f tall wide c"]:
    """Upscale frames.

    Args:
        pipeline: The model.
        images: Frames of a video.
        request: Request with seed and scheduler.
        steps: Diffusion steps; by default those of the request.
        progress: Called with the stage, the number of finished steps and the total.

    Raises:
        UserError: If the model has no super-resolution.
    """
    if pipeline.upscaler is None:
        raise UserError("This model has no stage upscaler.")
    frames = rearrange(images[..., :3], "f h w c -> 1 f c h w") * 2 - 1
    wanted = replace(request, upscaler_steps=steps or request.upscaler_steps)
    with pipeline.load_components("upscaler"):
        moved = frames.to(pipeline.device)
        return to_images(pipeline.upscale(wanted, moved, progress))


def to_images(frames: Frames) -> Float[Tensor, "f h w c"]:
    """Convert the frames of one video, pixels in [-1, 1], to images in [0, 1]."""
    return rearrange((frames[0].clamp(-1, 1) + 1) / 2, "f c h w -> f h w c").float().cpu()


def load_staged_pipeline(folder: Path | None, device: str) -> MagicVideoPipeline:
    """Load a model to a device.

    Raises:
        UserError: If the folder is not a complete model.
    """
    return MagicVideoPipeline.from_pretrained(folder).to(device)


def to_pil(image: Float[Tensor, "n h w c"]) -> Image.Image:
    """Convert the first image of a batch to a PIL image without alpha channel."""
    pixels = (image[0, ..., :3].clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.cpu().numpy())
