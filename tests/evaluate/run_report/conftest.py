"""The trained run of the training tests."""

import pytest
from tiny_recipe import tiny_values

from magicvideo.train.recipe import Recipe


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory):
    """A recipe whose stages are all trained; do not write into its output."""
    from magicvideo.train.run import train

    recipe = Recipe.model_validate(tiny_values(prepared, tmp_path_factory.mktemp("trained")))
    train(recipe, None, lambda _: None)
    return recipe
