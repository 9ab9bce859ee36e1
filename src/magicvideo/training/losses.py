"""Losses between images: perceptual distance, and differences of image gradients."""

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
    """Return the mean squared distance of hidden states at unit length, over tokens and layers.

    Source: the form of LPIPS without its learnt weights (Zhang et al., 1801.03924, equation 1), on
    the outputs of all layers of the model's own CLIP tower. The first hidden state is left out: it
    is a linear map of the pixels.

    Args:
        image_encoder: CLIP's, frozen; gradients pass through it to `made`.
        made: Pixels in [-1, 1], which get the gradient.
        real: Pixels in [-1, 1], of the same shape.

    Returns:
        From 0, where all layers agree, to 4.
    """
    with torch.no_grad():
        wanted = _directions(image_encoder, real)
    # |u - v|^2 = 2 - 2 cos(u, v) of unit vectors: from 0 to 4
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
    """Return L1 between the changes from a pixel to its neighbours, along rows and along columns.

    A blurred edge has a small squared error and a large one here.
    """
    error = rebuilt - pixels
    # differences are linear: that of the error is the error of the differences
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
