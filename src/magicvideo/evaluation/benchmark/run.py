"""A benchmark run: prompts, generated or existing videos, real clips, scores."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

from magicvideo.errors import ClipError, UserError
from magicvideo.evaluation.benchmark.features import (
    SEEDS,
    Captioned,
    ClipFeatures,
    ClipTensor,
    FeatureNetworks,
    GeneratedSet,
    clip_metadata,
    extract_features,
    network_metadata,
    preprocess_clip,
)
from magicvideo.evaluation.benchmark.prompts import (
    BenchmarkPrompt,
    caption_of,
    class_counts,
    find_external_videos,
    prepared_side,
    prompts_hash,
    read_clip_pixels,
    reference_clips,
    sample_prompts,
)
from magicvideo.evaluation.benchmark.protocol import Benchmark
from magicvideo.evaluation.benchmark.scores import MetricResult, score
from magicvideo.evaluation.prompt_sets import to_uint8
from magicvideo.evaluation.video_cache import generate_cached
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

Progress: TypeAlias = Callable[[str, int, int], None]
RealClips: TypeAlias = tuple[ClipFeatures, dict[str, Any]]
"""What the networks see in the real clips, and which clips these are."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """All scores with their metadata.

    Attributes:
        benchmark: Everything that was asked for.
        model: What was scored, for people.
        metrics: The scores.
        generated: Of the generated videos: count, prompts, classes, rates, hash; settings and
            seeds where they were made here.
        real: Of the real clips: count, files left out, captions, classes, rates, hash, container,
            and the side of the frames where they were prepared.
        networks: Of the networks used: which features they give, of what size.
        caveats: Deviations from the benchmark; empty if there is none.
    """

    benchmark: Benchmark
    model: str
    metrics: list[MetricResult]
    generated: dict[str, Any]
    real: dict[str, Any]
    networks: dict[str, dict[str, str]]
    caveats: list[str]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRun:
    """What is scored, by what and against what.

    Attributes:
        benchmark: Everything that decides the numbers.
        networks: The feature networks.
        reference: Folder of the data set.
        work: Folder where generated videos are kept.
        samples: The first so many prompts alone, or None for all.
        allow_fewer: Whether to score fewer videos or real clips than asked for, with a caveat.
    """

    benchmark: Benchmark
    networks: FeatureNetworks
    reference: Path
    work: Path
    samples: int | None = None
    allow_fewer: bool = False

    def prompts(self) -> list[BenchmarkPrompt]:
        """Return what is asked for.

        Raises:
            UserError: If the data set has fewer prompts than the benchmark wants.
        """
        chosen = self._drawn()[: self.samples]
        self._check_count(len(chosen), self.benchmark.prompts.count, "prompts")
        return chosen

    def requests(self, pipeline: MagicVideoPipeline) -> list[Request]:
        """Return the request for each video.

        Raises:
            UserError: If the model cannot do what the benchmark asks, or makes too few frames.
        """
        wanted, capabilities = self.benchmark.generation, pipeline.capabilities
        stages = wanted.stages or capabilities.stages
        inserted = capabilities.num_inserted if "interpolation" in stages else 0
        settings = GenerationSettings(
            num_frames=wanted.num_frames,
            fps=wanted.video_fps / (inserted + 1) if wanted.video_fps else None,
            num_inference_steps=wanted.num_inference_steps,
            guidance_scale=wanted.guidance_scale,
            guidance_stop=wanted.guidance_stop,
            scheduler=wanted.scheduler,
            stages=stages,
        )
        asked = self.prompts()
        prompts, seeds = [one.prompt for one in asked], [one.seed for one in asked]
        # not the pipeline's own plan, which hints at words for every one of thousands of prompts
        return capabilities.build_requests(prompts, seeds, settings, None)

    def score_model(
        self,
        pipeline: MagicVideoPipeline,
        requests: list[Request],
        name: str,
        real: RealClips,
        progress: Progress,
    ) -> BenchmarkResult:
        """Score the cached videos of a model against the features of real clips."""
        kept = generate_cached(pipeline, requests, self.work, lambda _: None)
        clips = (
            (self._cut(to_uint8(video).numpy(), request.prompt), request.prompt)
            for video, request in zip(kept, requests, strict=True)
        )
        settings = {
            name: value
            for name, value in asdict(requests[0]).items()
            if name not in ("prompt", "seed", "image_condition", "output_scale")
        }
        prompts = [request.prompt for request in requests]
        videos = GeneratedSet(
            maker=name,
            clips=clips,
            prompts=prompts,
            rates=[request.video_fps for request in requests],
            about={"settings": settings, "seeds": SEEDS, "container": "8-bit arrays"},
            caveats=[],
        )
        return self._score(videos, real, progress)

    def score_folder(self, folder: Path, progress: Progress) -> BenchmarkResult:
        """Score existing videos of any model.

        Raises:
            UserError: If there are too few, or one cannot be read.
        """
        made = find_external_videos(folder)[: self.samples]
        self._check_count(len(made), self.benchmark.prompts.count, "videos")

        rates: list[float] = []

        def clips() -> Iterator[Captioned]:
            for video in made:
                try:
                    found = read_clip_pixels(video.path)
                except ClipError as error:
                    raise UserError(f"{video.path} cannot be used: {error}.") from None
                rates.append(found.fps)
                yield self._cut(found.pixels, video.path.name), video.prompt

        prompts = [video.prompt for video in made]
        asked = [prompt.prompt for prompt in self._drawn()]
        is_part = Counter(prompts) <= Counter(asked)  # fewer have a mark of their own
        videos = GeneratedSet(
            maker=folder.resolve().name,
            clips=clips(),
            prompts=prompts,
            rates=rates,
            about={
                "asked_prompts_sha256": prompts_hash(asked),
                "container": ", ".join(sorted({video.path.suffix for video in made})),
            },
            caveats=[] if is_part else ["prompts of its own"],
        )
        return self._score(videos, self.extract_real_features(progress), progress)

    def _score(self, videos: GeneratedSet, real: RealClips, progress: Progress) -> BenchmarkResult:
        benchmark, prompts = self.benchmark, videos.prompts
        watched = _watched(videos.clips, "generated clips", len(prompts), progress)
        ours = extract_features(self.networks, watched, benchmark.preprocessing.image_frames)
        looks, facts = real
        classed = reference_clips(self.reference, benchmark.prompts.split)
        fewer = [
            f"{count} of {asked} {what}"
            for count, asked, what in (
                (len(prompts), benchmark.prompts.count, "videos"),
                (facts["count"], benchmark.reference.count, "real clips"),
            )
            if count < asked
        ]
        side = facts["prepared_side"]
        prepared = [] if side is None else [f"real clips were prepared at {side} pixels"]
        return BenchmarkResult(
            benchmark=benchmark,
            model=videos.maker,
            metrics=score(self.networks, ours, looks, benchmark.statistics),
            generated={
                "prompts_sha256": prompts_hash(prompts),
                **clip_metadata(ours, videos.rates, class_counts(benchmark, classed, prompts)),
                **videos.about,
            },
            real=facts,
            networks=network_metadata(self.networks, ours),
            caveats=[*fewer, *prepared, *videos.caveats],
        )

    def check(self) -> None:
        """Check before generation that the data set has enough clips.

        Raises:
            UserError: If it has too few prompts or real clips, or one clip of a kind that no
                network takes.
        """
        wanted = self.benchmark.reference
        self._check_count(
            len(reference_clips(self.reference, wanted.split)), wanted.count, "real clips"
        )
        self.prompts()

    def extract_real_features(self, progress: Progress) -> RealClips:
        """Extract the features of the real clips, which do not depend on generation settings.

        Raises:
            UserError: If too few can be used.
        """
        wanted = self.benchmark.reference
        clips = reference_clips(self.reference, wanted.split)
        order = np.random.default_rng(self.benchmark.seed).permutation(len(clips))
        rates: list[float] = []
        suffixes: set[str] = set()
        captions: list[str] = []
        skipped: dict[str, str] = {}

        def usable() -> Iterator[Captioned]:
            for clip in (clips[place] for place in order):
                if len(rates) == wanted.count:
                    return
                try:
                    found = read_clip_pixels(clip.path, clip.fps)
                    frames = preprocess_clip(found.pixels, self.benchmark.preprocessing)
                except ClipError as error:
                    skipped[clip.id] = str(error)
                    continue
                rates.append(found.fps)
                suffixes.add(clip.path.suffix)
                captions.append(caption_of(self.benchmark, clip))
                yield frames, captions[-1]

        total = min(wanted.count, len(clips))
        watched = _watched(usable(), "real clips", total, progress)
        found = extract_features(self.networks, watched, self.benchmark.preprocessing.image_frames)
        self._check_count(len(rates), wanted.count, "real clips that can be used")
        return found, {
            "folder": self.reference.resolve().name,
            "container": ", ".join(sorted(suffixes)),
            "prepared_side": prepared_side(self.reference),
            "skipped": skipped,
            "captions_sha256": prompts_hash(captions),
            **clip_metadata(found, rates, class_counts(self.benchmark, clips, captions)),
        }

    def _drawn(self) -> list[BenchmarkPrompt]:
        clips = reference_clips(self.reference, self.benchmark.prompts.split)
        return sample_prompts(self.benchmark, clips)

    def _cut(self, pixels: UInt8[np.ndarray, "f h w 3"], name: str) -> ClipTensor:
        try:
            return preprocess_clip(pixels, self.benchmark.preprocessing)
        except ClipError as error:
            raise UserError(
                f"The video {name[:60]!r} {error}; make longer videos, or take a protocol that "
                "uses fewer frames."
            ) from None

    def _check_count(self, count: int, wanted: int, what: str) -> None:
        if count < wanted and not self.allow_fewer:
            raise UserError(
                f"{self.benchmark.name} wants {wanted} {what}, and there are {count}; give more, "
                "or add --allow-fewer, and the result is marked."
            )


def _watched(
    clips: Iterator[Captioned], what: str, total: int, progress: Progress
) -> Iterator[Captioned]:
    for done, clip in enumerate(clips, start=1):
        yield clip
        progress(what, done, total)
