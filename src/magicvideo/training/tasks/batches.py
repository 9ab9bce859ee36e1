"""What the denoiser and the interpolator are given, out of frames or out of shards."""

from dataclasses import fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from magicvideo.data.dataset import Batch
from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.conditioning import embed_frames, encode_text
from magicvideo.models.pretrained_encoders import FrozenEncoders
from magicvideo.shapes import Frames, Latents, Tokens
from magicvideo.training.loader import AnyBatch


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, without waiting for the device."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def full_precision(device: torch.device) -> torch.autocast:
    """Return a block in which mixed precision is off: what passes through it is not rounded."""
    # the meta device, of dry runs, has no autocast of its own
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
    """Return the frames of a batch, decoded where it has only their latents."""
    if isinstance(batch, Batch):
        return batch.frames.to(device)
    return decode_latents(frozen.vae.to(device), batch.latents.to(device))


def encode_captions(
    frozen: FrozenEncoders, batch: AnyBatch, dropped: Bool[Tensor, " b"], device: torch.device
) -> Tokens:
    """Return the tokens of the captions, and those of an empty text where captions are dropped."""
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
        shown: Which frame of each.
        device: Where it is wanted.
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
