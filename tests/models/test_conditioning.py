import numpy as np
import pytest
import torch
from networks import randomise
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from magicvideo.models.conditioning import (
    ImageConditioner,
    clip_normalize,
    embed_frames,
    encode_text,
)
from magicvideo.training.tasks.clip_model import train_tokenizer

TOKENS, WIDTH, SIDE, EMBEDDING = 9, 10, 12, 7
PROMPTS = ["a cat", "", "a woman surfing on a blue background with a dog and a cat"]


@pytest.fixture(scope="module")
def tokenizer():
    captions = ["a woman surfing, blue background", "a cat", "a dog"]
    return train_tokenizer(captions, vocabulary_size=530, max_tokens=TOKENS)


@pytest.fixture(scope="module")
def text_encoder(tokenizer):
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return randomise(CLIPTextModel(config))


@pytest.fixture(scope="module")
def image_encoder():
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=18,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=4,
        projection_dim=EMBEDDING,
    )
    return randomise(CLIPVisionModelWithProjection(config))


@torch.no_grad()
def test_text_is_padded_and_truncated_to_the_length_of_the_tokenizer(tokenizer, text_encoder):
    tokens = encode_text(text_encoder, tokenizer, PROMPTS)
    assert tokens.shape == (len(PROMPTS), TOKENS, WIDTH)
    for prompt, made in zip(PROMPTS, tokens, strict=True):
        words = tokenizer(prompt, add_special_tokens=False).input_ids[: TOKENS - 2]
        ids = [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * (TOKENS - len(ids))
        expected = text_encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(made, expected)
        torch.testing.assert_close(encode_text(text_encoder, tokenizer, [prompt])[0], expected)
    assert len(tokenizer(PROMPTS[2]).input_ids) > TOKENS


@torch.no_grad()
def test_the_conditioner_starts_as_the_identity_scaled_to_the_norm_of_text_tokens():
    embeddings = torch.nn.functional.normalize(torch.randn(2, 3, EMBEDDING), dim=-1)
    tokens = ImageConditioner(EMBEDDING, EMBEDDING)(embeddings)
    torch.testing.assert_close(tokens, embeddings * EMBEDDING**0.5)
    # text tokens leave a layer norm, so their squares are 1 in the mean
    torch.testing.assert_close(tokens.square().mean(dim=-1), torch.ones(2, 3))
    wider = ImageConditioner(EMBEDDING, WIDTH)(embeddings)
    torch.testing.assert_close(wider[..., :EMBEDDING], tokens)
    assert wider[..., EMBEDDING:].abs().max() == 0


@torch.no_grad()
def test_embeddings_are_those_of_transformers(image_encoder):
    """Pictures of the encoder's own size, through CLIP's preprocessing and model."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    prepared = processor([Image.fromarray(p) for p in pictures], return_tensors="pt").pixel_values
    frames = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(clip_normalize(frames), prepared, atol=1e-5, rtol=0)
    expected = torch.nn.functional.normalize(image_encoder(prepared).image_embeds, dim=-1)
    torch.testing.assert_close(embed_frames(image_encoder, frames[None])[0], expected)


@torch.no_grad()
def test_each_frame_has_its_own_embedding_of_unit_length(image_encoder):
    frames = torch.rand(2, 3, 3, 17, 29) * 2 - 1
    embeddings = embed_frames(image_encoder, frames)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2, 3))
    for video in range(2):
        for frame in range(3):
            alone = embed_frames(image_encoder, frames[video, frame][None, None])
            torch.testing.assert_close(embeddings[video, frame], alone[0, 0])
    assert (embeddings[:, 1:] - embeddings[:, :-1]).norm(dim=-1).min() > 1e-2


@torch.no_grad()
def test_large_frames_are_downsampled_with_antialiasing(image_encoder):
    """A fine chequerboard shrinks to grey; picking single pixels would keep its colours."""
    row = torch.arange(SIDE * 3)
    board = ((row[:, None] + row) % 2).float() * 2 - 1
    frames = board.expand(1, 1, 3, -1, -1)
    grey = torch.zeros(1, 1, 3, SIDE, SIDE)
    distances = [
        (embed_frames(image_encoder, frames) - embed_frames(image_encoder, other)).norm()
        for other in (grey, grey + 0.2)
    ]
    assert distances[0] < 0.2 * distances[1]
