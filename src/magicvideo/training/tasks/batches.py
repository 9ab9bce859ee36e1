"""What the denoiser and the interpolator are given, out of frames or out of shards."""

from dataclasses import fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from magicvideo.data.batch_order import load_batch, load_encoded_batch
from magicvideo.data.dataset import Batch, ClipDataset
from magicvideo.data.shards.dataset import ShardDataset
from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.conditioning import embed_frames, encode_text
from magicvideo.models.pretrained_encoders import FrozenEncoders
from magicvideo.shapes import Frames, Latents, Tokens
from magicvideo.training.task import AnyBatch


def get_batch(
    dataset: ClipDataset | ShardDataset,
    seed: int,
    position: int,
    batch_size: int,
    *,
    num_frames: int,
    strides: tuple[int, int],
    subject_balance: float,
) -> AnyBatch:
    """Return the batch at a position, as `data.order` explains."""
    if isinstance(dataset, ShardDataset):
        return load_encoded_batch(
            dataset, seed, position, batch_size, num_frames, strides, subject_balance
        )
    return load_batch(dataset, seed, position, batch_size, num_frames, strides, subject_balance)


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
    return torch.where(dropped.to(device)[:, None, None], _encode(frozen, [""], device), tokens)


def encode_frame_embeds(
    frozen: FrozenEncoders, batch: AnyBatch, shown: Int[Tensor, " b"], device: torch.device
) -> Float[Tensor, "b e"]:
    """Return the CLIP embedding of one frame of each clip.

    Args:
        frozen: The parts that encode.
        batch: The clips.
        shown: Which frame of each.
        device: Where it is wanted.
    """
    rows = torch.arange(len(shown))
    if not isinstance(batch, Batch):
        return batch.embeddings[rows, shown].to(device)
    frozen.image_encoder.to(device)
    return embed_frames(frozen.image_encoder, batch.frames[rows, shown][:, None].to(device))[:, 0]


def preview_captions(dataset: ClipDataset | ShardDataset, count: int) -> tuple[list[str], float]:
    """Return captions for previews, of clips spread over prepared data, and a slow frame rate."""
    slowed = 4
    if isinstance(dataset, ShardDataset):
        captions, fps = dataset.captions(count)
        return captions, fps / slowed
    chosen = np.linspace(0, len(dataset) - 1, count).astype(int)
    rng = np.random.default_rng(0)
    samples = [
        dataset.sample(int(i), rng, num_frames=1, strides=(slowed, slowed), caption_style="plain")
        for i in chosen
    ]
    return [sample.caption for sample in samples], min(sample.fps for sample in samples)


def _encode(frozen: FrozenEncoders, texts: list[str], device: torch.device) -> Tokens:
    frozen.text_encoder.to(device)
    return encode_text(frozen.text_encoder, frozen.tokenizer, texts)
