"""What is taken from Stable Diffusion, wherever it was stored: networks by diffusers' names."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler
from torch import Tensor
from transformers import CLIPTokenizer


@dataclass(frozen=True)
class ComponentState:
    """One network as it was stored.

    Attributes:
        source: Its folder or file, for messages.
        config: Its settings, by the names of diffusers or transformers.
        tensors: Its weights, by the names of diffusers or transformers.
        refused: Tensors that were stored with it and have no place here, with the reason of each.
    """

    source: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SDCheckpoint:
    """All that a video model takes from an image model.

    Attributes:
        unet: Weights of a `UNet2DConditionModel`.
        vae: Weights of an `AutoencoderKL`.
        text_encoder: Weights of a `CLIPTextModel`.
        image_encoder: Weights of CLIP's vision tower with its projection, or None.
        tokenizer: The text encoder's own.
        scheduler: The noise schedule, with the settings that every scheduler shares.
        refused: What was stored beside the parts and has no place here, with the reason of each.
    """

    unet: ComponentState
    vae: ComponentState
    text_encoder: ComponentState
    image_encoder: ComponentState | None
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    refused: dict[str, str]
