"""Conditions of the denoiser as cross-attention tokens: text, or CLIP embeddings of frames."""

from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextModel,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
)

from magicvideo.errors import UserError
from magicvideo.models.unet import VideoUNet
from magicvideo.shapes import Frames, Latents, Tokens

# the statistics that CLIP's own preprocessing uses (Radford et al., 2103.00020, published code)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageConditioner(ModelMixin, ConfigMixin):
    """A linear layer from CLIP image embeddings to condition tokens, initialized to the identity.

    Source: MagicVideo, unsupervised training on CLIP embeddings of frames instead of text
    (according to secondary sources; the layer is our choice, departure D6 in
    docs/paper_map.md).

    Args:
        embedding_dim: Width of the CLIP image embedding.
        cross_attention_dim: Width of the condition's tokens.
    """

    @register_to_config
    def __init__(self, embedding_dim: int = 768, cross_attention_dim: int = 768) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_dim, cross_attention_dim)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, embeddings: Float[Tensor, "b f e"]) -> Tokens:
        """Return one token per embedding, with the norm of a text token.

        CLIP embeddings have unit norm. Text tokens are outputs of a layer norm, so their norm is
        about sqrt(width); hence the factor.
        """
        return self.linear(embeddings * embeddings.shape[-1] ** 0.5)


def encode_text(
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    device: torch.device | None = None,
) -> Tokens:
    """Return the last hidden states of the text encoder, padded to the tokenizer's length.

    Longer prompts are truncated; `magicvideo generate` lists the words that are dropped.

    Args:
        text_encoder: CLIP's text encoder.
        tokenizer: Tokenizer of the text encoder.
        prompts: Texts.
        device: Device of the computation, if the weights are offloaded between calls.

    Raises:
        UserError: If a token id exceeds the encoder's vocabulary.
    """
    ids = tokenize(tokenizer, prompts)
    largest, known = int(ids.max()), text_encoder.config.vocab_size
    if largest >= known:
        raise UserError(
            f"The tokenizer produced token id {largest}, but the text encoder has only {known} "
            "embeddings; they belong to different models."
        )
    if device is None:
        device = next(text_encoder.parameters()).device
    return text_encoder(ids.to(device)).last_hidden_state


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> Int[Tensor, "b l"]:
    """Return the token ids of texts, truncated or padded to the tokenizer's length."""
    batch = tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = batch.input_ids
    return ids


def embed_frames(
    image_encoder: CLIPVisionModelWithProjection, frames: Frames
) -> Float[Tensor, "b f e"]:
    """Return the unit-norm CLIP embedding of each frame, in the frames' precision.

    Args:
        image_encoder: CLIP's image tower with its projection.
        frames: Pixels in [-1, 1] of any size; they are resized to the encoder's input size.
    """
    folded = rearrange(frames, "b f c h w -> (b f) c h w")
    prepared = clip_preprocess(image_encoder, folded).to(image_encoder.dtype)
    # CLIP is trained on cosine similarity, so the norm carries no information
    unit = F.normalize(image_encoder(prepared).image_embeds.to(frames.dtype), dim=-1)
    return rearrange(unit, "(b f) e -> b f e", f=frames.shape[1])


def clip_preprocess(
    image_encoder: CLIPVisionModelWithProjection, pixels: Float[Tensor, "n 3 _ _"]
) -> Float[Tensor, "n 3 h w"]:
    """Return pixels in [-1, 1], resized and normalized as CLIP's image encoder expects."""
    return clip_pixels(pixels, image_encoder.config.image_size)


def clip_pixels(pixels: Float[Tensor, "n 3 _ _"], side: int) -> Float[Tensor, "n 3 side side"]:
    """Return pixels in [-1, 1], resized to a square of `side` pixels and normalized for CLIP.

    The whole image is resized, whatever its aspect ratio, so that nothing is cropped.
    """
    if pixels.shape[-2:] != (side, side):
        pixels = F.interpolate(
            pixels, size=(side, side), mode="bicubic", antialias=True, align_corners=False
        )
    return clip_normalize(pixels)


def clip_normalize(pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Return pixels in [-1, 1] with the mean and deviation that CLIP expects."""
    mean = pixels.new_tensor(_CLIP_MEAN)[:, None, None]
    std = pixels.new_tensor(_CLIP_STD)[:, None, None]
    # CLIP's mean and deviation are those of pixels in [0, 1]
    return ((pixels.clamp(-1, 1) + 1) / 2 - mean) / std


def motion_amount(latents: Latents) -> Float[Tensor, " b"]:
    """Return the motion of each clip: the log of the mean absolute frame difference.

    A motion score is this value in standard deviations from its mean over the training clips.
    """
    # motion spans orders of magnitude, hence the log
    change = (latents[:, 1:] - latents[:, :-1]).abs().flatten(1).mean(dim=1)
    return change.clamp_min(1e-3).log()  # far below the autoencoder's noise


class ConditionedDenoiser(nn.Module):
    """A video U-Net conditioned on text tokens or, sample by sample, on an image embedding.

    Args:
        unet: The denoiser.
        image_conditioner: Maps CLIP image embeddings to condition tokens.
        text_encoder: Text encoder trained with the denoiser; None if it is frozen.
    """

    def __init__(
        self,
        unet: VideoUNet,
        image_conditioner: ImageConditioner,
        text_encoder: CLIPTextModel | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.image_conditioner = unet, image_conditioner
        self.text_encoder = text_encoder

    def forward(
        self,
        latents: Latents,
        timestep: Shaped[Tensor, "b"] | Shaped[Tensor, "b f"],
        text: Tokens | Int[Tensor, "b l"],
        embeddings: Float[Tensor, "b e"],
        use_image_condition: Bool[Tensor, "b"],
        fps: Float[Tensor, "b"],
        motion: Float[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b f out h w"]:
        """Return the prediction for noisy latents.

        Args:
            latents: Noisy latents.
            timestep: Diffusion step of each video, or of each frame.
            text: Text tokens of each video, or token ids if the denoiser has a text encoder.
            embeddings: Unit-norm CLIP embedding of one frame of each video.
            use_image_condition: Whether each video uses its embedding instead of its text.
            fps: Frames per second of each video.
            motion: Motion score of each video, as `VideoUNet` takes it.
        """
        tokens = text if self.text_encoder is None else self.text_encoder(text).last_hidden_state
        images = image_to_condition_tokens(self.image_conditioner, embeddings, tokens.shape[1])
        condition = torch.where(use_image_condition[:, None, None], images, tokens)
        return self.unet(latents, timestep, condition, fps, motion=motion).sample

    @property
    def image_embed_dim(self) -> int:
        """Return the width of the image embeddings."""
        return int(self.image_conditioner.config.embedding_dim)

    def save_components(self, folder: Path, *, image_conditioner: bool = True) -> None:
        """Write the components that are trained.

        Args:
            folder: Output folder of `unet`, and of `text_encoder` if the denoiser has one.
            image_conditioner: Whether to write `image_conditioner` too.
        """
        self.unet.save_pretrained(folder / "unet")
        if self.text_encoder is not None:
            self.text_encoder.save_pretrained(folder / "text_encoder")
        if image_conditioner:
            self.image_conditioner.save_pretrained(folder / "image_conditioner")


def image_to_condition_tokens(
    conditioner: ImageConditioner, embeddings: Float[Tensor, "b e"], length: int
) -> Tokens:
    """Return one token per embedding, repeated to the length of a text.

    Attention over equal tokens equals attention over one of them, so the repetition has no effect
    on the result; it allows texts and images in one batch.
    """
    return conditioner(embeddings[:, None]).expand(-1, length, -1)
