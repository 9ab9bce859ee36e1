import pytest
import torch

from magicvideo.data.dataset import Batch
from magicvideo.data.shards.dataset import EncodedBatch
from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.conditioning import embed_frames, encode_text
from magicvideo.models.pretrained_encoders import resolve_frozen_encoders
from magicvideo.training.tasks.batches import (
    batch_frames,
    encode_captions,
    encode_frame_embeds,
    encode_latents,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def frozen(tiny_model):
    return resolve_frozen_encoders(tiny_model).load()


@pytest.fixture
def batches(frozen):
    """Three clips of four frames, as frames and as encoded in shards."""
    captions = ["a cat", "a dog", "a woman surfing"]
    frames = torch.rand(3, 4, 3, 24, 24) * 2 - 1
    shared = {"fps": torch.ones(3), "captions": captions, "clip_ids": ["x", "y", "z"]}
    with torch.no_grad():
        encoded = EncodedBatch(
            latents=encode_frames(frozen.vae, frames),
            embeddings=embed_frames(frozen.image_encoder, frames),
            tokens=encode_text(frozen.text_encoder, frozen.tokenizer, captions),
            **shared,
        )
    return Batch(frames=frames, **shared), encoded


@torch.no_grad()
def test_encoded_clips_give_the_same_inputs_as_frames(frozen, batches):
    plain, encoded = batches
    dropped = torch.tensor([False, True, False])
    shown = torch.tensor([2, 0, 3])
    for of, choice in ((encode_captions, dropped), (encode_frame_embeds, shown)):
        ours, theirs = (of(frozen, batch, choice, CPU) for batch in (encoded, plain))
        torch.testing.assert_close(ours, theirs)
    assert not torch.equal(encode_captions(frozen, encoded, dropped, CPU)[1], encoded.tokens[1])
    assert encode_latents(frozen, encoded, CPU) is encoded.latents
    torch.testing.assert_close(encode_latents(frozen, plain, CPU), encoded.latents)
    assert torch.equal(batch_frames(frozen, plain, CPU), plain.frames)
    assert torch.equal(
        batch_frames(frozen, encoded, CPU), decode_latents(frozen.vae, encoded.latents)
    )


def test_the_batch_is_not_changed_where_captions_are_dropped(frozen, batches):
    _, encoded = batches
    before = encoded.tokens.clone()
    encode_captions(frozen, encoded, torch.tensor([True, True, False]), CPU)
    assert torch.equal(encoded.tokens, before)
