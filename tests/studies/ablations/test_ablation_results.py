"""Summaries of the scores of several seeds, and the display of missing ones."""

import numpy as np
import pytest
from tiny_recipe import tiny_values

from magicvideo.training.recipe import Recipe
from studies.ablations.page import cost_table, decoder_table, denoiser_table, upscaler_table
from studies.ablations.plots import draw_plot
from studies.ablations.results import VariantResult, mean_and_range, paired_difference
from studies.ablations.settings import Experiment, ScoringConfig, Variant

SEEDS = (1, 2)


def denoiser_scores(error):
    return {
        "denoising": {
            "error": error,
            "deviation": [value / 4 for value in error],
            "by_timestep": [0.3, 0.1],
            "seconds": 0.5,
        },
        "videos": {
            "caption_first": {"measured": 0.25, "real": 0.9, "count": 4},
            "frechet": {"measured": 0.0312, "real": 0.01, "count": 4},
        },
        "cost": {
            "parameters": 8_500_000,
            "gflops": 12.5,
            "training_gflops": 3.2e6,
            "memory": 2.5e9,
            "updates": 1000,
            "seconds": 1.4,
        },
    }


def interval_around(value):
    return {"value": value, "count": 40, "low": value - 0.2, "high": value + 0.1}


def decoder_scores(second):
    measures = [
        {"name": name, "first": 0.02, "second": second, "gain": interval_around(second / 0.02)}
        for name in ("flicker", "temporal error", "psnr")
    ]
    return {"decoder": [{"noise": noise, "measures": measures} for noise in (0.0, 0.1)]}


def upscaler_scores(psnr):
    methods = [
        {"name": name, "steps": steps, "psnr": psnr, "ssim": 0.9, "frechet": 0.1, "seconds": 0.2}
        | {"flicker": flicker}
        for name, steps, flicker in (("network, 1 step", 1, None), ("bicubic", None, 0.03))
    ]
    return {"upscaler": {"methods": methods}}


def row(label, scores):
    recipe = Recipe.model_validate(tiny_values("data", "runs"))
    return VariantResult(variant=label, label=label, recipe=recipe, scores=scores, seeds=SEEDS)


def experiment(measures):
    return Experiment(
        title="A title",
        about="",
        model_kind=measures,
        baseline="first",
        variants={name: Variant(label=name) for name in ("first", "second", "third")},
    )


@pytest.fixture
def denoisers():
    return [
        row("first", {1: denoiser_scores([0.5, 0.7, 0.3]), 2: denoiser_scores([0.4, 0.6, 0.5])}),
        row("second", {2: denoiser_scores([0.5, 0.9, 0.6])}),
        row("third", {}),
    ]


def cells(table, label):
    lines = [line[2:-2].split(" | ") for line in table.splitlines()]
    return next(line for line in lines if label in line)


def test_differences_are_paired_by_clip_over_common_seeds(denoisers):
    first, second, third = denoisers
    found = paired_difference(second, first, "error")
    assert found.count == 3
    assert found.value == pytest.approx(np.mean([0.1, 0.3, 0.1]))
    assert 0.099 < found.low < found.value < found.high < 0.301
    assert paired_difference(third, first, "error") is None
    # the clips' own difficulty cancels
    same = paired_difference(first, first, "deviation")
    assert (same.low, same.high) == (0.0, 0.0)


def test_a_range_shows_the_minimum_and_the_maximum_over_seeds():
    assert mean_and_range([0.25], 2) == "0.25"
    assert mean_and_range([0.5, 0.25], 1, 100.0) == "37.5 (25.0 to 50.0)"


def test_missing_scores_are_marked(denoisers):
    table = denoiser_table(experiment("denoiser"), ScoringConfig(), denoisers)
    assert cells(table, "first")[1:4] == ["2", "0.5000 (0.5000 to 0.5000)", ""]
    assert cells(table, "second")[1] == "1, 1 missing"
    assert cells(table, "second")[3].startswith("0.1667 [")
    assert cells(table, "third")[1] == "missing"
    # Wilson's interval of 2 among 8, the videos of both seeds
    assert cells(table, "first")[5] == "25.0 [7.1, 59.1]"
    assert cells(table, "real clips")[-5:-2] == ["90.0", "", "0.0100"]
    costs = cost_table(denoisers, with_pass=True)
    assert cells(costs, "first")[1:4] == ["8.50", "12.50", "0.500"]
    assert cells(cost_table(denoisers, with_pass=False), "first")[1:3] == ["8.50", "2.50"]
    assert cells(costs, "first")[-1] == "3,200.0"
    assert cells(costs, "third")[1] == "missing"


def test_decoders_are_shown_with_the_initial_decoder():
    rows = [row("first", {1: decoder_scores(0.04), 2: decoder_scores(0.02)}), row("third", {})]
    scoring = ScoringConfig(decoder_noise=(0.0, 0.1))
    table = decoder_table(scoring, rows)
    assert cells(table, "first")[3] == "3.825 (2.550 to 5.100)"  # levels of 127.5
    assert cells(table, "first")[-1] == "1.500 [0.800, 2.100]"  # from both seeds' outermost ends
    assert cells(table, "initial frame decoder")[5] == "0.02 (0.02 to 0.02)"
    assert table.count("missing") == 2  # at both levels of noise


def test_upscalers_are_shown_by_scale_and_method():
    rows = [row("times 4", {1: upscaler_scores(30.0), 2: upscaler_scores(32.0)})]
    table = upscaler_table(rows)
    assert cells(table, "bicubic")[3] == "31.00 (30.00 to 32.00)"
    assert cells(table, "bicubic")[-1] == "0.0300 (0.0300 to 0.0300)"
    assert cells(table, "network, 1 step")[-1] == ""


@pytest.mark.parametrize("kind", ["denoiser", "decoder", "upscaler"])
def test_a_plot_is_reproducible(kind, denoisers, tmp_path):
    rows = {
        "denoiser": denoisers,
        "decoder": [row("first", {1: decoder_scores(0.04)}), row("third", {})],
        "upscaler": [row("times 4", {1: upscaler_scores(30.0)})],
    }[kind]
    scoring = ScoringConfig(timesteps=(199, 999), decoder_noise=(0.0, 0.1), upscaler_steps=(1,))
    for name in ("one.svg", "two.svg"):
        draw_plot(experiment(kind), scoring, rows, tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.svg", "two.svg"))
    assert one == two
    assert b"<svg" in one
