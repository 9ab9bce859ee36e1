import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicvideo.data.backgrounds import (
    COLOURS,
    DIRECTIONS,
    PLAIN_FRACTION,
    Background,
    nearest_colour,
    parse_background,
    random_background,
    render_background,
)
from magicvideo.errors import UserError

SIZE, WIDTH = 11, 15


def test_background_colours_are_well_separated():
    for one, other in itertools.combinations(COLOURS.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) >= 85


@given(st.sampled_from(sorted(COLOURS)), st.lists(st.integers(-20, 20), min_size=3, max_size=3))
def test_an_inexact_colour_gets_the_nearest_name(name, offset):
    assert nearest_colour(np.add(COLOURS[name], offset)) == name


@given(st.integers(0, 10_000))
def test_a_background_is_found_by_its_name(seed):
    background = random_background(np.random.default_rng(seed))
    found = parse_background(background.name)
    assert (found.colour, found.second) == (background.colour, background.second)
    assert background.colour != background.second


def test_plain_colours_and_gradients_have_the_stated_fractions():
    rng = np.random.default_rng(0)
    drawn = [random_background(rng) for _ in range(4000)]
    plain = [background for background in drawn if background.second is None]
    assert len(plain) / len(drawn) == pytest.approx(PLAIN_FRACTION, abs=0.03)
    assert {background.colour for background in plain} == set(COLOURS)
    assert {background.direction for background in drawn} == set(DIRECTIONS)


@pytest.mark.parametrize("name", ["teal", "Blue", "gradient from blue to teal", "gradient", ""])
def test_unknown_backgrounds_are_refused_with_the_known_ones(name):
    with pytest.raises(UserError, match="white, black"):
        parse_background(name)


def test_a_plain_colour_is_the_same_everywhere():
    painted = np.broadcast_to(
        render_background(Background("orange"), SIZE, WIDTH), (SIZE, WIDTH, 3)
    )
    assert (painted == COLOURS["orange"]).all()


@pytest.mark.parametrize(
    ("direction", "where"),
    [
        ("vertical", lambda row, _: row / (SIZE - 1)),
        ("horizontal", lambda _, column: column / (WIDTH - 1)),
        ("diagonal", lambda row, column: (row / (SIZE - 1) + column / (WIDTH - 1)) / 2),
    ],
)
def test_a_gradient_goes_evenly_from_the_first_to_the_second(direction, where):
    painted = render_background(Background("blue", "pink", direction), SIZE, WIDTH)
    assert painted.shape == (SIZE, WIDTH, 3)
    first, second = np.array(COLOURS["blue"]), np.array(COLOURS["pink"])
    for row, column in itertools.product(range(SIZE), range(WIDTH)):
        share = where(row, column)
        expected = first * (1 - share) + second * share
        np.testing.assert_allclose(painted[row, column], expected, atol=1e-3)
