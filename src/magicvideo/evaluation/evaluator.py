"""The evaluation of a model by a protocol."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float

from magicvideo.atomic_io import hash_folder
from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import Split
from magicvideo.errors import UserError
from magicvideo.evaluation.benchmark.features import EXTRAPOLATION, SEEDS, rate_metadata
from magicvideo.evaluation.benchmark.prompts import prompts_hash
from magicvideo.evaluation.confidence_intervals import CONFIDENCE, RESAMPLES, SEED, mean
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.metrics.distribution import Features
from magicvideo.evaluation.metrics.image_quality import psnr
from magicvideo.evaluation.prompt_sets import (
    Prompt,
    background_only_videos,
    from_uint8,
    real_videos,
    rival_captions,
    sample_prompts,
    to_uint8,
)
from magicvideo.evaluation.protocol import (
    AutoencoderSet,
    PromptSet,
    Protocol,
    ScoreName,
    TargetRange,
)
from magicvideo.evaluation.provenance import provenance
from magicvideo.evaluation.scores import (
    CaptionPools,
    FeatureSets,
    Score,
    extract_features,
    score_videos,
)
from magicvideo.evaluation.subjects import Subjects
from magicvideo.evaluation.video_cache import generate_cached
from magicvideo.models.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_frames,
    vae_scale_factor,
)
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.shapes import Frames


@torch.no_grad()
def score_autoencoder(
    autoencoder: Autoencoder, dataset: ClipDataset, count: int, num_frames: int, seed: int
) -> Score:
    """Return the mean PSNR of reconstructed clips.

    The upper bound is the clips rounded to 8 bits; chance is each frame's mean colour.

    Raises:
        UserError: If there are fewer than `count` clips, or the autoencoder cannot take their size.
    """
    _check_size(autoencoder, dataset)
    if count > len(dataset):
        raise UserError(
            f"The protocol reconstructs {count} clips, but {dataset.folder} has {len(dataset)} in "
            "this split; prepare more data or ask for fewer."
        )
    figures = []
    for place, index in enumerate(np.random.default_rng(seed).permutation(len(dataset))[:count]):
        rng = np.random.default_rng((seed, place))
        frames = dataset.sample(int(index), rng, num_frames=num_frames).frames[None]
        figures.append(_three_figures(autoencoder, frames))
    measured, rounded, flat = np.array(figures).T
    return Score(
        name="psnr",
        network="none",
        measured=mean(measured),
        real=mean(rounded),
        chance=mean(flat),
        chance_is="the mean colour of each frame",
    )


def _check_size(autoencoder: Autoencoder, dataset: ClipDataset) -> None:
    """Refuse clips that an autoencoder cannot encode.

    Raises:
        UserError: If a side of the frames is not a multiple of the autoencoder's factor.
    """
    size, factor = dataset.info.frame_size, vae_scale_factor(autoencoder)
    if any(side % factor for side in size):
        raise UserError(
            f"The clips of {dataset.folder} have the size {size}, and this model's autoencoder "
            f"needs multiples of {factor} pixels; prepare them with another --size."
        )


def _three_figures(autoencoder: Autoencoder, frames: Frames) -> Float[np.ndarray, "3"]:
    code = encode_frames(autoencoder, frames)
    decoded = decode_latents(autoencoder, code)
    candidates = (
        from_uint8(to_uint8(decoded[0]))[None],
        from_uint8(to_uint8(frames[0]))[None],
        frames.mean(dim=(-2, -1), keepdim=True).expand_as(frames),
    )
    return np.array([psnr(candidate, frames).item() for candidate in candidates])


Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being made, the count done and the count in all."""

