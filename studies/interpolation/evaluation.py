"""Evaluate the interpolator: inserted frames against real frames, and the pulse at key frames.

The pulse is the change at key frames divided by the change elsewhere. It is measured on generated
key frames, because each of them has an independent error that the inserted frames must bridge.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from magicvideo.data.dataset import ClipDataset
from magicvideo.diffusion.noise import seeded_generator
from magicvideo.diffusion.sampling import interleave_frames, pair_keyframes
from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import Estimate, mean, ratio_of_means
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.metrics.distribution import fit_gaussian, frechet_distance
from magicvideo.evaluation.metrics.image_quality import psnr, ssim
from magicvideo.evaluation.metrics.motion import LEVELS, corner_mask, flicker
from magicvideo.evaluation.prompt_sets import (
    Prompt,
    from_uint8,
    real_videos,
    sample_prompts,
    to_uint8,
)
from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.conditioning import encode_text
from magicvideo.models.interpolator import lerp_keyframes
from magicvideo.pipelines.keyframes import noise_keyframes
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.shapes import Frames, Latents
from studies.paired_comparison import MethodSamples, Rows

LATENT_BLEND, PIXEL_BLEND = "linear interpolation of latents", "linear interpolation of pixels"
ESTIMATE, NEAREST, UPPER_BOUND = "estimate alone", "nearest key frame", "decoded real frames"
REAL = "real clips"


def network_label(steps: int) -> str:
    """Return the name of the interpolation network with a number of diffusion steps."""
    return f"interpolation network, {steps} step{'s' if steps > 1 else ''}"


def run_all_methods(
    pipeline: MagicVideoPipeline,
    real: Frames,
    prompt: Prompt,
    fps: float,
    steps: Sequence[int],
) -> dict[str, Float[Tensor, "1 f 3 h w"]]:
    """Return the clip interpolated by every method."""
    assert pipeline.interpolator is not None
    inserted = pipeline.interpolator.config.num_inserted
    latents = encode_frames(pipeline.vae, real)
    keys = latents[:, :: inserted + 1]
    decoded = decode_latents(pipeline.vae, latents)
    decoded_keys = decoded[:, :: inserted + 1]
    nearest = torch.arange(real.shape[1]).add((inserted + 1) // 2) // (inserted + 1)
    found = {
        network_label(count): decode_latents(
            pipeline.vae, _interpolate(pipeline, keys, prompt, fps, count)
        )
        for count in steps
    }
    return found | {
        ESTIMATE: decode_latents(pipeline.vae, _estimate(pipeline, keys, prompt.seed)),
        LATENT_BLEND: decode_latents(pipeline.vae, blend_keys(keys, inserted)),
        PIXEL_BLEND: blend_keys(decoded_keys, inserted),
        NEAREST: decoded_keys[:, nearest],
        UPPER_BOUND: decoded,
    }


def blend_keys(keys: Float[Tensor, "b keys c h w"], inserted: int) -> Float[Tensor, "b all c h w"]:
    """Return key frames, as latents or pixels, and linear interpolations between them."""
    return interleave_frames(keys, lerp_keyframes(pair_keyframes(keys), inserted))


def _interpolate(
    pipeline: MagicVideoPipeline, keys: Latents, prompt: Prompt, fps: float, steps: int
) -> Float[Tensor, "b all c h w"]:
    settings = GenerationSettings(
        num_frames=keys.shape[1],
        fps=fps,
        stages=("keyframes", "interpolation"),
        interpolation_steps=steps,
    )
    request = pipeline.build_requests([prompt.caption], [prompt.seed], settings)[0]
    tokens = encode_text(pipeline.text_encoder, pipeline.tokenizer, [prompt.caption])
    return pipeline.interpolate(request, keys, tokens)


def _estimate(
    pipeline: MagicVideoPipeline, keys: Latents, seed: int
) -> Float[Tensor, "b all c h w"]:
    """Return the network's estimate without diffusion, with the default noise on the key frames."""
    assert pipeline.interpolator is not None
    level = pipeline.config.interpolation_noise_level
    seen = noise_keyframes(keys, pipeline.scheduler, level, seeded_generator("estimate", seed))
    pairs = pair_keyframes(keys)
    levels = torch.full((len(pairs),), level, device=keys.device)
    estimated, _ = pipeline.interpolator.estimate(pairs, pair_keyframes(seen), levels)
    return interleave_frames(keys, estimated)


