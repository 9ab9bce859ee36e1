"""Paired comparison of methods on the same clips, which cancels the difficulty of the clips."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from magicvideo.evaluation.confidence_intervals import Estimate, centred_bootstrap, mean
from magicvideo.evaluation.metrics.distribution import fit_gaussian, frechet_distance
from magicvideo.evaluation.results_page import format_estimate, markdown_table

PAIRED_COLUMNS = (
    "PSNR difference, dB [95 %]",
    "SSIM difference [95 %]",
    "Frechet distance ratio [95 %]",
)
_RESAMPLES = 200

Rows: TypeAlias = Float[np.ndarray, "_ d"]
"""Features of one clip; clips may have different numbers of rows."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The difference of two methods with intervals over their common clips.

    Attributes:
        psnr: PSNR of the first minus that of the second, in dB.
        ssim: SSIM of the first minus that of the second.
        frechet: Frechet distance of the first divided by that of the second; NaN if that is zero.
    """

    psnr: Estimate
    ssim: Estimate
    frechet: Estimate


@dataclass
class MethodSamples:
    """The measurements of one method on each clip, in the same order for all methods.

    Attributes:
        real: Features of the real clips, to which Frechet distances are computed.
        psnr: In dB.
        ssim: Structural similarity.
        features: Features of the method's output.
    """

    real: list[Rows]
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    features: list[Rows] = field(default_factory=list)
    _known: dict[bytes, float] = field(default_factory=dict, repr=False)

    def add(self, psnr: float, ssim: float, features: Rows) -> None:
        """Add the measurements of one more clip."""
        self.psnr.append(psnr)
        self.ssim.append(ssim)
        self.features.append(features)

    @property
    def frechet(self) -> float:
        """Return the Frechet distance over all clips."""
        return self._distance(np.arange(len(self.features)))

    def compared_to(self, other: "MethodSamples") -> PairedDifference:
        """Return the difference between this method and another."""

        def ratio(places: Int[np.ndarray, " n"], _: Int[np.ndarray, " one"]) -> float:
            below = other._distance(places)
            return self._distance(places) / below if below else float("nan")

        return PairedDifference(
            psnr=mean(np.subtract(self.psnr, other.psnr)),
            ssim=mean(np.subtract(self.ssim, other.ssim)),
            frechet=centred_bootstrap(ratio, len(self.features), 1, _RESAMPLES),
        )

    def _distance(self, places: Int[np.ndarray, " n"]) -> float:
        # the bootstrap samples the same indices for every pair of methods
        key = places.tobytes()
        if key not in self._known:
            made, real = (
                fit_gaussian(np.concatenate([rows[place] for place in places]))
                for rows in (self.features, self.real)
            )
            self._known[key] = frechet_distance(made, real)
        return self._known[key]


def paired_table(methods: Mapping[str, MethodSamples], reference: str) -> str:
    """Return the differences between all methods and `reference` as a Markdown table."""
    rows = [
        (name, str(len(samples.psnr)), *paired_cells(samples.compared_to(methods[reference])))
        for name, samples in methods.items()
        if name != reference
    ]
    return markdown_table((f"compared with {reference}", "n", *PAIRED_COLUMNS), rows)


def paired_cells(paired: PairedDifference) -> tuple[str, str, str]:
    """Return the cells below `PAIRED_COLUMNS`."""
    return (
        format_estimate(paired.psnr, 3),
        format_estimate(paired.ssim, 5),
        format_estimate(paired.frechet, 3),
    )
