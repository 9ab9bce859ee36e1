"""The first stages of a run, trained by the real loop."""

from pathlib import Path

import pytest
from tiny_recipe import tiny_values

STAGES = ("autoencoder", "clip", "image")


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory) -> Path:
    """The folder of a run with three stages done; do not write into it."""
    from magicvideo.train.recipe import Recipe  # heavy, and most tests do without
    from magicvideo.train.run import train

    recipe = Recipe.model_validate(tiny_values(prepared, tmp_path_factory.mktemp("trained")))
    for stage in STAGES:
        train(recipe, stage, lambda _: None)
    return recipe.output
