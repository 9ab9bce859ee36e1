import torch
from networks import SMALL, TOKENS, VIDEOS, make_inputs, make_unet, randomise

from magicvideo.models.conditioning import (
    ConditionedDenoiser,
    ImageConditioner,
    image_to_condition_tokens,
)

EMBEDDING, WIDTH = 9, SMALL["cross_attention_dim"]


def make():
    conditioner = randomise(ImageConditioner(EMBEDDING, WIDTH))
    return ConditionedDenoiser(make_unet(), conditioner)


@torch.no_grad()
def test_each_video_is_conditioned_on_its_text_or_its_image():
    network, (latents, timestep, tokens, fps) = make(), make_inputs()
    embeddings = torch.randn(VIDEOS, EMBEDDING)
    by_text = network.unet(latents, timestep, tokens, fps).sample
    one_token = network.image_conditioner(embeddings[:, None])
    by_image = network.unet(latents, timestep, one_token, fps).sample
    assert (by_text - by_image).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-2
    for told in ([False, False], [True, False], [False, True], [True, True]):
        use_image_condition = torch.tensor(told)
        made = network(latents, timestep, tokens, embeddings, use_image_condition, fps)
        expected = torch.where(use_image_condition[:, None, None, None, None], by_image, by_text)
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_image_tokens_repeat_the_conditioners_token():
    conditioner = randomise(ImageConditioner(EMBEDDING, WIDTH))
    embeddings = torch.randn(VIDEOS, EMBEDDING)
    tokens = image_to_condition_tokens(conditioner, embeddings, TOKENS)
    assert tokens.shape == (VIDEOS, TOKENS, WIDTH)
    for video in range(VIDEOS):
        for token in tokens[video]:
            torch.testing.assert_close(token, conditioner(embeddings[video, None, None])[0, 0])
