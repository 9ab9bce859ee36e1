"""The upscaler's evaluation, start to end: a model and data to all scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from magicvideo.data.dataset import ClipDataset
from magicvideo.evaluation.prompt_sets import real_videos, sample_prompts
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from studies.upscaler.generated_flicker import TemporalStats, score_generated_flicker
from studies.upscaler.methods import (
    UpscaleMethod,
    check_upscaler,
    check_vae_divisible,
    network_method,
    resize_methods,
    with_vae_roundtrip,
)
from studies.upscaler.quality import Quality, score_quality
from studies.upscaler.static_flicker import FlickerScore, score_static_flicker
from studies.upscaler.tiles import Tiling, score_tiles


@dataclass(frozen=True, kw_only=True)
class UpscalerScores:
    """All scores.

    Attributes:
        default: Name of the way that the model takes by default.
        quality: Of the network at all numbers of steps, and of resizing.
        decoded: By the noise on the latents: of the network at its default and of resizing, all on
            small frames that passed the model's autoencoder; may be empty.
        stillness: Of the network at its default, of resizing and of the real clips; may be empty.
        finished: Of generated videos and of the real clips; may be empty.
        tiling: What tiles change; None where the frames are too small for them.
        large_side: Of the real frames in pixels.
        small_side: Of the frames that are enlarged for `quality`.
        moving_side: Of the frames that are enlarged for `stillness`.
    """

    default: str
    quality: list[Quality]
    decoded: Mapping[float, list[Quality]]
    stillness: list[FlickerScore]
    finished: list[TemporalStats]
    tiling: Tiling | None
    large_side: int
    small_side: int
    moving_side: int


@dataclass(frozen=True, kw_only=True)
class UpscalerEvaluation:
    """What is evaluated and on what.

    Attributes:
        pipeline: A model with an upscaler.
        data: Folder of large clips; the held-out are used.
        clips: How many, each once and on a plain background.
        frames: Frames in a row of each.
        steps: Numbers of diffusion steps that are compared; the default is added.
        moving: Folder of small clips with all their frames, for flicker; None shrinks `data`.
        moving_clips: How many of these.
        moving_frames: Frames in a row of each of these.
        seed: Of the draw of clips and of frames; the noise of clip k has the seed k.
        latent_noises: Deviations of noise on the latents through which small frames pass for
            `decoded`; of none it is left out.
        generated: How many videos are generated for `finished`, of captions of `moving`; of none
            it is left out.
    """

    pipeline: MagicVideoPipeline
    data: Path
    clips: int
    frames: int
    steps: tuple[int, ...]
    moving: Path | None
    moving_clips: int
    moving_frames: int
    seed: int
    latent_noises: tuple[float, ...] = ()
    generated: int = 0

    def run(self, progress: Callable[[str, int, int], None]) -> UpscalerScores:
        """Score everything.

        Raises:
            UserError: If the model has no upscaler, or the data do not fit it or are too few.
        """
        pipeline, factor = self.pipeline, check_upscaler(self.pipeline)
        dataset = ClipDataset(self.data, ("heldout",))
        moving = ClipDataset(self.moving, ("heldout",)) if self.moving else dataset
        default = pipeline.capabilities.default_upscaler_steps
        curve = [network_method(pipeline, steps) for steps in sorted({*self.steps, default})]
        chosen, resized = network_method(pipeline, default), resize_methods(pipeline)
        moving_prompts = sample_prompts(moving, self.moving_clips, self.seed)
        asked = sample_prompts(moving, self.generated, self.seed)
        prompts = sample_prompts(dataset, self.clips, self.seed)
        if self.latent_noises:
            check_vae_divisible(pipeline, dataset.info.size // factor)

        def score(ways: Sequence[UpscaleMethod], what: str) -> list[Quality]:
            return score_quality(
                ways,
                pipeline.image_encoder,
                real_videos(dataset, prompts, self.frames, 1),
                factor,
                lambda done: progress(what, done, self.clips),
            )

        quality = score([*curve, *resized], "quality")
        decoded = {
            noise: score(
                [with_vae_roundtrip(pipeline, way, noise) for way in (chosen, *resized)],
                f"quality of decoded frames, noise {noise:g}",
            )
            for noise in self.latent_noises
        }
        stillness = score_static_flicker(
            [chosen, *resized],
            real_videos(moving, moving_prompts, self.moving_frames, 1),
            factor,
            is_large=self.moving is None,
            on_clip=lambda done: progress("flicker", done, self.moving_clips),
        )
        finished = score_generated_flicker(
            pipeline, moving, asked, lambda done: progress("generated", done, self.generated)
        )
        # a large frame in the part of a small one: frames of the small size have no need of tiles
        large = next(real_videos(dataset, prompts[:1], 1, 1))
        side = moving.info.size
        return UpscalerScores(
            default=chosen.name,
            quality=quality,
            decoded=decoded,
            stillness=stillness,
            finished=finished,
            tiling=score_tiles(pipeline, large, default, self.seed),
            large_side=dataset.info.size,
            small_side=dataset.info.size // factor,
            moving_side=side if self.moving else side // factor,
        )
