"""Components of a model folder: which stages write them, and where a stage reads them from."""

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
"""Folder, below that of a stage, of the components that it wrote."""
STAGE_FILE = "stage.json"
"""What an output says of its stage: its steps, its settings and its data."""
LORA = "lora"
WEIGHTS = "diffusion_pytorch_model.safetensors"

# the stages that write a component; a model keeps that of the last
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
"""Components without which a model makes key frames, conditioned on text, all the same."""
# scales that were measured on the training data, and belong to the weights
_MEASURED = ("scaling_factor", "residual_scale", "motion_mean", "motion_std")


@dataclass(frozen=True)
class ComponentSource:
    """Where a finished component is read from.

    Attributes:
        name: The component.
        folder: Its folder, inside the output of a stage or inside a model folder.
        config: The settings of its network, known before the stage that writes it is done.
        stage: The stage that writes it; None where it belongs to the model of `init_from`.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    stage: StageName | None

    def path(self) -> Path:
        """Return the folder, after its checksums are verified.

        Raises:
            UserError: If its stage is not done, or files are missing or damaged.
        """
        if self.stage is not None:
            _verify_output(self.folder.parent, self.stage)
            return self.folder
        return model_component(self.folder)


def stage_output(run: Path, name: StageName) -> Path:
    """Return the verified output of a stage.

    Args:
        run: The `output` of a recipe.
        name: The stage.

    Raises:
        UserError: If the stage is not done or its output is damaged.
    """
    folder = run / name / OUTPUT
    _verify_output(folder, name)
    return folder


def _verify_output(folder: Path, name: StageName) -> None:
    if not folder.is_dir():
        raise UserError(
            f"Stage {name} is not done: {folder} does not exist; train it first with "
            f"--stage {name}."
        )
    verify_checksums(folder)


def model_component(folder: Path) -> Path:
    """Return the folder of a component of a model, after the model's checksums are verified.

    Raises:
        UserError: If it is not in a model folder, or files are missing or damaged.
    """
    model = folder.parent
    if not (model / "model_index.json").is_file():
        raise UserError(f"init_from={model} is not a model folder: it has no model_index.json.")
    _verify_once(model.resolve())
    if not folder.is_dir():
        raise UserError(
            f"init_from={model} has no {folder.name}; take a complete copy of the model."
        )
    return folder


@lru_cache
def _verify_once(folder: Path) -> None:
    """Verify a model folder. It holds gigabytes, and one component after the other is read."""
    verify_checksums(folder)


def load_init_weights(network: ModelMixin, folder: Path, *, image_part: bool = False) -> None:
    """Load a component's weights and measured scales from the model of `init_from`.

    Args:
        network: Takes the weights.
        folder: The component.
        image_part: Whether to leave out temporal layers.

    Raises:
        UserError: If names or shapes are not the network's.
    """
    model_component(folder)
    load_state_dict_strict(
        network, folder / WEIGHTS, leave_out=is_temporal_key if image_part else None
    )
    stored = read_config(folder)
    network.register_to_config(**{name: stored[name] for name in _MEASURED if name in stored})


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings that are stored beside a component's weights."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config
