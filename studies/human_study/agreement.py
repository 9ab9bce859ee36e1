"""How far raters agree beyond chance."""

from collections import Counter
from collections.abc import Sequence


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Return Krippendorff's alpha of nominal values: 1 is full agreement, 0 is that of chance.

    Source: K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section D:
    nominal data, any number of observers, missing data.

    Args:
        units: The values that each unit was given, one a rater who judged it. Those of a unit that
            one rater judged alone are paired with nothing and count nothing.

    Returns:
        None where alpha is not defined: nothing is paired, or all paired values are the same.
    """
    pairable = [Counter(values) for values in units if len(values) > 1]
    totals = Counter[str]()
    for counts in pairable:
        totals.update(counts)
    number = totals.total()
    expected = _unlike_pairs(totals)
    if not expected:
        return None
    observed = sum(_unlike_pairs(counts) / (counts.total() - 1) for counts in pairable)
    return 1 - (number - 1) * observed / expected


def _unlike_pairs(counts: Counter[str]) -> int:
    """Return the number of ordered pairs whose two values differ."""
    return counts.total() ** 2 - sum(count**2 for count in counts.values())
