"""The interpolation's scores as a section of the page of results."""

from collections.abc import Sequence

from magicvideo.evaluate.interpolation.scores import MethodScores
from magicvideo.evaluate.page import number, table
from magicvideo.generate.pipeline import MagicVideoPipeline

_ABOUT = (
    "{clips} held-out clips of {frames} frames in a row on plain backgrounds, of which one in "
    "{apart} is a key frame; a finished video takes {steps}. PSNR and SSIM are those of the "
    "{inserted} inserted frames. The Frechet distances are from the same real clips, on the "
    "judge's features. *Of gaps*: a sample is a key, the frames after it and the next key, the "
    "features of all {window} side by side, so that their order counts. *Of clips*: a sample is a "
    "whole clip, of which the judge looks at {looked} frames; the order of frames hardly counts, "
    "and repeating a real frame costs next to nothing. *At keys*: the mean change from a frame to "
    "the next where one of both is a key, as a multiple of the change elsewhere. All videos are "
    "read in 8 bits; intervals are bootstrapped over clips."
)


def interpolation_about(
    pipeline: MagicVideoPipeline, clips: int, num_keys: int, looked: int
) -> str:
    """Return what was measured, in words.

    Args:
        pipeline: The model.
        clips: How many clips were filled.
        num_keys: Key frames of each.
        looked: How many frames of a clip the judge looks at.
    """
    inserted, default = pipeline.traits.num_inserted, pipeline.traits.default_interpolation_steps
    return _ABOUT.format(
        clips=clips,
        frames=num_keys + (num_keys - 1) * inserted,
        apart=inserted + 1,
        steps=f"{default} step{'s' if default > 1 else ''}",
        inserted=(num_keys - 1) * inserted,
        window=inserted + 2,
        looked=looked,
    )


def interpolation_table(scores: Sequence[MethodScores]) -> str:
    """Return the scores as a Markdown table."""
    columns = (
        "between the keys",
        "n",
        "PSNR, dB [95 %]",
        "over the blend of latents, dB [95 %]",
        "SSIM [95 %]",
        "Frechet distance of gaps",
        "times the blend of latents' [95 %]",
        "Frechet distance of clips",
        "change at keys / elsewhere [95 %]",
    )
    rows = [
        (
            row.name,
            str(row.seam.count),
            number(row.psnr, 2) if row.psnr else "",
            number(row.gain, 2) if row.gain else "",
            number(row.ssim, 4) if row.ssim else "",
            f"{row.of_gaps:.5f}",
            number(row.of_gaps_ratio, 2) if row.of_gaps_ratio else "",
            f"{row.of_clips:.5f}",
            number(row.seam, 2),
        )
        for row in scores
    ]
    return table(columns, rows)