@dataclass(frozen=True, kw_only=True)
class PulseScore:
    """The pulse of one method between generated key frames, or that of the real clips.

    Attributes:
        name: The method, or `REAL`.
        whole: Mean change between frames at key frames, divided by that elsewhere.
        in_corners: The same for the corners; NaN if nothing changes elsewhere.
        flicker: Mean change of the corners from frame to frame, in levels of 255.
    """

    name: str
    whole: Estimate
    in_corners: Estimate
    flicker: Estimate


@torch.no_grad()
def score_pulse(
    pipeline: MagicVideoPipeline,
    dataset: ClipDataset,
    count: int,
    *,
    noise_levels: Sequence[int],
    seed: int,
    on_video: Callable[[int], None],
) -> list[PulseScore]:
    """Generate key frames with the default settings, interpolate them, and measure the pulse.

    The key frames of a prompt are generated once, for all methods. Videos are decoded at the size
    of the key frames, rounded to 8 bits, and not encoded.

    Args:
        pipeline: A model with an interpolator.
        dataset: Has the prompts and the real clips, whose row is the last.
        count: Number of videos.
        noise_levels: Timesteps of the noise on the key frames on which the network is conditioned;
            each is a separate method.
        seed: Seed of the choice of prompts; the noise of video k has the seed k.
        on_video: Called with the number of finished prompts.

    Raises:
        UserError: If the model has no interpolator, or there are too few clips.
    """
    check_interpolator(pipeline)
    prompts = sample_prompts(dataset, count, seed)
    requests = [_request(pipeline, prompt) for prompt in prompts]
    inserted, num_frames = requests[0].num_inserted, requests[0].video_frames
    figures: dict[str, list[list[float]]] = {}
    reals = real_videos(dataset, prompts, num_frames, 1)
    for done, (request, real) in enumerate(zip(requests, reals, strict=True), start=1):
        for name, video in (
            *_interpolated_videos(pipeline, request, noise_levels),
            (REAL, real),
        ):
            figures.setdefault(name, []).append(_figures(video, inserted))
        on_video(done)
    return [_pulse_summary(name, np.array(found)) for name, found in figures.items()]


def check_interpolator(pipeline: MagicVideoPipeline) -> int:
    """Return how many frames a model inserts between two key frames.

    Raises:
        UserError: If the model has no interpolator.
    """
    if pipeline.interpolator is None:
        raise UserError("This model has no interpolation network; name another with --model.")
    return int(pipeline.interpolator.config.num_inserted)


def changes_at_keys(
    video: Float[Tensor, "f 3 h w"], inserted: int, region: Bool[Tensor, "h w"] | None = None
) -> tuple[float, float]:
    """Return the mean absolute change between frames at key frames, and elsewhere.

    A change is at a key frame if one of the two frames is a key frame.

    Args:
        video: Pixels in [-1, 1]; the first frame is a key frame.
        inserted: Frames between two key frames. If it is 1, all changes are at key frames, and the
            change elsewhere is NaN.
        region: Mask of the pixels that count; None is all.
    """
    seen = video.flatten(start_dim=-2) if region is None else video[..., region]
    changes = seen.double().diff(dim=0).abs().mean(dim=(1, 2))
    is_key = torch.arange(len(video)) % (inserted + 1) == 0
    at_key = is_key[1:] | is_key[:-1]
    return changes[at_key].mean().item(), changes[~at_key].mean().item()


def _request(pipeline: MagicVideoPipeline, prompt: Prompt) -> Request:
    settings = GenerationSettings(stages=("keyframes", "interpolation"))
    return pipeline.build_requests([prompt.caption], [prompt.seed], settings)[0]


