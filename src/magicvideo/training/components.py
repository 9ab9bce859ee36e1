"""Where the parts of a model come from: a stage's product, or the model to start from."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from magicvideo.atomic_io import verify_sums
from magicvideo.errors import UserError
from magicvideo.models.inflate import is_new
from magicvideo.models.pretrained_encoders import FrozenFolders
from magicvideo.training.checkpoint import load_exactly
from magicvideo.training.recipe import Recipe, StageName
from magicvideo.training.settings import LoraSettings
from magicvideo.training.trainer import PRODUCT

# the stages that make a component, the last of which a model keeps
MAKERS: dict[str, tuple[StageName, ...]] = {
    "vae": ("autoencoder", "video_vae"),
    "text_encoder": ("clip",),
    "tokenizer": ("clip",),
    "image_encoder": ("clip",),
    "unet": ("image", "unsupervised", "keyframes"),
    "image_conditioner": ("unsupervised", "keyframes"),
    "scheduler": ("keyframes",),
    "interpolator": ("interpolation",),
    "upscaler": ("upscaler",),
    "upscaler_scheduler": ("upscaler",),
}
# what adapters leave to the model that they adapt
_ADAPTED = frozenset({"unet", "image_conditioner"})
LORA = "lora"
# a model without them makes key frames alone
OPTIONAL = frozenset({"interpolator", "upscaler", "upscaler_scheduler"})
_MEASURED = ("scaling_factor", "residual_scale")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def product_of(recipe: Recipe, name: StageName) -> Path:
    """Return the checked product of a stage.

    Raises:
        UserError: If the stage is not done or its product is damaged.
    """
    folder = recipe.output / name / PRODUCT
    if not folder.is_dir():
        raise UserError(
            f"Stage {name} is not done: {folder} does not exist; train it first with "
            f"--stage {name}."
        )
    verify_sums(folder)
    return folder


def component(recipe: Recipe, name: str) -> Path:
    """Return the folder of a finished component that later stages stand on.

    Raises:
        UserError: If its stage is not done, or no stage makes it and the model to start from lacks
            it too.
    """
    return _made_by(recipe, name, MAKERS[name])


def image_vae(recipe: Recipe) -> Path:
    """Return the folder of the autoencoder whose latents all stages share.

    Stage `video_vae` starts from it and changes its decoder alone, so that no other stage has to
    wait for that one.

    Raises:
        UserError: As `component`.
    """
    return _made_by(recipe, "vae", ("autoencoder",))


def frozen_parts(recipe: Recipe) -> FrozenFolders:
    """Return the folders of what the denoiser stands on.

    Raises:
        UserError: As `component`.
    """
    return FrozenFolders(
        vae=image_vae(recipe),
        text_encoder=component(recipe, "text_encoder"),
        tokenizer=component(recipe, "tokenizer"),
        image_encoder=component(recipe, "image_encoder"),
    )


def lora_settings(recipe: Recipe) -> LoraSettings | None:
    """Return what adapters a recipe trains for the model that it starts from; None for none.

    Raises:
        UserError: If the recipe names no finished model, changes it too, or trains it in part.
    """
    settings = recipe.keyframes
    if settings is None or settings.lora is None:
        return None
    if recipe.start is None or recipe.image is not None or recipe.unsupervised is not None:
        raise UserError(
            f"keyframes.lora adapts a finished model, and the recipe {recipe.name} "
            f"{'names none' if recipe.start is None else 'trains it in another stage'}; set "
            "start=MODEL_FOLDER and leave the stages image and unsupervised out."
        )
    if settings.start_share:
        raise UserError(
            f"keyframes.start_share={settings.start_share} does not go with keyframes.lora, which "
            "leaves the weights it began with alone; leave one of both out."
        )
    if settings.trained != "all":
        raise UserError(
            f"keyframes.trained={settings.trained} does not go with keyframes.lora, of which "
            "only the adapters learn; leave one of both out."
        )
    return settings.lora


def start_of(recipe: Recipe, name: str) -> Path | None:
    """Return the folder of a component in the model that the recipe starts from, if it has one.

    Raises:
        UserError: If there is no such model or a file of it is damaged.
    """
    if recipe.start is None or not takes_part(recipe, name):
        return None
    if not (recipe.start / "model_index.json").is_file():
        raise UserError(f"start={recipe.start} is no model folder: it has no model_index.json.")
    _verify_once(recipe.start.resolve())
    folder = recipe.start / name
    return folder if folder.is_dir() else None


def takes_part(recipe: Recipe, name: str) -> bool:
    """Return whether a recipe takes a component of its model to start from, where that has it."""
    return recipe.start_parts is None or name in recipe.start_parts


def start_from(network: ModelMixin, recipe: Recipe, name: str, *, image_part: bool = False) -> bool:
    """Load a component's weights from the model that the recipe starts from, if it has them.

    Scales that were measured on the data that it was trained on come along.

    Args:
        network: Takes the weights.
        recipe: Names the model to start from.
        name: The component.
        image_part: Whether to leave out what only video networks have.

    Raises:
        UserError: If their names or shapes are not the network's.
    """
    folder = start_of(recipe, name)
    if folder is None:
        return False
    load_exactly(network, folder / WEIGHTS, leave_out=is_new if image_part else None)
    stored = settings_of(folder)
    network.register_to_config(**{name: stored[name] for name in _MEASURED if name in stored})
    return True


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings that are stored beside a component's weights."""
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return settings


@lru_cache
def _verify_once(folder: Path) -> None:
    """Check a folder. It holds gigabytes and is asked for one part after the other."""
    verify_sums(folder)


def _made_by(recipe: Recipe, name: str, makers: tuple[StageName, ...]) -> Path:
    """Return a component of the last of these stages, or of the model to start from."""
    made_here = [stage for stage in makers if stage in recipe.stages()]
    if name in _ADAPTED and lora_settings(recipe) is not None:
        made_here = []
    if made_here:
        return product_of(recipe, made_here[-1]) / name
    found = start_of(recipe, name)
    if found is None:
        raise UserError(
            f"The recipe {recipe.name} has no stage {' or '.join(makers)} and names no model to "
            f"start from that has the part {name}; add the stage, or start=MODEL_FOLDER."
        )
    return found
