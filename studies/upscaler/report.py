"""The upscaler's scores as a section of the page of results."""

from collections.abc import Mapping, Sequence

from magicvideo.evaluation.provenance import provenance
from magicvideo.evaluation.results_page import format_estimate, markdown_table, provenance_table
from studies.paired_comparison import PAIRED_COLUMNS, paired_cells, paired_table
from studies.upscaler.evaluation import (
    BICUBIC,
    LANCZOS,
    FlickerScore,
    Quality,
    TemporalStats,
    Tiling,
    UpscalerEvaluation,
    UpscalerScores,
)

_QUALITY = (
    "{clips} held-out clips, {frames} of {large} pixels from each, on plain backgrounds, shrunk to "
    "{small} pixels by the mean of squares and enlarged again. The Frechet distance is from the "
    "same real frames, on the embeddings that the model's own CLIP image tower gives to crops of "
    "{crop} pixels at full resolution, so that it sees detail; compare these with each other "
    "alone. The network runs with {scheduler} and with noise of {noise:g} on the small frames. All "
    "frames are read in 8 bits; intervals are bootstrapped over clips."
)
_PAIRED = (
    "The same frames, relative to one method: differences of PSNR and SSIM, and the ratio of "
    "Frechet distances. The difficulty of a frame affects all methods and cancels."
)
_DECODED = (
    "The same frames, but the small ones first pass the model's autoencoder, as those do that the "
    "key-frame model makes; the frames of a clip are one video to it. *Noise*: its standard "
    "deviation on the latents, which have 1, anew in every frame: generated latents are not clean. "
    "*Over Lanczos*: on the same decoded frames."
)
_STATIC_FLICKER = (
    "Flicker of {clips} held-out clips of {frames} frames in a row, enlarged from {side} pixels: "
    "the mean absolute change from frame to frame, in levels of 255, where no colour of the small "
    "frames ever changes. Clips without such a place are left out. The corners are those of the "
    "protocol emoji-heldout, an eighth of each side long, moving or not."
)
_FINISHED = (
    "Finished videos: {videos} held-out captions at the model's default settings, {frames} frames "
    "at {fps:g} a second, by the stages {stages}, in no codec; beside them as many frames in a row "
    "of the captions' own clips, of {side} pixels. *Flicker*: the mean absolute change of those "
    "corners from frame to frame, in levels of 255; *change*: that of whole frames."
)


def section_parts(evaluation: UpscalerEvaluation, scores: UpscalerScores) -> list[str]:
    """Return the paragraphs and tables of a section of a Markdown page."""
    pipeline = evaluation.pipeline
    assert pipeline.image_encoder is not None  # the evaluation reads its features
    data = {"data": evaluation.data}
    if evaluation.moving is not None:
        data["clips in a row"] = evaluation.moving
    quality = _QUALITY.format(
        clips=evaluation.clips,
        frames="one frame" if evaluation.frames == 1 else f"{evaluation.frames} frames in a row",
        large=scores.large_side,
        small=scores.small_side,
        crop=pipeline.image_encoder.config.image_size,
        scheduler=pipeline.capabilities.default("scheduler"),
        noise=pipeline.config.upscaler_noise_level,
    )
    static_flicker = _STATIC_FLICKER.format(
        clips=evaluation.moving_clips, frames=evaluation.moving_frames, side=scores.moving_side
    )
    samples = {row.name: row.samples for row in scores.quality}
    decoded = [_DECODED, decoded_table(scores.decoded)] if scores.decoded else []
    generated_flicker = []
    if scores.generated_flicker:
        generated_flicker = [
            _generated_flicker_about(evaluation, scores),
            generated_flicker_table(scores.generated_flicker),
        ]
    return [
        quality,
        quality_table(scores.quality, scores.default),
        _PAIRED,
        *(paired_table(samples, reference) for reference in (scores.default, LANCZOS, BICUBIC)),
        *decoded,
        static_flicker,
        static_flicker_table(scores.static_flicker),
        *generated_flicker,
        tiling_sentence(scores.tiling),
        provenance_table(provenance({"model": pipeline.model_hash}, data, pipeline.device.type)),
    ]


