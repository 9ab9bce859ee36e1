"""Krippendorff's own worked examples."""

import pytest

from studies.human_study.results import krippendorff_alpha


def units_of(*observers):
    """Return the values of each unit, one column; a dot is a missing value."""
    columns = zip(*(line.split() for line in observers), strict=True)
    return [[value for value in column if value != "."] for column in columns]


@pytest.mark.parametrize(
    ("observers", "alpha"),
    [
        # "Computing Krippendorff's Alpha-Reliability" (2011), sections A to C
        (("0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0"), 0.095),
        (("a a b b d c c c e d d a", "b a b b b c c c e d d d"), 0.692),
        (
            (
                "1 2 3 3 2 1 4 1 2 . . .",
                "1 2 3 3 2 2 4 1 2 5 . 3",
                ". 3 3 3 2 3 4 2 2 5 1 .",
                "1 2 3 3 2 4 4 1 2 5 1 .",
            ),
            0.743,
        ),
    ],
)
def test_published_examples(observers, alpha):
    assert round(krippendorff_alpha(units_of(*observers)), 3) == alpha


def test_full_agreement_is_1():
    assert krippendorff_alpha(units_of("a b b", "a b b", "a b .")) == 1


@pytest.mark.parametrize("observers", [(), ("a b a",), ("a a a", "a a ."), ("a .", ". b")])
def test_it_is_not_defined_without_pairs_or_with_one_value(observers):
    assert krippendorff_alpha(units_of(*observers)) is None
