"""Where the parts of a model come from: a stage's product, or the model to start from."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from magicvideo.atomic_io import verify_checksums
from magicvideo.data.dataset import ClipDataset
from magicvideo.data.shards.dataset import ShardDataset
from magicvideo.data.shards.index import is_shard_location
from magicvideo.errors import UserError
from magicvideo.models.inflate import is_temporal_key
from magicvideo.models.pretrained_encoders import FrozenEncoderPaths
from magicvideo.training.checkpoint import load_state_dict_strict
from magicvideo.training.recipe import LoraTrainingConfig, Recipe, StageName
from magicvideo.training.trainer import OUTPUT

# the stages that make a component, the last of which a model keeps
PRODUCING_STAGES: dict[str, tuple[StageName, ...]] = {
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


def stage_output(recipe: Recipe, name: StageName) -> Path:
    """Return the checked product of a stage.

    Raises:
        UserError: If the stage is not done or its product is damaged.
    """
    folder = recipe.output / name / OUTPUT
    if not folder.is_dir():
        raise UserError(
            f"Stage {name} is not done: {folder} does not exist; train it first with "
            f"--stage {name}."
        )
    verify_checksums(folder)
    return folder


def component_path(recipe: Recipe, name: str) -> Path:
    """Return the folder of a finished component that later stages stand on.

    Raises:
        UserError: If its stage is not done, or no stage makes it and the model to start from lacks
            it too.
    """
    return _made_by(recipe, name, PRODUCING_STAGES[name])


def image_vae_path(recipe: Recipe) -> Path:
    """Return the folder of the autoencoder whose latents all stages share.

    Stage `video_vae` starts from it and changes its decoder alone, so that no other stage has to
    wait for that one.

    Raises:
        UserError: As `component`.
    """
    return _made_by(recipe, "vae", ("autoencoder",))


def frozen_encoder_paths(recipe: Recipe) -> FrozenEncoderPaths:
    """Return the folders of what the denoiser stands on.

    Raises:
        UserError: As `component`.
    """
    return FrozenEncoderPaths(
        vae=image_vae_path(recipe),
        text_encoder=component_path(recipe, "text_encoder"),
        tokenizer=component_path(recipe, "tokenizer"),
        image_encoder=component_path(recipe, "image_encoder"),
    )


def lora_settings(recipe: Recipe) -> LoraTrainingConfig | None:
    """Return what adapters a recipe trains for the model that it starts from; None for none.

    Raises:
        UserError: If the recipe names no finished model, changes it too, or trains it in part.
    """
    settings = recipe.keyframes
    if settings is None or settings.lora is None:
        return None
    if recipe.init_from is None or recipe.image is not None or recipe.unsupervised is not None:
        raise UserError(
            f"keyframes.lora adapts a finished model, and the recipe {recipe.name} "
            f"{'names none' if recipe.init_from is None else 'trains it in another stage'}; set "
            "init_from=MODEL_FOLDER and leave the stages image and unsupervised out."
        )
    if settings.weight_interpolation:
        raise UserError(
            f"keyframes.weight_interpolation={settings.weight_interpolation} does not go with "
            "keyframes.lora, which leaves the weights it began with alone; leave one of both out."
        )
    if settings.trainable != "all":
        raise UserError(
            f"keyframes.trainable={settings.trainable} does not go with keyframes.lora, of which "
            "only the adapters learn; leave one of both out."
        )
    return settings.lora


def init_path(recipe: Recipe, name: str) -> Path | None:
    """Return the folder of a component in the model that the recipe starts from, if it has one.

    Raises:
        UserError: If there is no such model or a file of it is damaged.
    """
    if recipe.init_from is None or not inits_component(recipe, name):
        return None
    if not (recipe.init_from / "model_index.json").is_file():
        raise UserError(
            f"init_from={recipe.init_from} is no model folder: it has no model_index.json."
        )
    _verify_once(recipe.init_from.resolve())
    folder = recipe.init_from / name
    return folder if folder.is_dir() else None


def inits_component(recipe: Recipe, name: str) -> bool:
    """Return whether a recipe takes a component of its model to start from, where that has it."""
    return recipe.init_components is None or name in recipe.init_components


def load_init_weights(
    network: ModelMixin, recipe: Recipe, name: str, *, image_part: bool = False
) -> bool:
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
    folder = init_path(recipe, name)
    if folder is None:
        return False
    load_state_dict_strict(
        network, folder / WEIGHTS, leave_out=is_temporal_key if image_part else None
    )
    stored = read_config(folder)
    network.register_to_config(**{name: stored[name] for name in _MEASURED if name in stored})
    return True


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings that are stored beside a component's weights."""
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return settings


