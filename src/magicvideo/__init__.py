"""Text to video by latent diffusion: an open implementation of MagicVideo (arXiv 2211.11018)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magicvideo.errors import UserError
    from magicvideo.generate.pipeline import MagicVideoPipeline
    from magicvideo.generate.read import read_request
    from magicvideo.generate.request import Request
    from magicvideo.generate.video import Video, VideoOutput
    from magicvideo.generate.write import write_video
    from magicvideo.models.autoencoder import PatchAutoencoder
    from magicvideo.models.conditioning import ImageConditioner
    from magicvideo.models.unet import VideoUNet

    __version__: str

# a public name is imported when it is first used: the command line answers without torch
_HOMES = {
    "ImageConditioner": "magicvideo.models.conditioning",
    "MagicVideoPipeline": "magicvideo.generate.pipeline",
    "PatchAutoencoder": "magicvideo.models.autoencoder",
    "Request": "magicvideo.generate.request",
    "UserError": "magicvideo.errors",
    "Video": "magicvideo.generate.video",
    "VideoOutput": "magicvideo.generate.video",
    "VideoUNet": "magicvideo.models.unet",
    "read_request": "magicvideo.generate.read",
    "write_video": "magicvideo.generate.write",
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
