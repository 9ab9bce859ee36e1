from pathlib import Path

import pytest
import yaml

from magicvideo.errors import UserError
from magicvideo.training.recipe import read_recipe

SHIPPED = Path(__file__).parents[2] / "recipes" / "emoji.yaml"


def test_the_shipped_recipe_has_its_stages_in_order():
    stages = read_recipe(SHIPPED, []).stages()
    latents = ["autoencoder", "clip", "image", "unsupervised", "keyframes"]
    assert list(stages) == [*latents, "interpolation", "video_vae", "upscaler"]


def test_a_change_reaches_its_setting_and_no_other():
    before, after = read_recipe(SHIPPED, []), read_recipe(SHIPPED, ["keyframes.learning_rate=1e-4"])
    assert after.keyframes.learning_rate == 1e-4
    changed = after.model_dump()
    changed["keyframes"]["learning_rate"] = before.keyframes.learning_rate
    assert changed == before.model_dump()


def test_yaml_reads_no_as_false_and_the_precision_is_no_all_the_same():
    changes = ["image.mixed_precision=no", "clip.mixed_precision=bf16"]
    recipe = read_recipe(SHIPPED, changes)
    assert (recipe.image.mixed_precision, recipe.clip.mixed_precision) == ("no", "bf16")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("keyframes.learning_rat=1", "keyframes.learning_rat is not a setting; did you mean learn"),
        ("autoencoder.model.width=1", "autoencoder.model.width is not a setting; did you mean wid"),
        ("keyframes.steps=0", "keyframes.steps=0 does not fit: Input should be greater than 0"),
        ("keyframes.steps=many", "keyframes.steps='many' does not fit"),
        ("keyframe.steps=3", "keyframe is not a setting; did you mean keyframes?"),
        ("seed.value=3", "seed is a value and has no settings inside"),
        ("seed", "'seed' is not of the form NAME=VALUE"),
        ("unet.temporal_attention=both", "unet.temporal_attention='both' does not fit"),
        ("interpolation.denoise_every=7", "interpolation does not fit: batch_size=64 is no mult"),
    ],
)
def test_a_wrong_change_is_answered_in_a_sentence(change, sentence):
    with pytest.raises(UserError) as raised:
        read_recipe(SHIPPED, [change])
    assert sentence in str(raised.value)


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "\x00"])
def test_a_file_that_is_no_recipe_is_named(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml is not"):
        read_recipe(path, [])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_recipe(tmp_path / "absent.yaml", [])


def test_every_setting_of_the_shipped_recipe_is_used_by_its_stage():
    values = yaml.safe_load(SHIPPED.read_text())
    recipe = read_recipe(SHIPPED, []).model_dump(mode="json")
    for name, given in values.items():
        for key, value in given.items() if isinstance(given, dict) else ():
            if not isinstance(value, dict):
                assert recipe[name][key] == value
