"""CLIP in transformers' folder format: features of frames and captions."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from magicvideo.errors import UserError
from magicvideo.evaluation.networks.extractors import ResolvedFile
from magicvideo.models.conditioning import clip_preprocess
from magicvideo.pipelines.component_loading import load_tokenizer


class _ImageTower(CLIPVisionModelWithProjection):
    """The image tower out of a folder of both."""

    _keys_to_ignore_on_load_unexpected = ("text_model", "text_projection", "logit_scale")


class _TextTower(CLIPTextModelWithProjection):
    """The text tower out of a folder of both."""

    _keys_to_ignore_on_load_unexpected = ("vision_model", "visual_projection", "logit_scale")


class CLIPEncoder:
    """Both towers of CLIP. CLIPSIM and CLIP-FID of papers are those of ViT-B/32.

    Attributes:
        layer: What the features are, as results say it.

    Raises:
        UserError: If the folder holds no whole CLIP.
    """

    feature_layer = "projected features of its image tower"

    def __init__(self, located: ResolvedFile, device: torch.device) -> None:
        self.located, self._device = located, device
        self._image = _load(located, _ImageTower).to(device)
        self._text = _load(located, _TextTower).to(device)
        self._tokenizer = load_tokenizer(located.path)

    @property
    def is_vit_b_32(self) -> bool:
        """Tell whether it has the size of ViT-B/32; of whose training, only its hash tells."""
        config = self._image.config
        size = (config.patch_size, config.image_size, config.hidden_size, config.projection_dim)
        return size == (32, 224, 768, 512)

    @property
    def resizing(self) -> str:
        """How frames are brought to the network's size, as results say it."""
        side = self._image.config.image_size
        return f"all of a frame to {side} x {side}, torch's bicubic with antialiasing, in floats"

    @torch.inference_mode()
    def embed_frames(self, frames: Float[Tensor, "f 3 h w"]) -> Float[np.ndarray, "f d"]:
        """Return the embeddings of frames of pixels in [-1, 1], at the length that they come in."""
        given = clip_preprocess(self._image, frames.to(self._device))
        return self._image(given).image_embeds.float().cpu().numpy()

    @torch.inference_mode()
    def embed_caption(self, caption: str) -> Float[np.ndarray, " d"]:
        """Return the embedding of a caption, cut after the words that CLIP can take."""
        tokens = self._tokenizer(
            [caption],
            max_length=self._text.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        )
        return self._text(tokens.input_ids.to(self._device)).text_embeds[0].float().cpu().numpy()


def _load(located: ResolvedFile, tower: type[Any]) -> Any:  # noqa: ANN401 - transformers' are untyped
    try:
        network, report = tower.from_pretrained(
            located.path,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{located.name} is not a CLIP folder ({reason}).") from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{located.name} lacks the tensor {missing[0]}; take a whole CLIP.")
    return network.eval().requires_grad_(False)