_REFERENCE_SEED = 1  # apart from the seed of the prompts' own draw
_ALL: tuple[Split, ...] = ("train", "validation", "heldout")


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """The scores of one set and their targets.

    Attributes:
        name: Of the set.
        scores: In the order of the table.
        targets: Of the protocol, by score.
        fps: Frames per second of the generated videos, and of the real clips before the protocol's
            stride thins them: least, mean, most. Empty where no video is generated.
    """

    name: str
    scores: list[Score]
    targets: Mapping[ScoreName, TargetRange]
    fps: Mapping[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """All scores with their protocol and provenance."""

    protocol: Protocol
    sets: list[SetResult]
    identity: dict[str, Any]
    """Hashes of model, judge, data and prompts, how the judge reads, and versions."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The prompts and clips of one set.

    Attributes:
        dataset: The clips that the prompts are drawn from.
        prompts: One for each video.
        whole: The clips of all splits.
        reference: Real clips of `whole` that belong to no prompt of the set.
    """

    dataset: ClipDataset
    prompts: list[Prompt]
    whole: ClipDataset
    reference: list[Prompt]


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A model, the judge that scores it, and the data.

    Attributes:
        protocol: Everything that decides the numbers.
        pipeline: The model.
        judge: An independent video-text matcher.
        data: Folder of prepared clips.
        work: Folder where generated videos are kept, so that a stopped evaluation continues.
    """

    protocol: Protocol
    pipeline: MagicVideoPipeline
    judge: Judge
    data: Path
    work: Path

    def requests(self) -> list[Request]:
        """Return the request for each video of all sets.

        Raises:
            UserError: If the model or the data cannot give what the protocol asks for.
        """
        requests = []
        for prompt_set in self.protocol.sets:
            drawn = self.draw(prompt_set)
            requests += [
                self.request(drawn.dataset, prompt, prompt_set) for prompt in drawn.prompts
            ]
        return requests

    def run(self, progress: Progress) -> list[SetResult]:
        """Score every set, and the autoencoder.

        Raises:
            UserError: If the model or the data cannot give what the protocol asks for.
        """
        sets = [self.score_set(prompt_set, progress) for prompt_set in self.protocol.sets]
        return [*sets, self.score_autoencoder(self.protocol.autoencoder)]

    def score_set(self, prompt_set: PromptSet, progress: Progress) -> SetResult:
        """Generate the videos of one set and score them.

        Raises:
            UserError: If the model or the data cannot give what is asked for.
        """
        judge, drawn, vae = self.judge, self.draw(prompt_set), self.pipeline.vae
        dataset, prompts = drawn.dataset, drawn.prompts
        num_frames, stride = self.shape(prompt_set)
        requests = [self.request(dataset, prompt, prompt_set) for prompt in prompts]
        generated = generate_cached(
            self.pipeline,
            requests,
            self.work,
            lambda done: progress(prompt_set.name, done, len(requests)),
        )
        still = background_only_videos(prompts, num_frames, dataset.info.frame_size)
        videos = FeatureSets(
            prompts=prompts,
            generated=extract_features(judge, generated, vae),
            real=extract_features(judge, real_videos(dataset, prompts, num_frames, stride), vae),
            empty=extract_features(judge, still, vae),
        )
        scores = score_videos(
            judge,
            videos,
            self.pools(drawn),
            self.reference_features(drawn, num_frames, stride),
            self.protocol,
        )
        made = [request.video_fps for request in requests]
        real = [dataset.clips[prompt.index].fps for prompt in prompts]
        return SetResult(
            name=prompt_set.name,
            scores=scores,
            targets=prompt_set.targets,
            fps={"generated": rate_metadata(made), "real": rate_metadata(real)},
        )

    def shape(self, prompt_set: PromptSet) -> tuple[int, int]:
        """Return the count of frames of a set's videos, and the stride of real clips at their rate.

        Raises:
            UserError: If real clips have no frames where the interpolation puts some.
        """
        protocol = self.protocol
        if "interpolation" not in prompt_set.stages:
            return protocol.num_frames, protocol.stride
        pace = self.pipeline.capabilities.num_inserted + 1
        if protocol.stride % pace:
            raise UserError(
                f"The set {prompt_set.name!r} compares {pace} frames for each key frame with real "
                f"clips, whose key frames are {protocol.stride} frames apart; take a stride that "
                f"is a multiple of {pace}, or leave interpolation out of the set."
            )
        return (protocol.num_frames - 1) * pace + 1, protocol.stride // pace

    def draw(self, prompt_set: PromptSet) -> EvaluationSet:
        """Draw prompts, their pools and the reference clips of one set.

        Raises:
            UserError: If there are too few clips or captions.
        """
        protocol = self.protocol
        dataset = ClipDataset(self.data, (prompt_set.split,), captioned=True)
        _check_size(self.pipeline.vae, dataset)
        prompts = sample_prompts(dataset, prompt_set.prompts, protocol.seed, prompt_set.wording)
        whole = ClipDataset(self.data, _ALL, captioned=True)
        asked = {dataset.clips[prompt.index].id for prompt in prompts}
        others = [
            prompt
            for prompt in sample_prompts(whole, len(whole), protocol.seed + _REFERENCE_SEED)
            if whole.clips[prompt.index].id not in asked
        ]
        if len(others) < protocol.reference_clips:
            raise UserError(
                f"The protocol asks for {protocol.reference_clips} reference clips, but "
                f"{self.data} has {len(others)} besides those of the {len(prompts)} prompts; "
                "prepare more data or ask for fewer."
            )
        return EvaluationSet(
            dataset=dataset,
            prompts=prompts,
            whole=whole,
            reference=others[: protocol.reference_clips],
        )

    def pools(self, drawn: EvaluationSet) -> CaptionPools:
        """Return the pool of captions of each prompt, drawn from all subjects.

        Raises:
            UserError: If there are fewer subjects than a pool needs.
        """
        free, on_one_background = (
            rival_captions(
                drawn.whole,
                self.subjects,
                drawn.prompts,
                self.protocol.pool_size,
                self.protocol.seed,
                on_one_background=is_one,
            )
            for is_one in (False, True)
        )
        return CaptionPools(free=free, on_one_background=on_one_background)

    @cached_property
    def subjects(self) -> Subjects:
        """The subjects of all clips."""
        return Subjects(ClipDataset(self.data, _ALL, captioned=True))

    def request(self, dataset: ClipDataset, prompt: Prompt, prompt_set: PromptSet) -> Request:
        """Return the request for a prompt's video, at the pace of its real clip."""
        protocol = self.protocol
        settings = GenerationSettings(
            num_frames=protocol.num_frames,
            fps=dataset.clips[prompt.index].fps / protocol.stride,
            num_inference_steps=protocol.num_inference_steps,
            guidance_scale=protocol.guidance_scale,
            guidance_stop=protocol.guidance_stop,
            scheduler=protocol.scheduler,
            stages=prompt_set.stages,
        )
        # not the pipeline's own plan, which would hint at words each time that it is asked
        return self.pipeline.capabilities.build_requests(
            [prompt.text], [prompt.seed], settings, None
        )[0]

    def reference_features(self, drawn: EvaluationSet, num_frames: int, stride: int) -> Features:
        """Return the judge's features of the real reference clips."""
        videos = real_videos(drawn.whole, drawn.reference, num_frames, stride)
        found = [self.judge.embed_videos(video[None]).double().numpy() for video in videos]
        return np.concatenate(found) if found else np.zeros((0, self.judge.config.feature_width))

    def score_autoencoder(self, wanted: AutoencoderSet) -> SetResult:
        """Score the model's autoencoder alone."""
        dataset = ClipDataset(self.data, (wanted.split,))
        protocol = self.protocol
        score = score_autoencoder(
            self.pipeline.vae, dataset, wanted.clips, protocol.num_frames, protocol.seed
        )
        name = f"autoencoder, clips of the {wanted.split} split"
        return SetResult(name=name, scores=[score], targets=wanted.targets)

    def metadata(self) -> dict[str, Any]:
        """Return what results depend on and no protocol sets: prompts, judge, seeds, intervals."""
        return {
            "prompts": {
                prompt_set.name: prompts_hash(
                    [prompt.text for prompt in self.draw(prompt_set).prompts]
                )
                for prompt_set in self.protocol.sets
            },
            "judge preprocessing": self.judge.preprocessing,
            "seeds": SEEDS,
            "intervals": {
                "confidence": CONFIDENCE,
                "seed": SEED,
                "resamples of means": RESAMPLES,
            },
            "extrapolation": EXTRAPOLATION | {"seed": SEED},
        }


def evaluate(evaluation: Evaluator, judge_folder: Path, progress: Progress) -> EvaluationResult:
    """Run an evaluation and return its result with its provenance."""
    return EvaluationResult(
        protocol=evaluation.protocol,
        sets=evaluation.run(progress),
        identity=provenance(
            {"model": evaluation.pipeline.model_hash, "judge": hash_folder(judge_folder)},
            {"data": evaluation.data},
            evaluation.pipeline.device.type,
        )
        | evaluation.metadata(),
    )
