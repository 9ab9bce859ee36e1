"""A frozen denoiser with trainable LoRA layers."""

import json
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Shaped
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor, nn

from magicvideo.errors import UserError
from magicvideo.models.conditioning import ConditionedDenoiser
from magicvideo.models.lora import BASE_MODEL, LORA_FILE, LoraWeights, to_peft_state_dict
from magicvideo.models.unet import VideoUNet
from magicvideo.shapes import Latents, Tokens
from magicvideo.training.components import LORA
from magicvideo.training.recipe import LoraTrainingConfig

# how the names of layers end
_TARGETS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "feed_forward": ["ff.net.0.proj", "ff.net.2"],
    "projections": ["proj_in", "proj_out"],
    "convolutions": ["conv1", "conv2"],
    "temporal": ["temporal.to_qkv", "temporal.to_out"],
}
_ADAPTER = "default"


class LoraDenoiser(nn.Module):
    """A frozen denoiser with trainable LoRA layers, which peft injects into its U-Net.

    Only the LoRA layers require gradients. So the optimizer, the EMA and the checkpoints hold
    nothing of the base, which FSDP2 shards like any other weights.

    Args:
        base: The denoiser; it is frozen and gets LoRA layers.
        config: Rank, alpha and target layers.
        base_hash: Hash of the base's model folder, which the output names.

    Raises:
        UserError: If the denoiser has no layer of a kind that is to get one.
    """

    def __init__(
        self, base: ConditionedDenoiser, config: LoraTrainingConfig, base_hash: str
    ) -> None:
        super().__init__()
        base.requires_grad_(requires_grad=False).eval()
        names = [name for name, _ in base.unet.named_modules()]
        for kind in config.targets:
            endings = tuple(f".{ending}" for ending in _TARGETS[kind])
            if not any(name.endswith(endings) for name in names):
                raise UserError(f"keyframes.lora.targets has {kind}, and the U-Net no such layers.")
        layers = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=[end for kind in config.targets for end in _TARGETS[kind]],
        )
        inject_adapter_in_model(layers, base.unet, _ADAPTER)
        self.alpha, self.base_hash = config.alpha, base_hash
        self.base = base
        self.text_encoder = None

    def train(self, mode: bool = True) -> "LoraDenoiser":
        """Set the module to training; the base stays in evaluation."""
        super().train(mode)
        self.base.eval()
        return self

    @property
    def unet(self) -> VideoUNet:
        """Return its U-Net, LoRA layers included."""
        return self.base.unet

    @property
    def image_embed_dim(self) -> int:
        """Return the width of the image embeddings that it can be conditioned on."""
        return self.base.image_embed_dim

    def lora_weights(self) -> dict[str, LoraWeights]:
        """Return what the LoRA layers add to the U-Net's weights, by name."""
        return {
            f"{name}.weight": LoraWeights(
                layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight, self.alpha
            )
            for name, layer in self.unet.named_modules()
            if isinstance(layer, LoraLayer)
        }

    def forward(
        self,
        latents: Latents,
        timestep: Shaped[Tensor, "b"] | Shaped[Tensor, "b f"],
        text: Tokens,
        embeddings: Float[Tensor, "b e"],
        use_image_condition: Bool[Tensor, "b"],
        fps: Float[Tensor, "b"],
        motion: Float[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b f out h w"]:
        """Return the prediction for noisy latents, as `ConditionedDenoiser` does."""
        return self.base(
            latents, timestep, text, embeddings, use_image_condition, fps, motion=motion
        )

    @torch.no_grad()
    def save_components(self, folder: Path, *, image_conditioner: bool = True) -> None:  # noqa: ARG002
        """Write the LoRA in the layout that diffusers and peft share; its header names the base."""
        (folder / LORA).mkdir()
        metadata = {"format": "pt", BASE_MODEL: self.base_hash}
        tensors = to_peft_state_dict(self.lora_weights(), "unet")
        (folder / LORA / LORA_FILE).write_bytes(_serialised(tensors, metadata))


def _serialised(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file, the same bytes for the same weights.

    The library writes the entries of the metadata in an order that changes from call to call.
    """
    content = save(tensors, metadata=metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = metadata
    text = json.dumps(header, separators=(",", ":")).encode()
    return content[:8] + text.ljust(end - 8) + content[end:]


Denoiser: TypeAlias = ConditionedDenoiser | LoraDenoiser
