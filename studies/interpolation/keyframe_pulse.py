"""Does a video pulse at the rate of its keys? The change at keys against that elsewhere.

Real keys say little about this: each generated one carries an error of its own, which the frames
between have to lead over. So it is measured on keys that the pipeline made.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from magicvideo.data.dataset import ClipDataset
from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import Estimate, mean, ratio_of_means
from magicvideo.evaluation.metrics.motion import LEVELS, corner_mask, flicker
from magicvideo.evaluation.prompt_sets import (
    Prompt,
    from_uint8,
    real_videos,
    sample_prompts,
    to_uint8,
)
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from studies.interpolation.baselines import LATENT_BLEND, REAL, blend_keys


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
    """Generate key frames at the model's default settings, fill the gaps, and measure the pulse.

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
    return [_summary(name, np.array(found)) for name, found in figures.items()]


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


def _summary(name: str, figures: Float[np.ndarray, "n 5"]) -> PulseScore:
    at_keys, elsewhere, corners_at_keys, corners_elsewhere, flickers = figures.T
    return PulseScore(
        name=name,
        whole=ratio_of_means(at_keys, elsewhere),
        in_corners=ratio_of_means(corners_at_keys, corners_elsewhere),
        flicker=mean(LEVELS * flickers),
    )
