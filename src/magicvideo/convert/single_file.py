"""Stable Diffusion as a single file in its original layout."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from magicvideo.convert.diffusers_folder import (
    ComponentState,
    SDCheckpoint,
    read_checkpoint,
    vision_part,
)
from magicvideo.errors import UserError
from magicvideo.pipelines.component_loading import load_tokenizer

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
    """Key of a tensor in the file.

    Attributes:
        name: Name of the stored tensor.
        third: Index of the third of its rows to use, because OpenCLIP stacks Q, K and V; None for
            all.
    """

    name: str
    third: int | None = None


def map_unet_key(name: str, layers_per_block: int, attends_up: tuple[bool, ...]) -> StoredKey:
    """Map the name of a tensor of the U-Net to its key in the file.

    Args:
        name: As in `UNet2DConditionModel`.
        layers_per_block: Residual blocks per level of the encoder.
        attends_up: Whether each level of the decoder has attention.
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
    """Map the name of a tensor of the autoencoder to its key in the file.

    Args:
        name: As in `AutoencoderKL`.
        num_levels: Levels of the encoder and of the decoder.
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
    """Map a name of Stable Diffusion 1.x's text encoder to its key in the file.

    Args:
        name: As in `CLIPTextModel`, without `text_model.`.
    """
    return StoredKey(f"{CLIP}text_model.{name}")


def map_open_clip_key(name: str) -> StoredKey:
    """Map a name of Stable Diffusion 2.x's text encoder to its key in the file.

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


# settings that shapes do not determine are equal in all versions of Stable Diffusion 1.x and 2.x
_HEADS, _HEAD_WIDTH, _GROUPS = 8, 64, 32
_SIDE, _SCALING = 64, 0.18215


def unet_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Infer the arguments of `UNet2DConditionModel`.

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
    """Infer the arguments of `AutoencoderKL`.

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
    """Infer the configuration of `CLIPTextModel`.

    Stable Diffusion 2.x uses OpenCLIP's text encoder without its last layer.

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


# known content other than the networks; any other content is refused
_NO_PLACE = {
    r"model_ema\..*": "averages of weights; the weights themselves are used",
    r"(betas|.*alphas_cumprod(_prev)?|posterior_.*|sqrt_.*|log_one_.*|scale_factor|lvlb_weights)": (
        "the noise schedule, which is known"
    ),
    r"cond_stage_model\..*position_ids": "positions from 0 on, which are not stored",
    r"cond_stage_model\.model\.transformer\.resblocks\..*": (
        "OpenCLIP's last layer, which Stable Diffusion 2.x leaves out"
    ),
    r"cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)": (
        "of OpenCLIP's training, which Stable Diffusion 2.x leaves out"
    ),
    r"first_stage_model\.loss\..*": "of the autoencoder's training",
    r"cond_stage_model\.(transformer\.)?(text_projection(\.weight)?|logit_scale)": (
        "of CLIP's training, which Stable Diffusion leaves out"
    ),
    r"embedding_manager\..*": "of textual inversion's training",
    r"v_pred|ztsnr": "markers of the noise schedule, which are applied",
}


# names of the same tensors in other programs
_VARIANTS = (
    # diffusers' conversion to the original layout keeps some of its attention names
    *(
        (rf"^({re.escape(VAE)}\w+\.mid\.attn_1\.){name}\.", rf"\1{original}.")
        for original, names in (
            ("norm", ("group_norm",)),
            ("q", ("to_q", "query")),
            ("k", ("to_k", "key")),
            ("v", ("to_v", "value")),
            ("proj_out", ("to_out\\.0", "proj_attn")),
        )
        for name in names
    ),
    # NovelAI's files and merges with them
    (rf"^({re.escape(CLIP)})(?=embeddings\.|encoder\.|final_layer_norm\.)", r"\1text_model."),
)


def open_single_file(
    path: Path,
    tokenizer: Path | None = None,
    image_encoder: Path | None = None,
    prediction: str | None = None,
) -> SDCheckpoint:
    """Open the components of a `.safetensors` or `.ckpt` file.

    Args:
        path: The file.
        tokenizer: Folder of CLIP's tokenizer; by default `tokenizer` next to the file.
        image_encoder: Folder of CLIP's image encoder, which such files do not contain.
        prediction: `epsilon` or `v_prediction`. Stable Diffusion 1.x predicts noise; 2.x has both
            variants, which the file does not distinguish.

    Raises:
        UserError: If it is not Stable Diffusion 1.x or 2.x, a tensor is missing, unknown or of the
            wrong shape, or a required argument is missing.
    """
    folder = tokenizer or path.parent / "tokenizer"
    if not folder.is_dir():
        raise UserError(
            f"A single file contains no tokenizer, and {folder} is not a folder; name one with "
            "--tokenizer, such as that of Stable Diffusion in diffusers' format."
        )
    stored = _rename_variants(path, read_checkpoint(path))
    if prediction is None and "v_pred" in stored:
        prediction = "v_prediction"
    prediction = _check_prediction(path, prediction, is_second=is_open_clip(stored))
    try:
        configs = unet_config(stored), vae_config(stored), text_config(stored)
    except (KeyError, StopIteration) as error:
        lacking = error.args[0] if error.args else "the tensors of a U-Net"
        raise UserError(f"{path} is not Stable Diffusion 1.x or 2.x: it lacks {lacking}.") from None
    unet, vae, text = (
        _take(path, stored, config, place, network)
        for config, place, network in zip(
            configs, _places(configs, stored), _networks(configs), strict=True
        )
    )
    refused = _account(path, stored, {used for _, names in (unet, vae, text) for used in names})
    schedule = _schedule(prediction, zero_terminal_snr="ztsnr" in stored)
    _check_schedule(path, stored, schedule)
    return SDCheckpoint(
        unet=unet[0],
        vae=vae[0],
        text_encoder=text[0],
        image_encoder=None if image_encoder is None else vision_part(image_encoder),
        tokenizer=load_tokenizer(folder),
        scheduler=schedule,
        refused=refused,
    )


