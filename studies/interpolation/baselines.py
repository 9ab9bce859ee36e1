"""Every way to fill the gaps between real key frames."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from magicvideo.diffusion.keyframe_interpolation import interleave_frames, pair_keyframes
from magicvideo.diffusion.noise import seeded_generator
from magicvideo.evaluation.prompt_sets import Prompt
from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.conditioning import encode_text
from magicvideo.models.interpolator import lerp_keyframes
from magicvideo.pipelines.interpolate import noise_keyframes
from magicvideo.pipelines.request import GenerationSettings
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.shapes import Frames, Latents

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
    """Return the clip as every method gives it."""
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
    """Return what the network gives without diffusion, its view of the keys noised as ever."""
    assert pipeline.interpolator is not None
    level = pipeline.config.interpolation_noise_level
    seen = noise_keyframes(keys, pipeline.scheduler, level, seeded_generator("estimate", seed))
    pairs = pair_keyframes(keys)
    levels = torch.full((len(pairs),), level, device=keys.device)
    estimated, _ = pipeline.interpolator.estimate(pairs, pair_keyframes(seen), levels)
    return interleave_frames(keys, estimated)