def _interpolated_videos(
    pipeline: MagicVideoPipeline, request: Request, noise_levels: Sequence[int]
) -> Iterator[tuple[str, Float[Tensor, "f 3 h w"]]]:
    """Yield one video for each method, all with the same key frames."""
    tokens, negative_tokens = pipeline.encode_condition(request)
    keys = pipeline.sample_keyframes(request, tokens, negative_tokens)
    for level in noise_levels:
        latents = pipeline.interpolate(request, keys, tokens, noise_level=level)
        yield f"interpolation network, noise level {level}", _decode_to_8_bits(pipeline, latents)
    blended = blend_keys(keys, request.num_inserted)
    yield LATENT_BLEND, _decode_to_8_bits(pipeline, blended)


def _decode_to_8_bits(
    pipeline: MagicVideoPipeline, latents: Float[Tensor, "1 all c h w"]
) -> Float[Tensor, "all 3 tall wide"]:
    return from_uint8(to_uint8(pipeline.decode(latents)[0].cpu()))


def _figures(video: Float[Tensor, "f 3 h w"], inserted: int) -> list[float]:
    region = corner_mask(*video.shape[-2:])
    return [
        *changes_at_keys(video, inserted),
        *changes_at_keys(video, inserted, region),
        flicker(video[None], region).item(),
    ]


def _pulse_summary(name: str, figures: Float[np.ndarray, "n 5"]) -> PulseScore:
    at_keys, elsewhere, corners_at_keys, corners_elsewhere, flickers = figures.T
    return PulseScore(
        name=name,
        whole=ratio_of_means(at_keys, elsewhere),
        in_corners=ratio_of_means(corners_at_keys, corners_elsewhere),
        flicker=mean(LEVELS * flickers),
    )


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """The scores of one method.

    Attributes:
        name: The method, or `REAL`.
        psnr: In dB, of the inserted frames, mean over clips; None for the real clips themselves.
        ssim: Structural similarity of the inserted frames; None for the real clips themselves.
        samples: PSNR and SSIM of each clip and the features of `of_gaps`, for paired comparisons.
        of_gaps: Frechet distance to the real clips. A sample is a gap: the judge's features of all
            its frames in order, with both key frames.
        of_clips: Frechet distance to the real clips. A sample is a clip; its features depend on few
            of the frames and hardly on their order.
        pulse: Mean change between frames at key frames, divided by that elsewhere.
    """

    name: str
    psnr: Estimate | None
    ssim: Estimate | None
    samples: MethodSamples
    of_gaps: float
    of_clips: float
    pulse: Estimate


@torch.no_grad()
def score_interpolation(
    pipeline: MagicVideoPipeline,
    judge: Judge,
    dataset: ClipDataset,
    count: int,
    *,
    num_keys: int,
    steps: Sequence[int],
    seed: int,
    on_clip: Callable[[int], None],
) -> list[MethodScores]:
    """Interpolate real key frames with every method and compare with the real frames.

    Key frames are real frames after encoding and decoding, the same for all methods. The last two
    rows are the decoded latents of the real frames, which is the upper bound for methods on
    latents, and the real clips, whose pulse is the reference.

    Args:
        pipeline: A model with an interpolator.
        judge: Computes the features of the Frechet distances.
        dataset: Clips on which only the judge was trained.
        count: Number of clips; each is used once, on a plain background.
        num_keys: Key frames per clip.
        steps: Numbers of diffusion steps to compare; each is a separate method.
        seed: Seed of the choice of clips and of the networks' noise.
        on_clip: Called with the number of finished clips.

    Raises:
        UserError: If the model has no interpolator, or there are too few clips.
    """
    inserted = check_interpolator(pipeline)
    num_frames = num_keys + (num_keys - 1) * inserted
    prompts = sample_prompts(dataset, count, seed)
    videos = real_videos(dataset, prompts, num_frames, 1)
    real_gaps: list[Rows] = []
    measured: dict[str, _Measurements] = {}
    for done, (prompt, video) in enumerate(zip(prompts, videos, strict=True), start=1):
        real = video[None]
        fps = dataset.clips[prompt.index].fps / (inserted + 1)
        filled = run_all_methods(pipeline, real.to(pipeline.device), prompt, fps, steps)
        for name, made in {**filled, REAL: real}.items():
            read = from_uint8(to_uint8(made[0].cpu()))[None]
            found = measured.setdefault(name, _Measurements(MethodSamples(real_gaps)))
            found.add(read, real, inserted, judge)
        real_gaps.append(measured[REAL].samples.features[-1])
        on_clip(done)
    return [_summary(name, found, measured[REAL]) for name, found in measured.items()]


