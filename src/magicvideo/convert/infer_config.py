"""Settings of networks in Stable Diffusion's original layout, read off their tensors' shapes."""

from typing import Any

from torch import Tensor

from magicvideo.convert.key_mapping import CLIP, OPEN_CLIP, UNET, VAE

# what shapes do not show is the same in all of Stable Diffusion 1.x and 2.x
_HEADS, _HEAD_WIDTH, _GROUPS = 8, 64, 32
_SIDE, _SCALING = 64, 0.18215


def unet_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `UNet2DConditionModel`.

    Raises:
        KeyError: If a tensor is missing.
    """
    layers = next(i for i in range(2, 99) if f"{UNET}input_blocks.{i}.0.op.weight" in tensors) - 1
    row = layers + 1
    starts: list[str] = []
    channels: list[int] = []
    while f"{UNET}input_blocks.{len(starts) * row + 1}.0.in_layers.2.weight" in tensors:
        start = f"{UNET}input_blocks.{len(starts) * row + 1}."
        starts.append(start)
        channels.append(len(tensors[f"{start}0.in_layers.2.weight"]))
    middle = f"{UNET}middle_block.1."
    linear = tensors[f"{middle}proj_in.weight"].ndim == 2
    attends = [f"{start}1.proj_in.weight" in tensors for start in starts]
    return {
        "sample_size": _SIDE,
        "in_channels": tensors[f"{UNET}input_blocks.0.0.weight"].shape[1],
        "out_channels": len(tensors[f"{UNET}out.2.weight"]),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple(
            "CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)
        ),
        "block_out_channels": tuple(channels),
        "layers_per_block": layers,
        "cross_attention_dim": tensors[f"{middle}transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": tuple(c // _HEAD_WIDTH for c in channels) if linear else _HEADS,
        "norm_num_groups": _GROUPS,
        "use_linear_projection": linear,
    }


def vae_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `AutoencoderKL`.

    Raises:
        KeyError: If a tensor is missing.
    """
    channels: list[int] = []
    while (name := f"{VAE}encoder.down.{len(channels)}.block.0.conv2.weight") in tensors:
        channels.append(len(tensors[name]))
    layers = 1
    while f"{VAE}encoder.down.0.block.{layers}.conv2.weight" in tensors:
        layers += 1
    return {
        "in_channels": tensors[f"{VAE}encoder.conv_in.weight"].shape[1],
        "out_channels": len(tensors[f"{VAE}decoder.conv_out.weight"]),
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "block_out_channels": tuple(channels),
        "layers_per_block": layers,
        "latent_channels": tensors[f"{VAE}post_quant_conv.weight"].shape[1],
        "norm_num_groups": _GROUPS,
        "sample_size": 8 * _SIDE,
        "scaling_factor": _SCALING,
    }


def text_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the settings of `CLIPTextModel`.

    Stable Diffusion 2.x reads OpenCLIP's tower up to the last layer but one.

    Raises:
        KeyError: If a tensor is missing.
    """
    if is_open_clip(tensors):
        start, layer, inner = OPEN_CLIP, "transformer.resblocks", "mlp.c_fc"
        vocabulary, positions = "token_embedding.weight", "positional_embedding"
    else:
        start, layer, inner = f"{CLIP}text_model.", "encoder.layers", "mlp.fc1"
        vocabulary, positions = (
            f"embeddings.{kind}_embedding.weight" for kind in ("token", "position")
        )
    size, width = tensors[start + vocabulary].shape
    count = 0
    while f"{start}{layer}.{count}.{inner}.weight" in tensors:
        count += 1
    return {
        "vocab_size": size,
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{start}{layer}.0.{inner}.weight"]),
        "num_hidden_layers": count - 1 if is_open_clip(tensors) else count,
        "num_attention_heads": width // _HEAD_WIDTH,
        "max_position_embeddings": len(tensors[start + positions]),
        "hidden_act": "gelu" if is_open_clip(tensors) else "quick_gelu",
    }


def is_open_clip(tensors: dict[str, Tensor]) -> bool:
    """Return whether the text encoder is OpenCLIP's, as in Stable Diffusion 2.x."""
    return any(name.startswith(OPEN_CLIP) for name in tensors)
