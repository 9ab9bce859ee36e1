"""A model without an image encoder, such as Stable Diffusion, trains on text only."""

import json
import shutil

import pytest
from tiny_recipe import SHARED, tiny_values

from magicvideo.atomic_io import CHECKSUMS_FILE, write_checksums
from magicvideo.errors import UserError
from magicvideo.training.export import export
from magicvideo.training.recipe import Recipe
from magicvideo.training.run import train

GONE = ("image_encoder", "image_conditioner")


@pytest.fixture(scope="module")
def recipe(model, prepared, tmp_path_factory):
    """One update of the key-frame stage, from the trained model without its image encoder."""
    start = shutil.copytree(model, tmp_path_factory.mktemp("start") / "model")
    index = json.loads((start / "model_index.json").read_text())
    for name in GONE:
        shutil.rmtree(start / name)
        index[name] = [None, None]
    index["license"] = "CC-BY-4.0"
    index["generation_defaults"]["guidance_scale"] = 6.5
    (start / "model_index.json").write_text(json.dumps(index))
    (start / CHECKSUMS_FILE).unlink()
    write_checksums(start)
    values = tiny_values(prepared, tmp_path_factory.mktemp("run") / "run")
    kept = {name: values[name] for name in ("name", "data", "output", "seed", "unet")}
    stage = {**SHARED, "steps": 1, "image_condition": 0.0}
    defaults = {"fps": 11.0}
    return Recipe.model_validate(
        {**kept, "init_from": str(start), "keyframes": stage, "defaults": defaults}
    )


def test_it_trains_and_exports_with_the_defaults_and_licence_of_the_initial_model(recipe, tmp_path):
    train(recipe)
    export(recipe.output, tmp_path / "model", "fp32")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert not any((tmp_path / "model" / name).exists() for name in GONE)
    assert index.get("image_encoder", [None, None]) == [None, None]
    assert index["license"] == "CC-BY-4.0"
    assert index["generation_defaults"]["guidance_scale"] == 6.5
    assert index["generation_defaults"]["fps"] == 11.0


def test_an_image_condition_is_refused(recipe):
    stage = recipe.keyframes.model_copy(update={"image_condition": 0.2})
    with pytest.raises(UserError, match=r"keyframes\.image_condition=0 or start from|no image enc"):
        train(recipe.model_copy(update={"keyframes": stage}))
