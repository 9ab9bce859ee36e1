"""An autoencoder out of its folder, of the class that its stored settings name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from magicvideo.errors import UserError
from magicvideo.models.autoencoder import Autoencoder, PatchAutoencoder
from magicvideo.models.video_vae import VideoAutoencoderKL, VideoPatchAutoencoder

AUTOENCODERS: Mapping[str, type[Any]] = {
    kind.__name__: kind
    for kind in (PatchAutoencoder, AutoencoderKL, VideoPatchAutoencoder, VideoAutoencoderKL)
}


def load_autoencoder(folder: Path) -> Autoencoder:
    """Return the autoencoder in a component's folder, in single precision, ready to evaluate.

    Raises:
        UserError: If the folder names none of these classes.
    """
    loaded: Autoencoder = read_autoencoder_class(folder).from_pretrained(
        folder, local_files_only=True
    )
    return loaded.float().eval()


def autoencoder_from_config_meta(settings: dict[str, Any]) -> Autoencoder:
    """Return an autoencoder without weights, on the meta device, for questions of size.

    Args:
        settings: As they are stored, with the name of the class.

    Raises:
        UserError: If they name none of these classes.
    """
    kind = AUTOENCODERS.get(settings.get("_class_name", ""))
    if kind is None:
        raise UserError(
            f"The settings of an autoencoder must name one of the classes {', '.join(AUTOENCODERS)}"
            f" as _class_name; they name {settings.get('_class_name')!r}."
        )
    with torch.device("meta"):
        outline: Autoencoder = kind.from_config(settings)
    return outline


def read_autoencoder_class(folder: Path) -> type[Any]:
    """Return the class that the settings in a component's folder name.

    Raises:
        UserError: If it is none of these classes.
    """
    try:
        return AUTOENCODERS[json.loads((folder / "config.json").read_text())["_class_name"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} holds no autoencoder: its config.json must name the class "
            f"{', '.join(AUTOENCODERS)}; take the folder vae of a model or of a stage's product."
        ) from None
