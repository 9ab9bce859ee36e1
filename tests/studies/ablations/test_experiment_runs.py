"""The runs of an ablations file: recipes, shared stages, and equal cost."""

from pathlib import Path

import pytest

from magicvideo.errors import UserError
from studies.ablations.experiment_runs import (
    deep_merge,
    expand_runs,
    select_shard,
    shared_base_recipe,
    train_run,
    training_flops,
)
from studies.ablations.settings import read_ablations

ROOT = Path(__file__).parents[3]


def recipe_of(found, experiment, variant):
    runs = expand_runs(found)
    return next(r.recipe for r in runs if (r.experiment, r.variant) == (experiment, variant))


def foundation(recipe):
    return shared_base_recipe(recipe, Path("shared"))


def test_nested_changes_are_merged():
    before = {"image": {"steps": 5, "batch_size": 3}, "clip": None, "seed": 1}
    changes = {"image": {"steps": 7}, "clip": {"steps": 2}, "seed": None}
    assert deep_merge(before, changes) == {
        "image": {"steps": 7, "batch_size": 3},
        "clip": {"steps": 2},
        "seed": None,
    }
    assert before["image"] == {"steps": 5, "batch_size": 3}


def test_every_variant_with_its_own_runs_has_a_recipe(found, tmp_path):
    runs = expand_runs(found)
    assert [run.name for run in runs] == [
        "attention/both/3",
        "attention/spatial/3",
        "convolutions/3d/3",
    ]
    recipe = runs[1].recipe
    assert recipe.output == tmp_path / "runs" / "attention" / "spatial" / "3"
    assert (recipe.seed, recipe.unet.temporal_attention) == (3, "none")
    assert list(recipe.stages()) == ["autoencoder", "clip", "image", "keyframes"]
    assert [run.variant for run in expand_runs(found, ("convolutions",))] == ["both", "3d"]
    with pytest.raises(UserError, match="no experiment 'atention'; the experiments are attent"):
        expand_runs(found, ("atention",))


def test_shards_cover_all_runs(found):
    runs = expand_runs(found)
    parts = [select_shard(runs, f"{number}/2") for number in (1, 2)]
    assert [run.name for part in parts for run in part] == [runs[i].name for i in (0, 2, 1)]
    for wrong in ("0/2", "3/2", "2", "a/b", "-1/2"):
        with pytest.raises(UserError, match="not of the form K/N"):
            select_shard(runs, wrong)


def test_variants_share_the_stages_on_single_frames(found):
    both = recipe_of(found, "attention", "both")
    shared = foundation(both)
    assert list(shared.stages()) == ["autoencoder", "clip", "image"]
    assert foundation(recipe_of(found, "attention", "spatial")) == shared
    assert foundation(recipe_of(found, "convolutions", "3d")) == shared
    sightless = both.unet.model_copy(update={"spatial_attention": False})
    for change in ({"unet": sightless}, {"seed": 4}, {"init_components": ("vae",)}):
        assert foundation(both.model_copy(update=change)).output != shared.output
    assert foundation(both.model_copy(update=dict.fromkeys(shared.stages()))) is None


def test_equal_cost_is_equal_to_an_update(found):
    baseline = recipe_of(found, "attention", "both")
    dearer = recipe_of(found, "convolutions", "3d")
    assert dearer.keyframes.steps < baseline.keyframes.steps
    costs = training_flops(dearer)
    update = costs[-1] / dearer.keyframes.steps
    assert abs(sum(costs) - sum(training_flops(baseline))) <= update / 2


def test_a_run_with_other_settings_is_not_continued(found):
    run = expand_runs(found, ("attention",))[0]
    shared = shared_base_recipe(run.recipe, found.output / "shared")
    shared.output.mkdir(parents=True)
    changed = shared.model_copy(update={"size": 24})
    (shared.output / "recipe.json").write_text(changed.model_dump_json())
    with pytest.raises(UserError, match="trained with settings other than"):
        train_run(run, found.output, lambda _: None)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda v: v["experiments"]["attention"].update(baseline="no"),
            "the baseline 'no' is not",
        ),
        (
            lambda v: v["experiments"]["convolutions"]["variants"]["plain"].update(same_as="a/b"),
            "convolutions.plain: same_as 'a/b' must be",
        ),
        (
            lambda v: v["experiments"].update({"A b": v["experiments"]["attention"]}),
            "'A b' cannot",
        ),
        (lambda v: v["scoring"].update(prompt=3), "scoring.prompt is wrong: Extra inputs"),
        (lambda v: v.update(seeds=[]), "seeds is wrong"),
    ],
)
def test_a_mistake_in_the_file_is_named(values, write, spoil, sentence):
    spoil(values)
    with pytest.raises(UserError, match=sentence):
        read_ablations(write(values))


def test_the_ablations_in_the_repository_have_valid_recipes(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = read_ablations(Path("recipes/ablations.yaml"))
    assert len(found.seeds) > 1
    found = found.model_copy(update={"seeds": found.seeds[:1]})
    runs = expand_runs(found)
    assert len(runs) == 13
    assert {run.kind for run in runs} == {"denoiser", "decoder", "upscaler"}
    shared = {foundation(run.recipe) and foundation(run.recipe).output for run in runs}
    assert len(shared - {None}) == 3  # two image networks and an autoencoder
    asked = next(run.recipe for run in runs if run.variant == "with")
    alone = next(run.recipe for run in runs if run.variant == "directed")
    # updates of both stages cost nearly the same: only the image encoder comes on top
    assert 0.9 < (asked.unsupervised.steps + asked.keyframes.steps) / alone.keyframes.steps <= 1.0
