"""Text to video by latent diffusion: an open implementation of MagicVideo (arXiv 2211.11018)."""

from importlib import import_module
from typing import TYPE_CHECKING

from magicvideo.imports import explain_missing, pause_garbage_collection

if TYPE_CHECKING:
    from magicvideo.convert.stable_diffusion import inflate_stable_diffusion
    from magicvideo.errors import UserError
    from magicvideo.models.adaptor import FrameAdaptor
    from magicvideo.models.autoencoder import PatchAutoencoder
    from magicvideo.models.conditioning import ImageConditioner
    from magicvideo.models.inflate import inflate
    from magicvideo.models.interpolator import Interpolator
    from magicvideo.models.temporal_attention import DirectedTemporalAttention
    from magicvideo.models.unet import VideoUNet
    from magicvideo.models.upscaler import Upscaler
    from magicvideo.models.video_vae import VideoAutoencoderKL, VideoPatchAutoencoder
    from magicvideo.pipelines.request import GenerationSettings, Request
    from magicvideo.pipelines.text_to_video import MagicVideoPipeline
    from magicvideo.pipelines.video import Video, VideoOutput, read_request, write_video
    from magicvideo.pipelines.video_to_video import interpolate_video, upscale_video
    from magicvideo.training.trainer import Task, Trainer

    __version__: str

# a public name is imported when it is first used: the command line answers without torch
_HOMES = {
    "DirectedTemporalAttention": "magicvideo.models.temporal_attention",
    "FrameAdaptor": "magicvideo.models.adaptor",
    "GenerationSettings": "magicvideo.pipelines.request",
    "ImageConditioner": "magicvideo.models.conditioning",
    "Interpolator": "magicvideo.models.interpolator",
    "MagicVideoPipeline": "magicvideo.pipelines.text_to_video",
    "PatchAutoencoder": "magicvideo.models.autoencoder",
    "Request": "magicvideo.pipelines.request",
    "Task": "magicvideo.training.trainer",
    "Trainer": "magicvideo.training.trainer",
    "Upscaler": "magicvideo.models.upscaler",
    "UserError": "magicvideo.errors",
    "Video": "magicvideo.pipelines.video",
    "VideoAutoencoderKL": "magicvideo.models.video_vae",
    "VideoOutput": "magicvideo.pipelines.video",
    "VideoPatchAutoencoder": "magicvideo.models.video_vae",
    "VideoUNet": "magicvideo.models.unet",
    "inflate": "magicvideo.models.inflate",
    "inflate_stable_diffusion": "magicvideo.convert.stable_diffusion",
    "interpolate_video": "magicvideo.pipelines.video_to_video",
    "read_request": "magicvideo.pipelines.video",
    "upscale_video": "magicvideo.pipelines.video_to_video",
    "write_video": "magicvideo.pipelines.video",
}
# by its base class diffusers tells how to load a component of the library that a model folder names
_BASE_CLASS = "ModelMixin"
__all__ = [
    "DirectedTemporalAttention",
    "FrameAdaptor",
    "GenerationSettings",
    "ImageConditioner",
    "Interpolator",
    "MagicVideoPipeline",
    "PatchAutoencoder",
    "Request",
    "Task",
    "Trainer",
    "Upscaler",
    "UserError",
    "Video",
    "VideoAutoencoderKL",
    "VideoOutput",
    "VideoPatchAutoencoder",
    "VideoUNet",
    "__version__",
    "inflate",
    "inflate_stable_diffusion",
    "interpolate_video",
    "read_request",
    "upscale_video",
    "write_video",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("magicvideo")
    if name in _HOMES:
        try:
            with pause_garbage_collection():
                value: object = getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            sentence = explain_missing(error)
            if sentence is None:
                raise
            raise ModuleNotFoundError(sentence, name=error.name) from error
        return value
    if name == _BASE_CLASS:
        with pause_garbage_collection():
            base: object = getattr(import_module("diffusers"), name)
        return base
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
