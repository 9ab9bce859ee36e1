import json
import time
from pathlib import Path

import pytest
import yaml

from magicvideo.errors import UserError
from magicvideo.limits import MAX_RECIPE_BYTES
from magicvideo.training.recipe import (
    Recipe,
    load_yaml,
    packaged_recipes,
    parse_recipe,
    read_recipe,
    recipe_reference,
    recipe_schema,
)

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


def test_the_precision_no_is_accepted_although_yaml_reads_it_as_false():
    changes = ["image.mixed_precision=no", "clip.mixed_precision=bf16"]
    recipe = read_recipe(SHIPPED, changes)
    assert (recipe.image.mixed_precision, recipe.clip.mixed_precision) == ("no", "bf16")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("keyframes.learning_rat=1", "keyframes.learning_rat is not a setting; did you mean learn"),
        ("autoencoder.model.width=1", "autoencoder.model.width is not a setting; did you mean wid"),
        ("keyframes.steps=0", "keyframes.steps=0 is invalid: Input should be greater than 0"),
        ("keyframes.steps=many", "keyframes.steps='many' is invalid"),
        ("keyframe.steps=3", "keyframe is not a setting; did you mean keyframes?"),
        ("seed.value=3", "seed is a value and has no nested settings"),
        ("seed", "'seed' must have the form NAME=VALUE"),
        ("unet.temporal_attention=both", "unet.temporal_attention='both' is invalid"),
        ("interpolation.denoise_every=7", "interpolation is invalid: batch_size=64 must be"),
    ],
)
def test_a_wrong_change_is_answered_in_a_sentence(change, sentence):
    with pytest.raises(UserError) as raised:
        read_recipe(SHIPPED, [change])
    assert sentence in str(raised.value)


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "\x00"])
def test_a_file_that_is_not_a_recipe_is_named(tmp_path, text):
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


def write(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_states_only_differences_from_its_base(tmp_path):
    own = write(
        tmp_path / "mine.yaml", base="emoji", name="mine", keyframes={"steps": 7}, clip=None
    )
    recipe, base = read_recipe(own, []), read_recipe(Path("emoji"), [])
    assert (recipe.name, recipe.keyframes.steps, recipe.clip) == ("mine", 7, None)
    assert recipe.keyframes.learning_rate == base.keyframes.learning_rate
    assert recipe.image == base.image
    above = write(tmp_path / "above.yaml", base="mine.yaml", seed=3)
    assert read_recipe(above, []) == recipe.model_copy(update={"seed": 3})
    looped = write(tmp_path / "looped.yaml", base="looped.yaml")
    with pytest.raises(UserError, match="is its own base"):
        read_recipe(looped, [])


def test_packaged_recipes_are_found_by_name():
    assert {"emoji", "finetune", "paper", "small"} <= packaged_recipes().keys()
    for name in packaged_recipes():
        assert read_recipe(Path(name), []).stages()
    with pytest.raises(UserError, match="did you mean emoji"):
        read_recipe(Path("emojis"), [])


def test_all_missing_settings_are_reported_at_once():
    with pytest.raises(UserError) as raised:
        parse_recipe({"name": "x", "image": {"learning_rate": 5}}, "x.yaml")
    sentence = str(raised.value)
    assert "data, output, image.steps, image.batch_size must be given" in sentence
    assert "image.learning_rate=5 is invalid" in sentence


def test_a_scale_changes_the_updates_of_all_stages():
    recipe, whole = read_recipe(SHIPPED, [], 0.1), read_recipe(SHIPPED, [])
    for name, stage in whole.stages().items():
        scaled = recipe.stages()[name]
        assert scaled.steps == max(1, round(stage.steps / 10))
        assert scaled.warmup_steps == round(stage.warmup_steps / 10)
        assert scaled.learning_rate == stage.learning_rate
    assert read_recipe(SHIPPED, [], 1e-6).keyframes.steps == 1


def test_a_recipe_can_start_from_the_bundled_model():
    model = read_recipe(Path("finetune"), []).init_from
    assert (model / "model_index.json").is_file()


def test_the_schema_and_the_page_of_settings_are_those_of_the_code():
    """Update them with `magicvideo train --schema` and `--reference`."""
    root = Path(__file__).parents[2]
    assert json.loads((root / "recipes" / "recipe.schema.json").read_text()) == recipe_schema()
    page = (root / "docs" / "recipe_settings.md").read_text()
    assert page == recipe_reference()
    for field in Recipe.model_fields:
        assert f"| `{field}` |" in page


def test_the_schema_has_every_setting_of_the_packaged_recipes():
    schema = recipe_schema()
    for name, file in packaged_recipes().items():
        for key in yaml.safe_load(file.read_text()):
            assert key in schema["properties"], (name, key)


def test_many_mistakes_give_a_few_short_sentences(tmp_path):
    """Aliases make a small file a huge value, and each of a thousand entries is a mistake."""
    path = tmp_path / "recipe.yaml"
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]" for n in range(1, 9)]
    lines += ["name: *a8", f"unet: {{attention_heads: [{'null, ' * 1000}]}}"]
    path.write_text("\n".join(lines))
    started = time.process_time()
    with pytest.raises(UserError) as refused:
        parse_recipe(load_yaml(path), "it")
    assert time.process_time() - started < 2
    said = str(refused.value)
    assert len(said) < 6000
    assert "name=[[...], [...]" in said
    assert "unet.attention_heads=[None, None" in said
    assert "constrained" not in said
    path.write_text("#" + "x" * MAX_RECIPE_BYTES)
    with pytest.raises(UserError, match="has 262,145 bytes, more than 262,144"):
        load_yaml(path)


def test_a_setting_that_is_given_twice_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nclip:\n  steps: 1\nname: y\n")
    with pytest.raises(UserError, match=r"valid YAML: name is given twice, .* in line 4"):
        load_yaml(path)
    path.write_text("clip:\n  steps: 1\n  warmup_steps: 2\n  steps: 3\n")
    with pytest.raises(UserError, match="steps is given twice"):
        load_yaml(path)


def test_a_truth_value_is_no_number():
    with pytest.raises(UserError, match=r"seed=True is invalid: a number is wanted"):
        parse_recipe({"name": "x", "seed": True}, "it")
    with pytest.raises(UserError, match=r"clip\.steps=True is invalid: a number is wanted"):
        parse_recipe({"clip": {"steps": True}}, "it")


@pytest.mark.parametrize("value", ["[[[[", "2020-99-99", "!!python/name:os.system"])
def test_a_change_that_is_not_yaml_is_refused(value):
    with pytest.raises(UserError, match="not valid YAML"):
        read_recipe(SHIPPED, [f"name={value}"])
