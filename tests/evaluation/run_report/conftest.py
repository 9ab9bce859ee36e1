"""The first stages of a real run, and the lines of plotted results."""

import json
from pathlib import Path

import pytest
from tiny_recipe import tiny_values

from magicvideo.evaluation.run_report.plots import Row, sweep_curves
from magicvideo.evaluation.run_report.results import read_results

STAGES = ("autoencoder", "clip", "image")


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory) -> Path:
    """The folder of a run with three stages done; do not write into it."""
    from magicvideo.training.recipe import Recipe  # heavy, and most tests do without
    from magicvideo.training.run import train

    recipe = Recipe.model_validate(tiny_values(prepared, tmp_path_factory.mktemp("trained")))
    for stage in STAGES:
        train(recipe, stage)
    return recipe.output


@pytest.fixture
def lines(tmp_path):
    """A function that returns the lines of some documents over their steps: points by label."""

    def lines(documents):
        rows = []
        for place, document in enumerate(documents):
            path = tmp_path / f"{place}.json"
            path.write_text(json.dumps(document), encoding="utf-8")
            found = read_results(path)
            rows += [Row(part.name, found, part.scores[0]) for part in found.sets]
        return {
            line.label: [(steps, measured.value) for steps, measured in line.points]
            for line in sweep_curves(rows, "num_inference_steps")
        }

    return lines
