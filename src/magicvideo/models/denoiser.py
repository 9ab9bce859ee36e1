"""The denoiser with both of its conditions: what the video stages train as one network."""

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from magicvideo.models.conditioning import ImageConditioner
from magicvideo.models.unet import VideoUNet
from magicvideo.shapes import Latents, Tokens


class ConditionedDenoiser(nn.Module):
    """A video U-Net told by text tokens or, sample by sample, by an image embedding in their place.

    Args:
        unet: The denoiser.
        image_conditioner: Turns CLIP image embeddings into condition tokens.
    """

    def __init__(self, unet: VideoUNet, image_conditioner: ImageConditioner) -> None:
        super().__init__()
        self.unet, self.image_conditioner = unet, image_conditioner

    def forward(
        self,
        latents: Latents,
        timestep: Shaped[Tensor, "b"],
        tokens: Tokens,
        embeddings: Float[Tensor, "b e"],
        use_image_condition: Bool[Tensor, "b"],
        fps: Float[Tensor, "b"],
    ) -> Float[Tensor, "b f out h w"]:
        """Return the prediction for noisy latents.

        Args:
            latents: Noisy latents.
            timestep: Diffusion step of each video.
            tokens: Text tokens of each video.
            embeddings: CLIP embedding of one frame of each video, at unit length.
            use_image_condition: Which videos are told by their embedding in place of the text.
            fps: Frames a second of each video.
        """
        images = image_to_condition_tokens(self.image_conditioner, embeddings, tokens.shape[1])
        condition = torch.where(use_image_condition[:, None, None], images, tokens)
        return self.unet(latents, timestep, condition, fps)

    def save_components(self, folder: Path) -> None:
        """Write the components `unet` and `image_conditioner` of a model folder."""
        self.unet.save_pretrained(folder / "unet")
        self.image_conditioner.save_pretrained(folder / "image_conditioner")


def image_to_condition_tokens(
    conditioner: ImageConditioner, embeddings: Float[Tensor, "b e"], length: int
) -> Tokens:
    """Return one token of each embedding, repeated to the length of a text.

    Attention over equal tokens is attention over one, so the repetition changes nothing and lets
    texts and images share a batch.
    """
    return conditioner(embeddings[:, None]).expand(-1, length, -1)
