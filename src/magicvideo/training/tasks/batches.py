"""Inputs of the denoiser and the interpolator, from frames or from encoded shards."""

from dataclasses import fields, replace

import torch
from diffusers.configuration_utils import FrozenDict
from jaxtyping import Bool, Float, Int
from torch import Tensor

from magicvideo.data.dataset import Batch
from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.conditioning import embed_frames, encode_text, motion_amount
from magicvideo.models.pretrained_encoders import FrozenEncoders
from magicvideo.rng import StackedGenerator
from magicvideo.shapes import Frames, Latents, Tokens
from magicvideo.training.loader import AnyBatch


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a host tensor to a device without synchronizing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def full_precision(device: torch.device) -> torch.autocast:
    """Return a context without autocast, for float32 computation."""
    # the meta device, used in dry runs, has no autocast
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def slice_batch(batch: AnyBatch, chosen: slice) -> AnyBatch:
    """Return some samples of a batch."""
    return replace(
        batch, **{field.name: getattr(batch, field.name)[chosen] for field in fields(batch)}
    )


def encode_latents(frozen: FrozenEncoders, batch: AnyBatch, device: torch.device) -> Latents:
    """Return the latents of a batch."""
    if not isinstance(batch, Batch):
        return batch.latents.to(device)
    frozen.vae.to(device)
    return encode_frames(frozen.vae, batch.frames.to(device))


def batch_frames(frozen: FrozenEncoders, batch: AnyBatch, device: torch.device) -> Frames:
    """Return the frames of a batch, decoded if it has only latents."""
    if isinstance(batch, Batch):
        return batch.frames.to(device)
    return decode_latents(frozen.vae.to(device), batch.latents.to(device))


def encode_captions(
    frozen: FrozenEncoders, batch: AnyBatch, dropped: Bool[Tensor, " b"], device: torch.device
) -> Tokens:
    """Return the tokens of the captions, or of the empty text where captions are dropped."""
    if isinstance(batch, Batch):
        texts = ["" if drop else text for drop, text in zip(dropped, batch.captions, strict=True)]
        return _encode(frozen, texts, device)
    tokens = batch.tokens.to(device)
    if not dropped.any():
        return tokens
    empty = _encode(frozen, [""], device)
    return torch.where(to_device(dropped, device)[:, None, None], empty, tokens)


def encode_frame_embeds(
    frozen: FrozenEncoders, batch: AnyBatch, shown: Int[Tensor, " b"], device: torch.device
) -> Float[Tensor, "b e"]:
    """Return the CLIP embedding of one frame of each clip.

    Args:
        frozen: The frozen encoders.
        batch: The clips.
        shown: Index of the frame of each clip.
        device: Target device.
    """
    rows, shown = torch.arange(len(shown), device=device), to_device(shown, device)
    if not isinstance(batch, Batch):
        return batch.embeddings.to(device)[rows, shown]
    assert frozen.image_encoder is not None
    frozen.image_encoder.to(device)
    return embed_frames(frozen.image_encoder, batch.frames.to(device)[rows, shown][:, None])[:, 0]


def _encode(frozen: FrozenEncoders, texts: list[str], device: torch.device) -> Tokens:
    frozen.text_encoder.to(device)
    return encode_text(frozen.text_encoder, frozen.tokenizer, texts)


def draw_given_frames(
    size: int, num_frames: int, share: float, most: int, generator: StackedGenerator
) -> Bool[Tensor, "b f"]:
    """Sample which frames are given: the first one in half of these clips, else the first k.

    The model thereby learns to generate from text alone, from a first image, and from previous
    frames.

    Args:
        size: Number of clips.
        num_frames: Frames per clip.
        share: Fraction of clips with given frames.
        most: Maximal number of given frames.
        generator: Source of the random numbers.
    """
    has_given = generator.uniform(size) < share
    is_first_alone = generator.uniform(size) < 0.5
    several = 1 + generator.integers(most, size)
    count = torch.where(is_first_alone, 1, several) * has_given
    return torch.arange(num_frames) < count[:, None]


def draw_motion(
    latents: Latents, config: FrozenDict, dropout: float, generator: StackedGenerator
) -> Float[Tensor, " b"]:
    """Return the motion score of each clip, NaN where it is dropped.

    Args:
        latents: Latents of the clips.
        config: Configuration of the U-Net, with mean and standard deviation of motion.
        dropout: Fraction of clips without a motion score.
        generator: Source of the random numbers.
    """
    score = (motion_amount(latents) - config.motion_mean) / config.motion_std
    dropped = generator.uniform(len(latents)) < dropout
    return score.masked_fill(to_device(dropped, latents.device), torch.nan)