@lru_cache
def _verify_once(folder: Path) -> None:
    """Check a folder. It holds gigabytes and is asked for one part after the other."""
    verify_checksums(folder)


def _made_by(recipe: Recipe, name: str, makers: tuple[StageName, ...]) -> Path:
    """Return a component of the last of these stages, or of the model to start from."""
    made_here = [stage for stage in makers if stage in recipe.stages()]
    if name in _ADAPTED and lora_settings(recipe) is not None:
        made_here = []
    if made_here:
        return stage_output(recipe, made_here[-1]) / name
    found = init_path(recipe, name)
    if found is None:
        raise UserError(
            f"The recipe {recipe.name} has no stage {' or '.join(makers)} and names no model to "
            f"start from that has the part {name}; add the stage, or init_from=MODEL_FOLDER."
        )
    return found


SHARD_STAGES: tuple[StageName, ...] = ("image", "unsupervised", "keyframes", "interpolation")
"""Stages that need no frames and may read shards."""
_TOLD: tuple[StageName, ...] = ("image", "keyframes")
"""Stages that are told by text; what has none is trained as if its caption were dropped."""


def frame_dataset(recipe: Recipe, name: StageName) -> ClipDataset:
    """Return the clips of the training split for a stage that learns from frames.

    The stage `clip` matches frames with captions, so that it leaves out clips that have none.

    Raises:
        UserError: If the recipe's data are shards, cannot be read, or have not one caption where
            the stage is told by text.
    """
    folder = frames_folder(recipe, f"Stage {name}")
    dataset = ClipDataset(folder, ("train",), captioned=name == "clip")
    if name in _TOLD and not any(clip.has_caption for clip in dataset.clips):
        raise UserError(
            f"Stage {name} is told by text, and not one training clip in {folder} has a caption; "
            "add captions and prepare again, or leave the stage out."
        )
    return dataset


def frames_folder(recipe: Recipe, who: str) -> Path:
    """Return the prepared folder of a recipe.

    Args:
        recipe: What has the data.
        who: What needs frames, for the message.

    Raises:
        UserError: If the recipe's data are shards.
    """
    if isinstance(recipe.data, str) or is_shard_location(recipe.data):
        raise UserError(
            f"{who} needs frames, and data={recipe.data} are shards, which have none; run it with "
            "data=PREPARED_FOLDER."
        )
    return recipe.data


def denoiser_dataset(
    recipe: Recipe, name: StageName, folders: FrozenEncoderPaths
) -> ClipDataset | ShardDataset:
    """Return the clips of the training split for a stage of the denoiser.

    Raises:
        UserError: If they cannot be read, or shards do not fit the recipe.
    """
    if not is_shard_location(recipe.data):
        return frame_dataset(recipe, name)
    dataset = ShardDataset(
        recipe.data, ("train",), window=recipe.shards.window, cache=recipe.shards.cache
    )
    for part, digest in folders.hashes().items():
        if dataset.info.parts[part] != digest:
            raise UserError(
                f"The shards in {recipe.data} were encoded with another {part} than this recipe "
                "stands on; encode the clips anew with --model, naming this run or its start."
            )
    return dataset
