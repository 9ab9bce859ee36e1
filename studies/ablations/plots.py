"""The plots of the page as reproducible SVG."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from magicvideo.atomic_io import atomic_file
from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.motion import LEVELS
from studies.ablations.results import VariantResult
from studies.ablations.settings import Experiment, ScoringConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def require_matplotlib() -> None:
    """Raise an error if matplotlib is missing.

    Raises:
        UserError: If it is missing.
    """
    if find_spec("matplotlib") is None:
        raise UserError(
            "The plots of ablations need matplotlib; install it with "
            "`pip install 'magicvideo[report]'`."
        )


def draw_plot(
    experiment: Experiment, scoring: ScoringConfig, rows: Sequence[VariantResult], path: Path
) -> None:
    """Draw the scores of one experiment, of which there must be some.

    Raises:
        UserError: If matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    known = [row for row in rows if row.scores]
    # element ids are drawn at random without a salt
    with mpl.rc_context({"svg.hashsalt": "magicvideo", "font.size": 9}):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2)
        if experiment.model_kind == "denoiser":
            _dots(left, known)
            _by_timestep(right, scoring, known)
        elif experiment.model_kind == "decoder":
            _by_noise(left, scoring, known, "flicker", LEVELS, "flicker, levels of 255")
            _by_noise(right, scoring, known, "psnr", 1.0, "PSNR, dB")
        else:
            _by_steps(left, scoring, known, "psnr", "PSNR, dB")
            _by_steps(right, scoring, known, "frechet", "Frechet distance, crops")
        figure.suptitle(experiment.title)
        with atomic_file(path) as partial:
            figure.savefig(partial, metadata={"Date": None})


def _dots(axes: "Axes", rows: Sequence[VariantResult]) -> None:
    """One dot a seed: the held-out error of each variant."""
    for place, row in enumerate(rows):
        values = row.values(lambda scores: _mean(scores["denoising"]["error"]))
        axes.plot(values, [place] * len(values), "o", color=f"C{place}")
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    for place, label in enumerate(axes.get_yticklabels()):
        label.set_color(f"C{place}")  # the names of the lines beside it, too
    axes.invert_yaxis()
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("held-out error, one dot a seed")
    axes.grid(axis="x", alpha=0.3)


def _by_timestep(axes: "Axes", scoring: ScoringConfig, rows: Sequence[VariantResult]) -> None:
    """Lines over the diffusion steps: each variant's error, as a multiple of the first one's."""
    first = _mean_curve(rows[0])
    for place, row in enumerate(rows):
        curve = [one / base for one, base in zip(_mean_curve(row), first, strict=True)]
        axes.plot(scoring.timesteps, curve, "o-", color=f"C{place}", markersize=3)
    axes.set_xlabel("diffusion step")
    axes.set_ylabel(f"error, times that of {rows[0].label}")
    axes.grid(alpha=0.3)


def _by_noise(
    axes: "Axes",
    scoring: ScoringConfig,
    rows: Sequence[VariantResult],
    name: str,
    scale: float,
    label: str,
) -> None:
    """Lines over the noise on the latents: one measure of each decoder, the mean over seeds."""
    for place, row in enumerate(rows):
        curve = [
            scale
            * _mean(
                [
                    found["second"]
                    for scores in row.scores.values()
                    for found in scores["decoder"][number]["measures"]
                    if found["name"] == name
                ]
            )
            for number in range(len(scoring.decoder_noise))
        ]
        axes.plot(scoring.decoder_noise, curve, "o-", color=f"C{place}", label=row.label)
    axes.set_xlabel("noise on the latents")
    axes.set_ylabel(label)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _by_steps(
    axes: "Axes", scoring: ScoringConfig, rows: Sequence[VariantResult], name: str, label: str
) -> None:
    """Lines over the diffusion steps of upscalers, the mean over seeds."""
    for place, row in enumerate(rows):
        ways = [scores["upscaler"]["ways"] for scores in row.scores.values()]
        stepped = [found for found in zip(*ways, strict=True) if found[0]["steps"] is not None]
        steps = [found[0]["steps"] for found in stepped]
        curve = [_mean([way[name] for way in found]) for found in stepped]
        axes.plot(steps, curve, "o-", color=f"C{place}", label=row.label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(scoring.upscaler_steps, [str(step) for step in scoring.upscaler_steps])
    axes.set_xlabel("diffusion steps")
    axes.set_ylabel(label)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _mean_curve(row: VariantResult) -> list[float]:
    curves = [scores["denoising"]["by_timestep"] for scores in row.scores.values()]
    return [_mean(values) for values in zip(*curves, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
