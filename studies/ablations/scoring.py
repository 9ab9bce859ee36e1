"""The scores of one run, cached as a JSON file."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from magicvideo.atomic_io import atomic_file
from magicvideo.data.dataset import ClipDataset
from magicvideo.errors import UserError
from magicvideo.evaluation.evaluator import Evaluator
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.protocol import AutoencoderSet, PromptSet, Protocol
from magicvideo.evaluation.provenance import provenance
from magicvideo.models.video_vae import load_autoencoder
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.training.dry_run import estimate_run
from magicvideo.training.export import export
from magicvideo.training.loader import frames_folder
from magicvideo.training.metrics_logger import FILE as LOG
from magicvideo.training.resolve import component_source, image_vae_source
from studies.ablations.denoising import measure_denoising_errors
from studies.ablations.experiment_runs import AblationRun
from studies.ablations.settings import ScoringConfig
from studies.decoders import compare_decoders
from studies.upscaler.evaluation import UpscalerEvaluation

Progress: TypeAlias = Callable[[str, int, int], None]
Scores: TypeAlias = dict[str, Any]
"""Content of a score file: `of`, `identity`, `cost`, and the measurements for the model kind."""

_MODEL, _VIDEOS = "model", "videos"
_FAST_QUANTILE = 0.1


def read_scores(run: AblationRun, scoring: ScoringConfig, judge_hash: str) -> Scores | None:
    """Return the cached scores of a run, or None if there are none for these settings.

    Args:
        run: The trained run.
        scoring: Settings of the scoring.
        judge_hash: Hash of the judge's folder.
    """
    try:
        scores: Scores = json.loads(run.scores.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    is_current = scores.get("of") == _settings_key(run, scoring)
    return scores if is_current and scores["identity"]["judge"] == judge_hash else None


def score_run(
    run: AblationRun, scoring: ScoringConfig, judge: Judge, judge_hash: str, progress: Progress
) -> None:
    """Score a finished run and store the scores.

    Args:
        run: The trained run.
        scoring: Settings of the scoring.
        judge: The independent video-text network.
        judge_hash: Hash of its folder.
        progress: Called with a label, the number of finished items and their total.

    Raises:
        UserError: If there are too few clips for the settings.
    """
    if run.kind == "denoiser":
        found = _score_denoiser(run, scoring, judge, progress)
    elif run.kind == "decoder":
        found = _score_decoder(run, scoring, progress)
    else:
        found = _score_upscaler(run, scoring, progress)
    scores = {
        "of": _settings_key(run, scoring),
        "identity": provenance(
            {"judge": judge_hash},
            {"data": frames_folder(run.recipe.data, run.name)},
            "cpu",
        ),
        "cost": _cost_of(run),
        **found,
    }
    run.scores.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(run.scores) as partial:
        partial.write_text(json.dumps(scores, indent=1, allow_nan=False), encoding="utf-8")


def _score_denoiser(
    run: AblationRun, scoring: ScoringConfig, judge: Judge, progress: Progress
) -> Scores:
    pipeline = _pipeline_of(run)
    dataset = ClipDataset(frames_folder(run.recipe.data, run.name), (scoring.split,))
    errors = measure_denoising_errors(
        pipeline,
        dataset,
        scoring.loss_clips,
        num_frames=scoring.num_frames,
        stride=scoring.stride,
        timesteps=scoring.timesteps,
        seed=scoring.seed,
        on_clip=lambda done: progress(f"{run.name}: held-out error", done, scoring.loss_clips),
    )
    evaluation = Evaluator(
        protocol=_protocol_of(scoring),
        pipeline=pipeline,
        judge=judge,
        data=frames_folder(run.recipe.data, run.name),
        work=run.recipe.output / _VIDEOS,
    )
    prompt_set = PromptSet(name=run.name, split=scoring.split, prompts=scoring.prompts)
    videos = evaluation.score_set(prompt_set, progress)
    return {
        "denoising": {
            "clips": errors.clips,
            "error": errors.error.mean(axis=1).tolist(),
            "deviation": errors.deviation.mean(axis=1).tolist(),
            "by_timestep": errors.error.mean(axis=0).tolist(),
            "seconds": errors.seconds,
        },
        "videos": {
            score.name: {
                "measured": score.measured.value,
                "real": score.real.value,
                "count": score.measured.count,
            }
            for score in videos.scores
        },
    }


def _score_decoder(run: AblationRun, scoring: ScoringConfig, progress: Progress) -> Scores:
    """Compare the run's video decoder with the frame decoder from which it was initialised."""
    first = load_autoencoder(image_vae_source(run.recipe).path())
    second = load_autoencoder(component_source(run.recipe, "vae").path())
    dataset = ClipDataset(frames_folder(run.recipe.data, run.name), (scoring.split,))
    return {
        "decoder": [
            {
                "noise": noise,
                "measures": [
                    asdict(comparison)
                    for comparison in compare_decoders(
                        first,
                        second,
                        dataset,
                        scoring.decoder_clips,
                        num_frames=scoring.num_frames,
                        stride=1,
                        noise=noise,
                        seed=scoring.seed,
                        on_clip=lambda done: progress(
                            f"{run.name}: decoding", done, scoring.decoder_clips
                        ),
                    )
                ],
            }
            for noise in scoring.decoder_noise
        ]
    }


