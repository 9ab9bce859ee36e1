"""Losses between images: perceptual distance and image gradient loss."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from magicvideo.models.conditioning import clip_preprocess
from magicvideo.shapes import FoldedFrames


def perceptual_distance(
    image_encoder: CLIPVisionModelWithProjection, made: FoldedFrames, real: FoldedFrames
) -> Float[Tensor, ""]:
    """Return the mean squared distance of unit-norm hidden states, over tokens and layers.

    Source: LPIPS without learned weights (Zhang et al., 1801.03924, equation 1), on the outputs of
    all layers of the model's CLIP image encoder. The first hidden state is excluded, because it
    is a linear map of the pixels.

    Args:
        image_encoder: CLIP's frozen image encoder; gradients flow through it to `made`.
        made: Reconstructed pixels in [-1, 1].
        real: Real pixels in [-1, 1], of the same shape.

    Returns:
        A value from 0 (equal directions) to 4.
    """
    with torch.no_grad():
        wanted = _directions(image_encoder, real)
    # |u - v|^2 = 2 - 2 cos(u, v) for unit vectors u and v: from 0 to 4
    distances = [
        (direction - target).square().sum(dim=-1).mean()
        for direction, target in zip(_directions(image_encoder, made), wanted, strict=True)
    ]
    return torch.stack(distances).mean()


def _directions(
    image_encoder: CLIPVisionModelWithProjection, pixels: FoldedFrames
) -> list[Float[Tensor, "n l d"]]:
    prepared = clip_preprocess(image_encoder, pixels)
    states = image_encoder(prepared, output_hidden_states=True).hidden_states
    return [F.normalize(state.float(), dim=-1) for state in states[1:]]


def image_gradient_loss(rebuilt: FoldedFrames, pixels: FoldedFrames) -> Float[Tensor, ""]:
    """Return the L1 distance of horizontal and vertical image gradients.

    A blurred edge has a small squared error, but a large error here.
    """
    error = rebuilt - pixels
    # the gradient is linear: the difference of gradients is the gradient of the error
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