@dataclass
class _Measurements:
    """The measurements of one method on all clips."""

    samples: MethodSamples
    changes: list[tuple[float, float]] = field(default_factory=list)
    """Change at key frames and elsewhere, per clip."""
    clips: list[Rows] = field(default_factory=list)

    def add(self, made: Frames, real: Frames, inserted: int, judge: Judge) -> None:
        """Measure one more clip; both videos have a batch size of 1."""
        of_frames = judge.embed_videos(made[0, :, None])
        gaps = of_frames.unfold(0, inserted + 2, inserted + 1).flatten(start_dim=1)
        between = torch.arange(made.shape[1]) % (inserted + 1) != 0
        ours, theirs = made[:, between], real[:, between]
        self.samples.add(psnr(ours, theirs).item(), ssim(ours[0], theirs[0]), gaps.double().numpy())
        self.changes.append(changes_at_keys(made[0], inserted))
        self.clips.append(judge.embed_videos(made).double().numpy())


def _summary(name: str, found: _Measurements, real: _Measurements) -> MethodScores:
    samples, is_real = found.samples, found is real
    at_keys, elsewhere = np.array(found.changes).T
    made, goal = (fit_gaussian(np.concatenate(each.clips)) for each in (found, real))
    return MethodScores(
        name=name,
        psnr=None if is_real else mean(np.array(samples.psnr)),
        ssim=None if is_real else mean(np.array(samples.ssim)),
        samples=samples,
        of_gaps=samples.frechet,
        of_clips=frechet_distance(made, goal),
        pulse=ratio_of_means(at_keys, elsewhere),
    )


@dataclass(frozen=True, kw_only=True)
class InterpolationScores:
    """All scores.

    Attributes:
        methods: Scores of every method between real key frames, and of the real clips.
        pulses: Pulse of the methods between generated key frames, and of the real clips; may be
            empty.
    """

    methods: list[MethodScores]
    pulses: list[PulseScore]


@dataclass(frozen=True, kw_only=True)
class InterpolationEvaluation:
    """The model, the clips and the settings of the evaluation.

    Attributes:
        pipeline: A model with an interpolator.
        judge: Computes the features of the Frechet distances.
        data: Folder of clips; the held-out clips are used.
        clips: Number of clips, each used once and on a plain background.
        keys: Key frames per clip.
        steps: Numbers of diffusion steps to compare.
        generated: Number of videos to generate for `pulses`.
        noise_levels: Timesteps of the noise on generated key frames on which the network is
            conditioned.
        seed: Seed of the choice of clips; the noise of clip or video k has the seed k.
    """

    pipeline: MagicVideoPipeline
    judge: Judge
    data: Path
    clips: int
    keys: int
    steps: tuple[int, ...]
    generated: int
    noise_levels: tuple[int, ...]
    seed: int

    def run(self, progress: Callable[[str, int, int], None]) -> InterpolationScores:
        """Score everything.

        Raises:
            UserError: If the model has no interpolator, or there are too few clips.
        """
        dataset = ClipDataset(self.data, ("heldout",))
        # fail now rather than after the first half if there are too few clips for the second
        sample_prompts(dataset, max(self.clips, self.generated), self.seed)
        methods = score_interpolation(
            self.pipeline,
            self.judge,
            dataset,
            self.clips,
            num_keys=self.keys,
            steps=self.steps,
            seed=self.seed,
            on_clip=lambda done: progress("interpolation", done, self.clips),
        )
        pulses = []
        if self.generated:
            pulses = score_pulse(
                self.pipeline,
                dataset,
                self.generated,
                noise_levels=self.noise_levels,
                seed=self.seed,
                on_video=lambda done: progress("generated", done, self.generated),
            )
        return InterpolationScores(methods=methods, pulses=pulses)
