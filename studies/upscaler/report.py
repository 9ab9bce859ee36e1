"""The upscaler's scores as a section of the results page."""

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
    "{clips} held-out clips, {frames} of {large} pixels from each, on plain backgrounds, "
    "downsampled to {small} pixels by averaging squares and upscaled again. The Frechet distance "
    "is to the same real frames. Its features are the embeddings of the model's CLIP image encoder "
    "for crops of {crop} pixels at full resolution, which keep detail; they can be compared only "
    "with each other. The network runs with {scheduler} and noise of {noise:g} on the small "
    "frames. All frames are rounded to 8 bits; intervals are bootstrapped over clips."
)
_PAIRED = (
    "The same frames, relative to one method: differences of PSNR and SSIM, and the ratio of "
    "Frechet distances. The difficulty of a frame affects all methods and cancels."
)
_DECODED = (
    "The same frames, but the small frames first pass through the model's autoencoder, as in "
    "generation; the frames of a clip are encoded as one video. *Noise*: standard deviation of the "
    "noise that is added to the latents of every frame, relative to that of the latents, because "
    "generated latents contain errors. *Over Lanczos*: compared with Lanczos on the same decoded "
    "frames."
)
_STATIC_FLICKER = (
    "Flicker of {clips} held-out clips of {frames} consecutive frames, upscaled from {side} "
    "pixels: the mean absolute change from frame to frame, in levels of 255, of pixels that never "
    "change in the small frames. Clips without such pixels are skipped. The corners are those of "
    "the protocol emoji-heldout, an eighth of each side long, whether they are static or not."
)
_FINISHED = (
    "Finished videos: {videos} held-out captions with the model's default settings, {frames} "
    "frames at {fps:g} per second, by the stages {stages}, without a codec. They are compared with "
    "the same number of consecutive frames of the captions' real clips, of {side} pixels. "
    "*Flicker*: the mean absolute change of the corners from frame to frame, in levels of 255; "
    "*change*: that of whole frames."
)


def section_parts(evaluation: UpscalerEvaluation, scores: UpscalerScores) -> list[str]:
    """Return the paragraphs and tables of a section of a Markdown page."""
    pipeline = evaluation.pipeline
    assert pipeline.image_encoder is not None  # the evaluation reads its features
    data = {"data": evaluation.data}
    if evaluation.moving is not None:
        data["clips with all frames"] = evaluation.moving
    quality = _QUALITY.format(
        clips=evaluation.clips,
        frames="one frame" if evaluation.frames == 1 else f"{evaluation.frames} consecutive frames",
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
    """Return the quality of every method, with the default method in bold."""
    columns = ("method", "n", "PSNR, dB [95 %]", "SSIM [95 %]", "Frechet distance")
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
    return markdown_table((*columns, "CPU seconds per frame"), cells)


def decoded_table(found: Mapping[float, Sequence[Quality]]) -> str:
    """Return the quality on decoded frames for each noise on their latents."""
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
    columns = ("noise", "method", "n", "PSNR, dB [95 %]", "SSIM [95 %]", "Frechet distance")
    return markdown_table((*columns, *(f"over Lanczos: {name}" for name in PAIRED_COLUMNS)), cells)


def static_flicker_table(rows: Sequence[FlickerScore]) -> str:
    """Return the flicker of every method."""
    if not rows:
        return "None of these clips has static pixels, so flicker cannot be measured."
    cells = [
        (
            row.name,
            str(row.flicker.count),
            format_estimate(row.flicker, 4),
            "" if row.in_corners is None else format_estimate(row.in_corners, 2),
        )
        for row in rows
    ]
    columns = ("method", "n", "flicker, levels [95 %]", "in corners, relative to real clips [95 %]")
    return markdown_table(columns, cells)


def generated_flicker_table(rows: Sequence[TemporalStats]) -> str:
    """Return flicker and change of generated videos and of real clips."""
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
        "relative to real clips [95 %]",
        "change, levels [95 %]",
        "relative to real clips [95 %]",
    )
    return markdown_table(columns, cells)


def tiling_sentence(tiling: Tiling | None) -> str:
    """Return a sentence on the effect of tiles."""
    if tiling is None:
        return "Tiles: these frames are smaller than the receptive field of one output pixel."
    return (
        f"Tiles: a frame of {tiling.side} pixels upscaled in tiles of {tiling.tile} differs from "
        f"the untiled output by at most {tiling.greatest:.5f} levels. Neighbouring pixels across "
        f"tile borders differ by {tiling.border:.4f} levels on average, and by "
        f"{tiling.untiled_border:.4f} at the same places of the untiled output."
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