def _networks(configs: tuple[dict[str, Any], ...]) -> tuple[nn.Module, ...]:
    """Build networks on the meta device, for the names and shapes of their tensors."""
    unet, vae, text = configs
    with torch.device("meta"):
        return (
            UNet2DConditionModel(**unet),
            AutoencoderKL(**vae),
            CLIPTextModel(CLIPTextConfig(**text)),
        )


def _places(
    configs: tuple[dict[str, Any], ...], stored: dict[str, Tensor]
) -> tuple[Callable[[str], StoredKey], ...]:
    unet, vae, _ = configs
    attends_up = tuple(kind.startswith("CrossAttn") for kind in unet["up_block_types"])
    text = map_open_clip_key if is_open_clip(stored) else map_clip_key
    return (
        lambda name: map_unet_key(name, unet["layers_per_block"], attends_up),
        lambda name: map_vae_key(name, len(vae["block_out_channels"])),
        lambda name: text(name.removeprefix("text_model.")),
    )


def _take(
    path: Path,
    stored: dict[str, Tensor],
    config: dict[str, Any],
    place_of: Callable[[str], StoredKey],
    network: nn.Module,
) -> tuple[ComponentState, set[str]]:
    """Return a network's tensors by diffusers' names, and their keys in the file."""
    tensors, used = {}, set()
    for name, own in network.state_dict().items():
        place = place_of(name)
        if place.name not in stored:
            raise UserError(f"{path} lacks the tensor {place.name}.")
        used.add(place.name)
        tensor = stored[place.name]
        if place.third is not None:
            tensor = tensor.chunk(3)[place.third]
        # the autoencoder's attention was stored as 1x1 convolutions
        if tensor.ndim > own.ndim and tensor.shape[own.ndim :] == (1,) * (tensor.ndim - own.ndim):
            tensor = tensor.flatten(own.ndim - 1)
        if tensor.shape != own.shape:
            raise UserError(
                f"{path} holds {place.name} with shape {list(stored[place.name].shape)}; its "
                f"other tensors imply {list(own.shape)}."
            )
        tensors[name.removeprefix("text_model.")] = tensor
    return ComponentState(path, config, tensors), used


def _account(path: Path, stored: dict[str, Tensor], used: set[str]) -> dict[str, str]:
    """Return the unused tensors with reasons.

    Raises:
        UserError: If one does not belong to Stable Diffusion.
    """
    refused = {}
    last = max(
        (int(found[1]) for name in used if (found := re.search(r"resblocks\.(\d+)\.", name))),
        default=-1,
    )
    for name in sorted(stored.keys() - used):
        reason = next(
            (why for pattern, why in _NO_PLACE.items() if re.fullmatch(pattern, name)), ""
        )
        layer = re.match(rf"{re.escape(OPEN_CLIP)}transformer\.resblocks\.(\d+)\.", name)
        if not reason or (layer and int(layer[1]) != last + 1):
            raise UserError(f"{path} contains the unknown tensor {name}.")
        refused[name] = reason
    return refused


def _check_prediction(path: Path, prediction: str | None, *, is_second: bool) -> str:
    if prediction is None and is_second:
        raise UserError(
            f"{path} is Stable Diffusion 2.x, which does not state its prediction type; add "
            "--prediction v_prediction (models of 768 pixels) or --prediction epsilon (of 512)."
        )
    return prediction or "epsilon"


def _schedule(prediction: str, *, zero_terminal_snr: bool) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing" if zero_terminal_snr else "leading",
    )


def _check_schedule(path: Path, stored: dict[str, Tensor], schedule: DDIMScheduler) -> None:
    """Compare the stored noise schedule, if any, with that of Stable Diffusion.

    Raises:
        UserError: If they differ by more than rounding.
    """
    kept = stored.get("alphas_cumprod")
    if kept is None or "ztsnr" in stored:  # markers come with the schedule of the base model
        return
    expected = schedule.alphas_cumprod
    # bfloat16 has 8 bits, and files may be rounded more than once
    tolerance = 2 * torch.finfo(kept.dtype).eps if kept.is_floating_point() else 0.0
    if kept.shape != expected.shape or not torch.allclose(
        kept.float(), expected, rtol=tolerance, atol=1e-3
    ):
        raise UserError(f"{path} was trained with another noise schedule than Stable Diffusion.")


def _rename_variants(path: Path, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to the original layout, from which converters and mergers deviate.

    Raises:
        UserError: If two tensors get the same name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        usual = name
        for pattern, replacement in _VARIANTS:
            usual = re.sub(pattern, replacement, usual)
        if usual in renamed or (usual != name and usual in stored):
            raise UserError(f"{path} contains {usual} twice, under two names; use another copy.")
        renamed[usual] = tensor
    return renamed
