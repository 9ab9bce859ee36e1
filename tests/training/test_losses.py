import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from magicvideo.models.conditioning import clip_preprocess
from magicvideo.training.losses import perceptual_distance

PICTURES, HEIGHT, WIDTH = 3, 20, 28


@pytest.fixture
def tower():
    config = CLIPVisionConfig(
        hidden_size=12,
        intermediate_size=18,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=24,
        patch_size=6,
        projection_dim=14,
    )
    encoder = CLIPVisionModelWithProjection(config).eval().requires_grad_(requires_grad=False)
    with torch.no_grad():
        # it is made with weights so small that all pictures look alike
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return encoder


@pytest.fixture
def pictures():
    """Coarse blocks of colour, whose edges a blur removes."""
    blocks = torch.rand(PICTURES, 3, 5, 7) * 1.8 - 0.9
    return F.interpolate(blocks, size=(HEIGHT, WIDTH), mode="nearest")


def blur(pictures, size):
    padded = F.pad(pictures, (size // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, size, stride=1)


def test_equals_the_formula(tower, pictures):
    made = blur(pictures, 3)
    states = [
        tower(clip_preprocess(tower, x), output_hidden_states=True).hidden_states
        for x in (made, pictures)
    ]
    layers = []
    for layer in (1, 2):
        first, second = (s[layer] / s[layer].norm(dim=-1, keepdim=True) for s in states)
        layers.append(((first - second) ** 2).sum(dim=-1).mean())
    expected = (layers[0] + layers[1]) / 2
    torch.testing.assert_close(perceptual_distance(tower, made, pictures), expected)


def test_is_zero_for_equal_images_and_grows_with_blur(tower, pictures):
    assert perceptual_distance(tower, pictures, pictures) == 0
    distances = [perceptual_distance(tower, blur(pictures, size), pictures) for size in (3, 5, 9)]
    assert 1e-4 < distances[0] < distances[1] < distances[2] < 4


def test_gradients_reach_the_pixels_and_not_the_encoder(tower, pictures):
    made = blur(pictures, 3).requires_grad_()
    real = pictures.clone().requires_grad_()
    perceptual_distance(tower, made, real).backward()
    # every patch counts, in every picture
    assert F.avg_pool2d(made.grad.abs(), 4).min() > 0
    assert real.grad is None
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_gradient_steps_bring_the_image_closer(tower, pictures):
    made = blur(pictures, 5).requires_grad_()
    before = perceptual_distance(tower, made, pictures)
    before.backward()
    step = made.detach() - 0.05 * made.grad / made.grad.abs().max()
    assert perceptual_distance(tower, step, pictures) < before
