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
    """Draw the scores of one experiment, which must have some.

    Raises:
        UserError: If matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    known = [row for row in rows if row.scores]
    # without a salt, element ids are random
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
    """Plot the held-out error of each variant, one dot per seed."""
    for place, row in enumerate(rows):
        values = row.values(lambda scores: _mean(scores["denoising"]["error"]))
        axes.plot(values, [place] * len(values), "o", color=f"C{place}")
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    for place, label in enumerate(axes.get_yticklabels()):
        label.set_color(f"C{place}")  # also serves as legend of the lines in the second plot
    axes.invert_yaxis()
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("held-out error, one dot per seed")
    axes.grid(axis="x", alpha=0.3)


def _by_timestep(axes: "Axes", scoring: ScoringConfig, rows: Sequence[VariantResult]) -> None:
    """Plot the error of each variant over the timesteps, relative to the first variant."""
    first = _mean_curve(rows[0])
    for place, row in enumerate(rows):
        curve = [one / base for one, base in zip(_mean_curve(row), first, strict=True)]
        axes.plot(scoring.timesteps, curve, "o-", color=f"C{place}", markersize=3)
    axes.set_xlabel("timestep")
    axes.set_ylabel(f"error relative to {rows[0].label}")
    axes.grid(alpha=0.3)


def _by_noise(
    axes: "Axes",
    scoring: ScoringConfig,
    rows: Sequence[VariantResult],
    name: str,
    scale: float,
    label: str,
) -> None:
    """Plot one measure of each decoder over the noise on the latents, averaged over seeds."""
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
    """Plot one measure of the upscalers over the number of diffusion steps, averaged over seeds."""
    for place, row in enumerate(rows):
        methods = [scores["upscaler"]["methods"] for scores in row.scores.values()]
        stepped = [found for found in zip(*methods, strict=True) if found[0]["steps"] is not None]
        steps = [found[0]["steps"] for found in stepped]
        curve = [_mean([method[name] for method in found]) for found in stepped]
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
