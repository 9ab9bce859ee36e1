"""Long logs made short: what the eye sees of them, in few points."""

from itertools import pairwise

import numpy as np

from magicvideo.evaluation.run_report.run import Series

_MOST = 400
_SHARE = 50


def minmax_downsample(series: Series) -> Series:
    """Return the least and the largest value of each of 400 parts, so that no peak is lost."""
    if len(series.values) <= 2 * _MOST:
        return series
    edges = np.linspace(0, len(series.values), _MOST + 1).astype(int)
    places: list[int] = []
    for first, last in pairwise(edges):
        part = series.values[first:last]
        places += sorted({first + int(part.argmin()), first + int(part.argmax())})
    return Series(series.steps[places], series.values[places])


def smoothed(series: Series) -> Series:
    """Return the moving average over a fiftieth of the log, at 400 places or fewer."""
    window = np.ones(1 + 2 * (len(series.values) // (2 * _SHARE)))
    # at the ends the window is cut, and so is what it is divided by
    sums = np.convolve(series.values, window, mode="same")
    counts = np.convolve(np.ones_like(series.values), window, mode="same")
    places = np.unique(np.linspace(0, len(sums) - 1, min(_MOST, len(sums))).round().astype(int))
    return Series(series.steps[places], (sums / counts)[places])


def start_end_mean(series: Series) -> tuple[float, float]:
    """Return the mean of the first and of the last fiftieth of a log."""
    count = max(1, len(series.values) // _SHARE)
    return float(series.values[:count].mean()), float(series.values[-count:].mean())