def quality_table(rows: Sequence[Quality], default: str) -> str:
    """Return the quality of every way, the one called `default` in bold letters."""
    columns = ("enlarged by", "n", "PSNR, dB [95 %]", "SSIM [95 %]", "Frechet distance")
    cells = [
        (
            f"**{row.name} (default)**" if row.name == default else row.name,
            str(row.psnr.count),
            format_estimate(row.psnr, 2),
            format_estimate(row.ssim, 4),
            f"{row.frechet:.5f}",
            f"{row.seconds:.3f}",
        )
        for row in rows
    ]
    return markdown_table((*columns, "CPU seconds a frame"), cells)


def decoded_table(found: Mapping[float, Sequence[Quality]]) -> str:
    """Return the quality on frames that were decoded, by the noise on their latents."""
    cells = []
    for noise, rows in found.items():
        lanczos = next(row.samples for row in rows if row.name == LANCZOS)
        for row in rows:
            same = row.samples is lanczos
            cells.append(
                (
                    f"{noise:g}",
                    row.name,
                    str(row.psnr.count),
                    format_estimate(row.psnr, 2),
                    format_estimate(row.ssim, 4),
                    f"{row.frechet:.5f}",
                    *(("", "", "") if same else paired_cells(row.samples.compared_to(lanczos))),
                )
            )
    columns = ("noise", "enlarged by", "n", "PSNR, dB [95 %]", "SSIM [95 %]", "Frechet distance")
    return markdown_table((*columns, *(f"over Lanczos: {name}" for name in PAIRED_COLUMNS)), cells)


def static_flicker_table(rows: Sequence[FlickerScore]) -> str:
    """Return the flicker of every way."""
    if not rows:
        return "In all of these clips everything moves, so that there is no flicker to measure."
    cells = [
        (
            row.name,
            str(row.flicker.count),
            format_estimate(row.flicker, 4),
            "" if row.in_corners is None else format_estimate(row.in_corners, 2),
        )
        for row in rows
    ]
    columns = ("enlarged by", "n", "flicker, levels [95 %]", "in corners, times real clips' [95 %]")
    return markdown_table(columns, cells)


def generated_flicker_table(rows: Sequence[TemporalStats]) -> str:
    """Return flicker and change of generated videos beside those of real clips."""
    cells = [
        (
            row.name,
            str(row.flicker.count),
            format_estimate(row.flicker, 4),
            "" if row.times_flicker is None else format_estimate(row.times_flicker, 2),
            format_estimate(row.change, 3),
            "" if row.times_change is None else format_estimate(row.times_change, 2),
        )
        for row in rows
    ]
    columns = (
        "videos",
        "n",
        "flicker, levels [95 %]",
        "times real clips' [95 %]",
        "change, levels [95 %]",
        "times real clips' [95 %]",
    )
    return markdown_table(columns, cells)


def tiling_sentence(tiling: Tiling | None) -> str:
    """Return what tiles change."""
    if tiling is None:
        return "Tiles: these frames are smaller than what one output pixel of the network sees."
    return (
        f"Tiles: a frame of {tiling.side} pixels made in tiles of {tiling.tile} differs from the "
        f"same frame made whole by at most {tiling.greatest:.5f} levels. Across the borders of "
        f"tiles neighbours differ by {tiling.seam:.4f} levels on average, and by "
        f"{tiling.whole_seam:.4f} at the same places of the whole."
    )


def _generated_flicker_about(evaluation: UpscalerEvaluation, scores: UpscalerScores) -> str:
    capabilities = evaluation.pipeline.capabilities
    return _FINISHED.format(
        videos=evaluation.generated,
        frames=capabilities.max_frames + (capabilities.max_frames - 1) * capabilities.num_inserted,
        fps=capabilities.default("fps") * (capabilities.num_inserted + 1),
        stages=", ".join(capabilities.stages),
        side=scores.moving_side if evaluation.moving else scores.large_side,
    )
