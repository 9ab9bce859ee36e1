"""Stable Diffusion as one file in its authors' own layout."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from magicvideo.convert.checkpoint import ComponentState, SDCheckpoint
from magicvideo.convert.diffusers_folder import vision_part
from magicvideo.convert.infer_config import is_open_clip, text_config, unet_config, vae_config
from magicvideo.convert.key_mapping import (
    OPEN_CLIP,
    StoredKey,
    map_clip_key,
    map_open_clip_key,
    map_unet_key,
    map_vae_key,
)
from magicvideo.convert.safe_load import read_checkpoint
from magicvideo.errors import UserError
from magicvideo.pipelines.loading import load_tokenizer

# what such files hold beside the networks; anything else is refused as unknown
_NO_PLACE = {
    r"model_ema\..*": "averages of the weights, which are taken over themselves",
    r"(betas|.*alphas_cumprod(_prev)?|posterior_.*|sqrt_.*|log_one_.*|scale_factor|lvlb_weights)": (
        "the noise schedule, which is known"
    ),
    r"cond_stage_model\..*position_ids": "positions from 0 on, which need no storing",
    r"cond_stage_model\.model\.transformer\.resblocks\..*": (
        "OpenCLIP's last layer, which Stable Diffusion 2.x leaves out"
    ),
    r"cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)": (
        "of OpenCLIP's training, which Stable Diffusion 2.x leaves out"
    ),
    r"first_stage_model\.loss\..*": "of the autoencoder's training",
}


def open_single_file(
    path: Path,
    tokenizer: Path | None = None,
    image_encoder: Path | None = None,
    prediction: str | None = None,
) -> SDCheckpoint:
    """Return what a `.safetensors` or `.ckpt` file holds.

    Args:
        path: The file.
        tokenizer: A folder with CLIP's tokenizer; by default `tokenizer` beside the file.
        image_encoder: A folder with CLIP's vision tower, which such a file never holds.
        prediction: `epsilon` or `v_prediction`. Stable Diffusion 1.x predicts noise; of 2.x there
            are both kinds, and the file does not say which it is.

    Raises:
        UserError: If it is not Stable Diffusion 1.x or 2.x, a tensor is missing, foreign or
            misshapen, or what the file cannot tell was not given.
    """
    folder = tokenizer or path.parent / "tokenizer"
    if not folder.is_dir():
        raise UserError(
            f"A single file holds no tokenizer, and {folder} is no folder; name one with "
            "--tokenizer, such as that of Stable Diffusion in diffusers' format."
        )
    stored = read_checkpoint(path)
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
    schedule = _schedule(prediction)
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
    """Return empty networks, for the names and shapes of their tensors."""
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
    """Return a network's tensors by diffusers' names, and the names that they were stored under."""
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
                f"{path} holds {place.name} with the shape {list(stored[place.name].shape)}; by "
                f"its other tensors {list(own.shape)} is expected."
            )
        tensors[name.removeprefix("text_model.")] = tensor
    return ComponentState(path, config, tensors), used


def _account(path: Path, stored: dict[str, Tensor], used: set[str]) -> dict[str, str]:
    """Return the tensors that have no place here, with the reason of each.

    Raises:
        UserError: If one is none of those that Stable Diffusion has.
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
            raise UserError(f"{path} holds the tensor {name}, unknown here.")
        refused[name] = reason
    return refused


def _check_prediction(path: Path, prediction: str | None, *, is_second: bool) -> str:
    if prediction is None and is_second:
        raise UserError(
            f"{path} is of Stable Diffusion 2.x and does not say what it predicts; add "
            "--prediction v_prediction (models of 768 pixels) or --prediction epsilon (of 512)."
        )
    return prediction or "epsilon"


def _schedule(prediction: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )


def _check_schedule(path: Path, stored: dict[str, Tensor], schedule: DDIMScheduler) -> None:
    kept = stored.get("alphas_cumprod")
    expected = schedule.alphas_cumprod
    if kept is not None and not (
        kept.shape == expected.shape and torch.allclose(kept.float(), expected, atol=1e-3)
    ):
        raise UserError(f"{path} was trained with another noise schedule than Stable Diffusion.")
