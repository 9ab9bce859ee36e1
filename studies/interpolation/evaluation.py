"""Evaluate the interpolator: inserted frames against real ones, and the pulse at keyframes.

The pulse is the change at keyframes against the change elsewhere. It is measured on generated
keyframes, since each of them has an error of its own that the inserted frames must bridge.
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

LATENT_BLEND, PIXEL_BLEND = "blend of latents", "blend of pixels"
ESTIMATE, NEAREST, UPPER_BOUND = "estimate alone", "nearest key frame", "decoded real frames"
REAL = "real clips"


def network_label(steps: int) -> str:
    """Return the name of our method with a number of diffusion steps."""
    return f"interpolation network, {steps} step{'s' if steps > 1 else ''}"


def run_all_methods(
    pipeline: MagicVideoPipeline,
    real: Frames,
    prompt: Prompt,
    fps: float,
    steps: Sequence[int],
) -> dict[str, Float[Tensor, "1 f 3 h w"]]:
    """Return the clip as interpolated by every method."""
    assert pipeline.interpolator is not None
    inserted = pipeline.interpolator.config.num_inserted
    latents = encode_frames(pipeline.vae, real)
    keys = latents[:, :: inserted + 1]
    decoded = decode_latents(pipeline.vae, latents)
    decoded_keys = decoded[:, :: inserted + 1]
    nearest = torch.arange(real.shape[1]).add((inserted + 1) // 2) // (inserted + 1)
    found = {
        network_label(count): decode_latents(
            pipeline.vae, _ours(pipeline, keys, prompt, fps, count)
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
    """Return keys, latents or pixels, and between them their linear blends."""
    return interleave_frames(keys, lerp_keyframes(pair_keyframes(keys), inserted))


def _ours(
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
    """Return the network's estimate without diffusion, with the usual noise on the keys."""
    assert pipeline.interpolator is not None
    level = pipeline.config.interpolation_noise_level
    seen = noise_keyframes(keys, pipeline.scheduler, level, seeded_generator("estimate", seed))
    pairs = pair_keyframes(keys)
    levels = torch.full((len(pairs),), level, device=keys.device)
    estimated, _ = pipeline.interpolator.estimate(pairs, pair_keyframes(seen), levels)
    return interleave_frames(keys, estimated)


