"""The interpolation's scores as a section of the results page."""

from collections.abc import Sequence

from magicvideo.evaluation.results_page import format_estimate, markdown_table
from studies.interpolation.evaluation import (
    ESTIMATE,
    LATENT_BLEND,
    InterpolationEvaluation,
    InterpolationScores,
    MethodScores,
    PulseScore,
    network_label,
)
from studies.paired_comparison import paired_table

_PAIRED_ABOUT = (
    "The same clips, relative to one method: differences of PSNR and SSIM, and the ratio of "
    "Frechet distances of gaps. The difficulty of a clip affects all methods and cancels. The "
    "comparison with the estimate alone shows what diffusion adds."
)
_ABOUT = (
    "{clips} held-out clips of {frames} consecutive frames on plain backgrounds. Every {apart}th "
    "frame is a key frame. Generation uses {steps} by default. *Estimate alone* is the network's "
    "regression estimate without diffusion. PSNR and SSIM are those of the {inserted} inserted "
    "frames. The Frechet distances are to the same real clips, on the judge's features. *Of gaps*: "
    "a sample is the concatenated features of {window} frames, from one key frame to the next, so "
    "their order counts. *Of clips*: a sample is a whole clip, of which the judge reads {looked} "
    "frames; the order of frames has little influence, and repeating a real frame costs almost "
    "nothing. *Change at key frames*: the mean change between two frames of which one is a key "
    "frame, divided by the change elsewhere. All videos are rounded to 8 bits; intervals are "
    "bootstrapped over clips."
)
_PULSE_ABOUT = (
    "Pulse at generated key frames: {videos} held-out captions with the model's default settings, "
    "{frames} frames each, decoded to {side} pixels, without a codec. The key frames of a caption "
    "are the same for all rows except the last, which has the captions' real clips. *Noise level*: "
    "the timestep of the noise on the key frames on which the network is conditioned; the default "
    "is {level}. The corners are those of the protocol emoji-heldout, an eighth of each side long."
)


def section_parts(evaluation: InterpolationEvaluation, scores: InterpolationScores) -> list[str]:
    """Return the paragraphs and tables of a section of a Markdown page."""
    parts = [
        _about(evaluation),
        methods_table(scores.methods),
        _PAIRED_ABOUT,
        *paired_tables(scores.methods, evaluation.steps),
    ]
    if scores.pulses:
        parts += [_pulse_about(evaluation), pulse_table(scores.pulses)]
    return parts


def methods_table(scores: Sequence[MethodScores]) -> str:
    """Return the scores as a Markdown table."""
    columns = (
        "method",
        "n",
        "PSNR, dB [95 %]",
        "SSIM [95 %]",
        "Frechet distance of gaps",
        "Frechet distance of clips",
        "change at key frames / elsewhere [95 %]",
    )
    rows = [
        (
            row.name,
            str(row.pulse.count),
            format_estimate(row.psnr, 2) if row.psnr else "",
            format_estimate(row.ssim, 4) if row.ssim else "",
            f"{row.of_gaps:.5f}",
            f"{row.of_clips:.5f}",
            format_estimate(row.pulse, 2),
        )
        for row in scores
    ]
    return markdown_table(columns, rows)


def paired_tables(scores: Sequence[MethodScores], steps: Sequence[int]) -> list[str]:
    """Return two tables: all methods against linear interpolation, diffusion against the estimate.

    Args:
        scores: The scores of all methods.
        steps: Numbers of diffusion steps that were compared.
    """
    methods = {row.name: row.samples for row in scores if row.psnr}
    networks = {name: methods[name] for name in (*map(network_label, steps), ESTIMATE)}
    return [paired_table(methods, LATENT_BLEND), paired_table(networks, ESTIMATE)]


def pulse_table(pulses: Sequence[PulseScore]) -> str:
    """Return the pulse of generated videos as a Markdown table."""
    columns = (
        "method, between generated key frames",
        "n",
        "change at key frames / elsewhere [95 %]",
        "in corners [95 %]",
        "flicker of corners, levels [95 %]",
    )
    rows = [
        (
            row.name,
            str(row.whole.count),
            format_estimate(row.whole, 3),
            format_estimate(row.in_corners, 3),
            format_estimate(row.flicker, 3),
        )
        for row in pulses
    ]
    return markdown_table(columns, rows)


def _about(evaluation: InterpolationEvaluation) -> str:
    capabilities, keys = evaluation.pipeline.capabilities, evaluation.keys
    inserted, default = capabilities.num_inserted, capabilities.default("interpolation_steps")
    return _ABOUT.format(
        clips=evaluation.clips,
        frames=keys + (keys - 1) * inserted,
        apart=inserted + 1,
        steps=f"{default} step{'s' if default > 1 else ''}",
        inserted=(keys - 1) * inserted,
        window=inserted + 2,
        looked=evaluation.judge.config.num_frames,
    )


def _pulse_about(evaluation: InterpolationEvaluation) -> str:
    capabilities = evaluation.pipeline.capabilities
    return _PULSE_ABOUT.format(
        videos=evaluation.generated,
        frames=capabilities.max_frames + (capabilities.max_frames - 1) * capabilities.num_inserted,
        side=capabilities.height,
        level=evaluation.pipeline.config.interpolation_noise_level,
    )
