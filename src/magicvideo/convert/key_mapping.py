"""The names of Stable Diffusion's original layout, for tensors called as in diffusers.

The original code numbers the layers of the U-Net's halves through, and the levels of the
autoencoder's decoder from the finest on. Nothing but names differs, except that OpenCLIP keeps
queries, keys and values in one tensor.
"""

import re
from dataclasses import dataclass

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_PROJECTION = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")


@dataclass(frozen=True)
class StoredKey:
    """Where a tensor is stored.

    Attributes:
        name: Of the stored tensor.
        third: Which third of its rows is meant, or None for all of it.
    """

    name: str
    third: int | None = None


def map_unet_key(name: str, layers_per_block: int, attends_up: tuple[bool, ...]) -> StoredKey:
    """Return where a tensor of the U-Net is stored.

    Args:
        name: As in `UNet2DConditionModel`.
        layers_per_block: Residual blocks a level of the first half.
        attends_up: Whether each level of the second half has attention.
    """
    for ours, theirs in _UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return StoredKey(UNET + theirs + name.removeprefix(ours))
    half, _, rest = name.partition(".")
    row = layers_per_block + 1
    if half == "mid_block":
        kind, number, rest = rest.split(".", 2)
        block = f"middle_block.{2 * int(number) if kind == 'resnets' else 1}"
        return StoredKey(f"{UNET}{block}.{_in_layer(kind, rest)}")
    level, kind, number, rest = rest.split(".", 3)
    if half == "down_blocks":
        layer = (
            (int(level) + 1) * row if kind == "downsamplers" else int(level) * row + int(number) + 1
        )
        part = {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}[kind]
        block = f"input_blocks.{layer}.{part}"
    else:
        layer = int(level) * row + (layers_per_block if kind == "upsamplers" else int(number))
        after = 2 if attends_up[int(level)] else 1
        part = {"resnets": "0", "attentions": "1", "upsamplers": f"{after}.conv"}[kind]
        block = f"output_blocks.{layer}.{part}"
    return StoredKey(f"{UNET}{block}.{_in_layer(kind, rest)}")


def map_vae_key(name: str, num_levels: int) -> StoredKey:
    """Return where a tensor of the autoencoder is stored.

    Args:
        name: As in `AutoencoderKL`.
        num_levels: Levels of either half.
    """
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.", lambda found: f"up.{num_levels - 1 - int(found[1])}.", name
    )
    name = re.sub(
        r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name
    )
    name = name.replace(".resnets.", ".block.")
    if ".mid_block.attentions.0." in name:
        half, rest = name.split(".mid_block.attentions.0.")
        layer, _, kind = rest.rpartition(".")
        name = f"{half}.mid.attn_1.{_VAE_ATTENTION[layer]}.{kind}"
    return StoredKey(VAE + name)


def map_clip_key(name: str) -> StoredKey:
    """Return where a tensor of Stable Diffusion 1.x's text encoder is stored.

    Args:
        name: As in `CLIPTextModel`, without `text_model.`.
    """
    return StoredKey(f"{CLIP}text_model.{name}")


def map_open_clip_key(name: str) -> StoredKey:
    """Return where a tensor of Stable Diffusion 2.x's text encoder is stored.

    Args:
        name: As in `CLIPTextModel`, without `text_model.`.
    """
    if name in _OPEN_CLIP_ENDS:
        return StoredKey(OPEN_CLIP + _OPEN_CLIP_ENDS[name])
    number, rest = name.removeprefix("encoder.layers.").split(".", 1)
    layer = f"{OPEN_CLIP}transformer.resblocks.{number}."
    if found := _PROJECTION.fullmatch(rest):
        return StoredKey(f"{layer}attn.in_proj_{found[2]}", "qkv".index(found[1]))
    for ours, theirs in _OPEN_CLIP_LAYER.items():
        rest = rest.replace(ours, theirs)
    return StoredKey(layer + rest)


def _in_layer(kind: str, rest: str) -> str:
    if kind == "resnets":
        layer, _, end = rest.partition(".")
        return f"{_UNET_RESNET[layer]}.{end}"
    return rest.removeprefix("conv.") if kind in ("downsamplers", "upsamplers") else rest
