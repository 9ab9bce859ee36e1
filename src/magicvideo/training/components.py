"""Components in training: the stages that write them, and where other stages read them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from magicvideo.atomic_io import verify_checksums
from magicvideo.errors import UserError
from magicvideo.models.inflate import is_temporal_key
from magicvideo.training.checkpoint import load_state_dict_strict
from magicvideo.training.recipe import StageName

OUTPUT = "output"
"""Subfolder of a stage's folder with its output components."""
STAGE_FILE = "stage.json"
"""File in an output with steps, settings and data of its stage."""
LORA = "lora"
WEIGHTS = "diffusion_pytorch_model.safetensors"

# stages that write a component; a model has that of the last one
PRODUCING_STAGES: Mapping[str, tuple[StageName, ...]] = {
    "vae": ("autoencoder", "video_vae"),
    "text_encoder": ("clip",),
    "tokenizer": ("clip",),
    "image_encoder": ("clip",),
    "unet": ("image", "unsupervised", "keyframes", "distill"),
    "image_conditioner": ("unsupervised", "keyframes"),
    "scheduler": ("keyframes",),
    "interpolator": ("interpolation",),
    "upscaler": ("upscaler",),
    "upscaler_scheduler": ("upscaler",),
}
OPTIONAL = frozenset({"image_encoder", "interpolator", "upscaler", "upscaler_scheduler"})
"""Components that are not needed to generate key frames from text."""
# scales measured on the training data, which belong to the weights
_MEASURED = ("scaling_factor", "residual_scale", "motion_mean", "motion_std")


@dataclass(frozen=True)
class ComponentSource:
    """Source of a finished component.

    Attributes:
        name: The component.
        folder: Its folder, in the output of a stage or in a model folder.
        config: Its configuration, known before the stage is finished.
        stage: The stage that writes it; None if it belongs to `init_from`.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    stage: StageName | None

    def path(self) -> Path:
        """Verify checksums and return the folder.

        Raises:
            UserError: If its stage is not finished, or files are missing or damaged.
        """
        if self.stage is not None:
            _verify_output(self.folder.parent, self.stage)
            return self.folder
        return model_component(self.folder)


def stage_output(run: Path, name: StageName) -> Path:
    """Verify and return the output of a stage.

    Args:
        run: The `output` of a recipe.
        name: The stage.

    Raises:
        UserError: If the stage is not finished or its output is damaged.
    """
    folder = run / name / OUTPUT
    _verify_output(folder, name)
    return folder


def _verify_output(folder: Path, name: StageName) -> None:
    if not folder.is_dir():
        raise UserError(
            f"Stage {name} is not finished: {folder} does not exist; train it first with "
            f"--stage {name}."
        )
    verify_checksums(folder)


def model_component(folder: Path) -> Path:
    """Verify a model and return the folder of one of its components.

    Raises:
        UserError: If it is not in a model folder, or files are missing or damaged.
    """
    model = folder.parent
    if not (model / "model_index.json").is_file():
        raise UserError(f"init_from={model} is not a model folder: it has no model_index.json.")
    _verify_once(model.resolve())
    if not folder.is_dir():
        raise UserError(
            f"init_from={model} has no {folder.name}; get a complete copy of the model."
        )
    return folder


@lru_cache
def _verify_once(folder: Path) -> None:
    """Verify a model folder once, because it may have gigabytes and many components."""
    verify_checksums(folder)


def load_init_weights(network: ModelMixin, folder: Path, *, image_part: bool = False) -> None:
    """Load a component's weights and measured scales from `init_from`.

    Args:
        network: The network.
        folder: Folder of the component.
        image_part: Whether to ignore temporal layers.

    Raises:
        UserError: If names or shapes do not match the network.
    """
    model_component(folder)
    load_state_dict_strict(
        network, folder / WEIGHTS, leave_out=is_temporal_key if image_part else None
    )
    stored = read_config(folder)
    network.register_to_config(**{name: stored[name] for name in _MEASURED if name in stored})


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a component."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config
