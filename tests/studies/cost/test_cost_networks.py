"""The counts of the page: known values of other networks, our target, and the written page."""

from pathlib import Path

import pytest

from magicvideo.data.manifest import FrameSize
from magicvideo.training.recipe import read_recipe
from magicvideo.training.resolve import unet_config
from studies.__main__ import run
from studies.cost.networks import PAPER, Workload
from studies.cost.page import Range, networks_table

ROOT = Path(__file__).parents[3]
# diffusers warns of an import that it makes itself
pytestmark = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput`:FutureWarning")


@pytest.fixture(scope="module")
def counted():
    return networks_table(PAPER)


@pytest.fixture(scope="module")
def rows(counted):
    cells = [line.strip("| ").split(" | ") for line in counted.splitlines()[2:]]
    return {name: [float(n.replace(",", "")) for n in numbers] for name, *numbers in cells}


@pytest.mark.slow
def test_the_other_networks_have_their_known_cost(rows):
    known = {
        "UNet2DConditionModel": (859.5, 2882),
        "UNetMotionModel": (1312.7, 4106),
        "UNet3DConditionModel": (1404.8, 4871),
    }
    for name, expected in known.items():
        parameters, *_, flops, _ = rows[name]
        assert (parameters, flops) == pytest.approx(expected, rel=0.005), name


@pytest.mark.slow
def test_ours_costs_at_most_a_tenth_more_than_the_image_network(rows):
    assert 1.0 < rows["VideoUNet (ours)"][-1] < 1.10


def test_a_workload_from_a_recipe_gives_the_cost_of_all_networks():
    config = unet_config(read_recipe(ROOT / "recipes" / "emoji.yaml", []), FrameSize(64, 64))
    work = Workload(config, videos=1, frames=16, side=8, tokens=32, head_width=32)
    lines = [line.strip("| ").split(" | ") for line in networks_table(work).splitlines()[2:]]
    ratios = {name: float(cells[-1]) for name, *cells in lines}
    assert list(ratios) == [
        "UNet2DConditionModel",
        "VideoUNet (ours)",
        "UNetMotionModel",
        "UNet3DConditionModel",
    ]
    assert 1.0 < ratios["VideoUNet (ours)"] < 1.10 < ratios["UNetMotionModel"]


@pytest.mark.slow
def test_the_kinds_sum_to_the_whole(rows):
    for parameters, *kinds, whole, ratio in rows.values():
        assert sum(kinds) == pytest.approx(whole, abs=0.03)
        assert ratio == pytest.approx(whole / rows["UNet2DConditionModel"][-2], abs=6e-4)
        assert parameters > 859


@pytest.mark.slow
def test_the_page_in_the_repository_has_the_same_numbers(counted):
    assert counted in (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("least", "most", "shown"),
    [(1.876, 2.254, "1.88 to 2.25"), (42.46, 51.54, "42.5 to 51.5"), (1234.4, 1234.4, "1,234")],
)
def test_a_range_shows_three_digits_and_one_number_where_there_is_one(least, most, shown):
    assert str(Range(least, most)) == shown


def test_a_missing_output_folder_is_refused_before_counting(tmp_path, capsys):
    assert run(["cost", "--output", str(tmp_path / "none" / "cost.md")]) == 2
    assert "does not exist" in capsys.readouterr().err
