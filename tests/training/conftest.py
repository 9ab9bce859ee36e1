"""A run of the tiny recipe."""

import pytest
from tiny_recipe import tiny_values

from magicvideo.training.recipe import Recipe


@pytest.fixture
def recipe(prepared, tmp_path):
    return Recipe.model_validate(tiny_values(prepared, tmp_path / "run"))


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory):
    """A recipe whose stages are all trained; do not write into its output."""
    from magicvideo.training.run import train

    recipe = Recipe.model_validate(tiny_values(prepared, tmp_path_factory.mktemp("trained")))
    train(recipe)
    return recipe


@pytest.fixture(scope="session")
def model(trained, tmp_path_factory):
    """The model folder of the recipe whose stages are all trained."""
    from magicvideo.training.export import export

    folder = tmp_path_factory.mktemp("models") / "trained"
    export(trained.output, folder, "fp32")
    return folder
