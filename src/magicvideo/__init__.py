"""Text to video by latent diffusion: an open implementation of MagicVideo (arXiv 2211.11018)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magicvideo.errors import UserError
    from magicvideo.models.autoencoder import PatchAutoencoder
    from magicvideo.models.conditioning import ImageConditioner
    from magicvideo.models.unet import VideoUNet
    from magicvideo.pipelines.request import Request
    from magicvideo.pipelines.text_to_video import MagicVideoPipeline
    from magicvideo.pipelines.video import Video, VideoOutput, read_request, write_video

    __version__: str

# a public name is imported when it is first used: the command line answers without torch
_HOMES = {
    "ImageConditioner": "magicvideo.models.conditioning",
    "MagicVideoPipeline": "magicvideo.pipelines.text_to_video",
    "PatchAutoencoder": "magicvideo.models.autoencoder",
    "Request": "magicvideo.pipelines.request",
    "UserError": "magicvideo.errors",
    "Video": "magicvideo.pipelines.video",
    "VideoOutput": "magicvideo.pipelines.video",
    "VideoUNet": "magicvideo.models.unet",
    "read_request": "magicvideo.pipelines.video",
    "write_video": "magicvideo.pipelines.video",
}
__all__ = [
    "ImageConditioner",
    "MagicVideoPipeline",
    "PatchAutoencoder",
    "Request",
    "UserError",
    "Video",
    "VideoOutput",
    "VideoUNet",
    "__version__",
    "read_request",
    "write_video",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("magicvideo")
    if name in _HOMES:
        value: object = getattr(import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