def _score_upscaler(run: AblationRun, scoring: ScoringConfig, progress: Progress) -> Scores:
    assert run.recipe.upscaler is not None
    pipeline = _pipeline_of(run)
    scores = UpscalerEvaluation(
        pipeline=pipeline,
        data=run.recipe.upscaler.data,
        clips=scoring.upscaler_clips,
        frames=1,
        steps=scoring.upscaler_steps,
        moving=frames_folder(run.recipe.data, run.name),
        moving_clips=scoring.moving_clips,
        moving_frames=scoring.moving_frames,
        seed=scoring.seed,
    ).run(lambda what, done, total: progress(f"{run.name}: {what}", done, total))
    flicker = {row.name: row.flicker.value for row in scores.static_flicker}
    # the network comes first, once for each number of steps, then resizing
    steps = sorted({*scoring.upscaler_steps, pipeline.capabilities.default("upscaler_steps")})
    return {
        "upscaler": {
            "factor": scores.large_side // scores.small_side,
            "small_side": scores.small_side,
            "default": scores.default,
            "methods": [
                {
                    "name": row.name,
                    "steps": step,
                    "psnr": row.psnr.value,
                    "ssim": row.ssim.value,
                    "frechet": row.frechet,
                    "seconds": row.seconds,
                    "flicker": flicker.get(row.name),
                }
                for row, step in zip_longest(scores.quality, steps)
            ],
        }
    }


def _pipeline_of(run: AblationRun) -> MagicVideoPipeline:
    """Return the run's model, which is exported to a folder in the run if necessary."""
    folder = run.recipe.output / _MODEL
    if not folder.is_dir():
        export(run.recipe.output, folder, "fp32")
    return MagicVideoPipeline.from_pretrained(folder)


def _cost_of(run: AblationRun) -> dict[str, int | float]:
    """Return the cost of all stages, and the size and speed of the last."""
    rows = estimate_run(run.recipe)
    last = rows[-1]
    return {
        "parameters": last.parameters,
        "gflops": last.gflops,
        "training_gflops": sum(row.samples * row.training_gflops for row in rows),
        "memory": last.memory.total,
        "updates": last.updates,
        "seconds": _fastest_decile_seconds(run.recipe.output / last.name / LOG),
    }


def _fastest_decile_seconds(log: Path) -> float:
    """Return the 10th percentile of seconds per update; other processes only increase them."""
    lines = log.read_text(encoding="utf-8").splitlines()
    if not lines:
        raise UserError(f"{log} is empty; remove its folder and run the command again.")
    return float(np.quantile([json.loads(line)["seconds"] for line in lines], _FAST_QUANTILE))


def _protocol_of(scoring: ScoringConfig) -> Protocol:
    return Protocol(
        name="ablations",
        about="Scores of the ablations.",
        seed=scoring.seed,
        num_frames=scoring.num_frames,
        stride=scoring.stride,
        scheduler=scoring.scheduler,
        num_inference_steps=scoring.num_inference_steps,
        guidance_scale=scoring.guidance_scale,
        pool_size=scoring.pool_size,
        reference_clips=scoring.reference_clips,
        covariance_divisor="n-1",
        sets=(),
        autoencoder=AutoencoderSet(split=scoring.split, clips=scoring.loss_clips),
    )


def _settings_key(run: AblationRun, scoring: ScoringConfig) -> str:
    """Return a hash of all settings on which the scores depend.

    Settings at their default are left out, so that a new setting whose default keeps the old
    behaviour leaves the scores valid.
    """
    recipe = run.recipe.model_dump_json(exclude={"name", "output"}, exclude_defaults=True)
    material = recipe + scoring.model_dump_json(exclude_defaults=True)
    return hashlib.sha256(material.encode()).hexdigest()