@dataclass(frozen=True, kw_only=True)
class PulseScore:
    """The pulse of one way to fill the gaps between generated keys, or that of the real clips.

    Attributes:
        name: The way, or `REAL`.
        whole: Mean change between frames at the keys, over that elsewhere.
        in_corners: The same of the corners alone; not a number where nothing changes elsewhere.
        flicker: Mean change of the corners from frame to frame, keys or not, in levels of 255.
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

    The key frames of a prompt are made once, for all ways. Videos are measured as decoded, in 8
    bits and the size of the key frames, and no codec touches them.

    Args:
        pipeline: A model with an interpolator.
        dataset: Gives the prompts, and the real clips at the end of the list.
        count: How many videos.
        noise_levels: Diffusion steps up to which the network's view of the keys is noised; each is
            a way of its own.
        seed: Of the draw of prompts; the noise of video k has the seed k.
        on_video: Called with the number of prompts that are done.

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
        for name, video in (*_filled(pipeline, request, noise_levels), (REAL, real)):
            figures.setdefault(name, []).append(_figures(video, inserted))
        on_video(done)
    return [_pulse_summary(name, np.array(found)) for name, found in figures.items()]


def check_interpolator(pipeline: MagicVideoPipeline) -> int:
    """Return how many frames a model puts between two keys.

    Raises:
        UserError: If the model has no interpolator.
    """
    if pipeline.interpolator is None:
        raise UserError("This model has no interpolation network; name another with --model.")
    return int(pipeline.interpolator.config.num_inserted)


def changes_at_keys(
    video: Float[Tensor, "f 3 h w"], inserted: int, region: Bool[Tensor, "h w"] | None = None
) -> tuple[float, float]:
    """Return the mean absolute change to the next frame where one of both is a key, and elsewhere.

    Args:
        video: Pixels in [-1, 1]; the first frame is a key.
        inserted: Frames between two keys. Of a single one all changes are at keys, and the change
            elsewhere is not a number.
        region: Which pixels count; None is all.
    """
    seen = video.flatten(start_dim=-2) if region is None else video[..., region]
    changes = seen.double().diff(dim=0).abs().mean(dim=(1, 2))
    is_key = torch.arange(len(video)) % (inserted + 1) == 0
    at_key = is_key[1:] | is_key[:-1]
    return changes[at_key].mean().item(), changes[~at_key].mean().item()


def _request(pipeline: MagicVideoPipeline, prompt: Prompt) -> Request:
    settings = GenerationSettings(stages=("keyframes", "interpolation"))
    return pipeline.build_requests([prompt.caption], [prompt.seed], settings)[0]


def _filled(
    pipeline: MagicVideoPipeline, request: Request, noise_levels: Sequence[int]
) -> Iterator[tuple[str, Float[Tensor, "f 3 h w"]]]:
    """Yield one video for each way, all with the same key frames."""
    tokens, negative_tokens = pipeline.encode_condition(request)
    keys = pipeline.sample_keyframes(request, tokens, negative_tokens)
    for level in noise_levels:
        latents = pipeline.interpolate(request, keys, tokens, noise_level=level)
        yield f"interpolation network, noise level {level}", _shown(pipeline, latents)
    yield LATENT_BLEND, _shown(pipeline, blend_keys(keys, request.num_inserted))


def _shown(
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
        samples: Both clip by clip, and the features of `of_gaps`: what methods are compared by.
        of_gaps: Frechet distance to the real clips, whose samples are gaps: the judge's features of
            all their frames in order, keys included.
        of_clips: Frechet distance whose samples are whole clips. Of their frames it sees few, and
            hardly the order.
        pulse: Mean change between frames at the keys, over that elsewhere.
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

    Keys are real frames that passed the autoencoder, the same for all methods. The last rows are
    the ceiling of all that work on latents, which is the real frames through the autoencoder, and
    the real clips, whose pulse is what the others' are to be compared with.

    Args:
        pipeline: A model with an interpolator.
        judge: Gives the features of the Frechet distances.
        dataset: Clips on which nothing was trained but the judge.
        count: How many clips; each once, on a plain background.
        num_keys: Key frames of each.
        steps: Numbers of diffusion steps to try; each is a method of its own.
        seed: Of the draw, and of the networks' noise.
        on_clip: Called with the number of clips that are done.

    Raises:
        UserError: If the model has no interpolator, or there are too few clips.
    """
    inserted = check_interpolator(pipeline)
    num_frames = num_keys + (num_keys - 1) * inserted
    prompts = sample_prompts(dataset, count, seed)
    videos = real_videos(dataset, prompts, num_frames, 1)
    real_gaps: list[Rows] = []
    seen: dict[str, _Seen] = {}
    for done, (prompt, video) in enumerate(zip(prompts, videos, strict=True), start=1):
        real = video[None]
        fps = dataset.clips[prompt.index].fps / (inserted + 1)
        filled = run_all_methods(pipeline, real.to(pipeline.device), prompt, fps, steps)
        for name, made in {**filled, REAL: real}.items():
            read = from_uint8(to_uint8(made[0].cpu()))[None]
            seen.setdefault(name, _Seen(MethodSamples(real_gaps))).add(read, real, inserted, judge)
        real_gaps.append(seen[REAL].samples.features[-1])
        on_clip(done)
    return [_summary(name, found, seen[REAL]) for name, found in seen.items()]


@dataclass
class _Seen:
    """What was measured of one method, clip after clip."""

    samples: MethodSamples
    changes: list[tuple[float, float]] = field(default_factory=list)
    """That at keys and that elsewhere."""
    clips: list[Rows] = field(default_factory=list)

    def add(self, made: Frames, real: Frames, inserted: int, judge: Judge) -> None:
        """Measure one more clip; the sizes are 1 x frames x 3 x h x w."""
        of_frames = judge.embed_videos(made[0, :, None])
        gaps = of_frames.unfold(0, inserted + 2, inserted + 1).flatten(start_dim=1)
        between = torch.arange(made.shape[1]) % (inserted + 1) != 0
        ours, theirs = made[:, between], real[:, between]
        self.samples.add(psnr(ours, theirs).item(), ssim(ours[0], theirs[0]), gaps.double().numpy())
        self.changes.append(changes_at_keys(made[0], inserted))
        self.clips.append(judge.embed_videos(made).double().numpy())


def _summary(name: str, found: _Seen, real: _Seen) -> MethodScores:
    samples, is_real = found.samples, found is real
    at_keys, elsewhere = np.array(found.changes).T
    made, goal = (fit_gaussian(np.concatenate(seen.clips)) for seen in (found, real))
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
        methods: Of every way to fill the gaps between real key frames, and of the real clips.
        pulses: Of the ways between generated key frames, and of the real clips; may be empty.
    """

    methods: list[MethodScores]
    pulses: list[PulseScore]


@dataclass(frozen=True, kw_only=True)
class InterpolationEvaluation:
    """The model, the clips and the settings of the evaluation.

    Attributes:
        pipeline: A model with an interpolator.
        judge: Gives the features of the Frechet distances.
        data: Folder of clips; the held-out are used.
        clips: How many, each once and on a plain background.
        keys: Key frames of each.
        steps: Numbers of diffusion steps that are compared.
        generated: How many videos are generated for `pulses`.
        noise_levels: Diffusion steps up to which the network's view of generated keys is noised.
        seed: Of the draw of clips; the noise of clip or video k has the seed k.
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
        # too few clips for one half are refused before hours are spent on the other
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
