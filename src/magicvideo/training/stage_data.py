"""The clips of a recipe: frames of a prepared folder, or shards of encoded clips."""

from pathlib import Path

from magicvideo.data.dataset import ClipDataset
from magicvideo.data.shards.dataset import ShardDataset
from magicvideo.data.shards.index import is_sharded
from magicvideo.errors import UserError
from magicvideo.models.pretrained_encoders import FrozenFolders
from magicvideo.training.recipe import Recipe, StageName

ON_SHARDS: tuple[StageName, ...] = ("image", "unsupervised", "keyframes", "interpolation")
"""Stages that need no frames and may read shards."""
_TOLD: tuple[StageName, ...] = ("image", "keyframes")
"""Stages that are told by text; what has none is trained as if its caption were dropped."""


def frames_of(recipe: Recipe, name: StageName) -> ClipDataset:
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
    if isinstance(recipe.data, str) or is_sharded(recipe.data):
        raise UserError(
            f"{who} needs frames, and data={recipe.data} are shards, which have none; run it with "
            "data=PREPARED_FOLDER."
        )
    return recipe.data


def frames_or_shards_of(
    recipe: Recipe, name: StageName, folders: FrozenFolders
) -> ClipDataset | ShardDataset:
    """Return the clips of the training split for a stage of the denoiser.

    Raises:
        UserError: If they cannot be read, or shards do not fit the recipe.
    """
    if not is_sharded(recipe.data):
        return frames_of(recipe, name)
    dataset = ShardDataset(
        recipe.data, ("train",), window=recipe.shards.window, cache=recipe.shards.cache
    )
    for part, digest in folders.hashes().items():
        if dataset.info.parts[part] != digest:
            raise UserError(
                f"The shards in {recipe.data} were encoded with another {part} than this recipe "
                "stands on; encode the clips anew with --model, naming this run or its start."
            )
    if recipe.stages()[name].balance:
        raise UserError(
            f"{name}.balance={recipe.stages()[name].balance} needs to know the subject of every "
            f"clip, which shards do not say; set {name}.balance=0, or data to a prepared folder."
        )
    return dataset
