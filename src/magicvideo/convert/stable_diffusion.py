"""Build a video model from Stable Diffusion's components; every tensor is checked."""

import inspect
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from magicvideo.convert.diffusers_folder import ComponentState, SDCheckpoint, open_diffusers_folder
from magicvideo.convert.single_file import open_single_file
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import vae_scale_factor
from magicvideo.models.conditioning import ImageConditioner
from magicvideo.models.inflate import inflate, is_temporal_key
from magicvideo.models.unet import VideoUNet
from magicvideo.pipelines.model_folder import TensorInfo, check_keys
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

Network = TypeVar("Network", bound=nn.Module)

SHARED_UNET_CONFIG = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
    "norm_num_groups",
    "use_linear_projection",
)
# the size is a new choice, and upcasting only matters in half precision
_FREE = ("sample_size", "upcast_attention")
_GUIDANCE = 7.5  # Stable Diffusion's default


@dataclass(frozen=True)
class TransferReport:
    """Numbers of copied, new and unused tensors of one component.

    Attributes:
        component: Its name in the model folder.
        copied: Copied tensors.
        new: Tensors that Stable Diffusion does not have, with neutral initial values.
        refused: Stored tensors that are not used.
        reasons: The reasons, with the number of tensors for each.
    """

    component: str
    copied: int
    new: int
    refused: int
    reasons: dict[str, int]


def inflate_stable_diffusion(
    source: Path,
    output: Path,
    *,
    num_frames: int = 16,
    size: int | None = None,
    tokenizer: Path | None = None,
    image_encoder: Path | None = None,
    prediction: str | None = None,
) -> list[TransferReport]:
    """Write a video model that equals Stable Diffusion frame by frame.

    Source: MagicVideo initializes its denoiser and its autoencoder from a text-to-image model.

    Args:
        source: Stable Diffusion 1.x or 2.x, as a folder in diffusers' format or as one file.
        output: The model folder to create.
        num_frames: Number of key frames of a video.
        size: Side of a frame in pixels; by default as in the training of Stable Diffusion.
        tokenizer: Folder of the tokenizer.
        image_encoder: Folder of CLIP's image encoder.
        prediction: Prediction type of a single file of Stable Diffusion 2.x.

    Raises:
        UserError: If the source is invalid, a tensor is missing, unknown or of the wrong shape, or
            the output exists.
    """
    if output.exists():
        raise UserError(f"{output} exists; remove it or choose another folder.")
    if not source.exists():
        raise UserError(f"{source} does not exist; name Stable Diffusion's folder or file.")
    if source.is_dir():
        if prediction is not None:
            raise UserError(
                "--prediction is for single files; a folder states its prediction type."
            )
        parts = open_diffusers_folder(source, tokenizer, image_encoder)
    else:
        parts = open_single_file(source, tokenizer, image_encoder, prediction)
    pipeline, accounts = build_video_pipeline(parts, num_frames=num_frames, size=size)
    pipeline.save_pretrained(output)
    return accounts


def build_video_pipeline(
    parts: SDCheckpoint, *, num_frames: int, size: int | None
) -> tuple[MagicVideoPipeline, list[TransferReport]]:
    """Build a pipeline with Stable Diffusion's weights, and a report per component.

    Raises:
        UserError: If components are not supported, or do not fit together.
    """
    video_unet_config(
        parts.unet
    )  # first, because other kinds of model also have components that do not fit together
    _check_parts(parts)
    for part in (parts.unet, parts.vae, parts.text_encoder, parts.image_encoder):
        _check_finite(part)
    vae, of_vae = _take_over("vae", _autoencoder(parts.vae), parts.vae)
    unet, of_unet = _make_unet(parts.unet, num_frames, _latent_side(parts, vae, size))
    text = CLIPTextModel(_clip_config(CLIPTextConfig, parts.text_encoder))
    text, of_text = _take_over("text_encoder", text, parts.text_encoder)
    accounts = [of_unet, of_vae, of_text]
    image = conditioner = None
    if parts.image_encoder is not None:
        image = CLIPVisionModelWithProjection(_clip_config(CLIPVisionConfig, parts.image_encoder))
        image, of_image = _take_over("image_encoder", image, parts.image_encoder)
        conditioner = ImageConditioner(
            image.config.projection_dim, unet.config.cross_attention_dim
        ).eval()
        new = len(conditioner.state_dict())
        accounts += [of_image, TransferReport("image_conditioner", 0, new, 0, {})]
    if parts.refused:
        reasons = dict(Counter(parts.refused.values()))
        accounts.append(TransferReport("(next to them)", 0, 0, len(parts.refused), reasons))
    pipeline = MagicVideoPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=parts.tokenizer,
        unet=unet,
        scheduler=parts.scheduler,
        image_encoder=image,
        image_conditioner=conditioner,
        generation_defaults={"guidance_scale": _GUIDANCE},
    )
    return pipeline, accounts


def video_unet_config(part: ComponentState) -> dict[str, Any]:
    """Return the arguments of `VideoUNet` for an image network.

    Raises:
        UserError: If the image network differs from Stable Diffusion 1.x and 2.x.
    """
    signature = inspect.signature(UNet2DConditionModel.__init__).parameters
    for name, value in part.config.items():
        if name.startswith("_") or name in SHARED_UNET_CONFIG or name in _FREE:
            continue
        neutral = signature[name].default if name in signature else None
        if _plain(value) != _plain(neutral):
            raise UserError(
                f"{part.source}: {name}={value!r} differs from Stable Diffusion 1.x and 2.x, "
                f"which have {neutral!r}; only these can be inflated."
            )
    config = {name: part.config.get(name, signature[name].default) for name in SHARED_UNET_CONFIG}
    if config["in_channels"] != config["out_channels"]:
        raise UserError(
            f"{part.source}: the U-Net reads {config['in_channels']} channels and gives "
            f"{config['out_channels']}; models for inpainting or depth cannot be inflated, use "
            "the text-to-image model."
        )
    return config


def _make_unet(
    part: ComponentState, num_frames: int, side: int
) -> tuple[VideoUNet, TransferReport]:
    config = video_unet_config(part)
    try:
        unet = VideoUNet(**config, sample_size=side, num_frames=num_frames).eval()
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{part.source} is not a valid U-Net configuration: {error}.") from None
    expected = {
        name: tuple(x.shape) for name, x in unet.state_dict().items() if not is_temporal_key(name)
    }
    check_keys(part.source, _stored(part.tensors), expected)
    inflation = inflate(unet, part.tensors)
    return unet, _account("unet", len(inflation.copied), len(inflation.new), part)


def _take_over(
    component: str, network: Network, part: ComponentState
) -> tuple[Network, TransferReport]:
    own = network.state_dict()
    # names of a text encoder's tensors depend on the version of transformers
    prefix = "text_model." if any(name.startswith("text_model.") for name in own) else ""
    tensors = {prefix + name: tensor for name, tensor in part.tensors.items()}
    check_keys(part.source, _stored(tensors), {name: tuple(x.shape) for name, x in own.items()})
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(requires_grad=False), _account(
        component, len(tensors), 0, part
    )


def _autoencoder(part: ComponentState) -> AutoencoderKL:
    config = {name: value for name, value in part.config.items() if not name.startswith("_")}
    try:
        return AutoencoderKL(**config)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{part.source} is not a valid autoencoder configuration: {error}."
        ) from None


def _clip_config(kind: type[Any], part: ComponentState) -> Any:  # noqa: ANN401 - either configuration
    """Return the settings that affect the computation of a CLIP encoder; files have many more."""
    known = set(kind().to_dict()) - {"model_type", "transformers_version", "architectures", "dtype"}
    return kind(**{name: value for name, value in part.config.items() if name in known})


def _latent_side(parts: SDCheckpoint, vae: AutoencoderKL, size: int | None) -> int:
    factor = vae_scale_factor(vae)
    if size is None:
        side: int = parts.unet.config.get("sample_size") or 64
        return side
    if size < factor or size % factor:
        raise UserError(f"The size is {size}; it must be a multiple of {factor} pixels.")
    return size // factor


def _check_parts(parts: SDCheckpoint) -> None:
    """Check that the components fit each other.

    Raises:
        UserError: If outputs and inputs do not match.
    """
    text, unet, vae = parts.text_encoder, parts.unet, parts.vae
    for what, given, taken in (
        ("width of the text", text.config.get("hidden_size"), "cross_attention_dim"),
        ("number of latent channels", vae.config.get("latent_channels"), "in_channels"),
    ):
        expected = unet.config.get(taken)
        if given != expected:
            raise UserError(
                f"{unet.source} expects {expected} as the {what}, but the model has {given}; its "
                "components belong to different models."
            )
    length = parts.text_encoder.config.get("max_position_embeddings", 77)
    if parts.tokenizer.model_max_length > length:
        raise UserError(
            f"The tokenizer has {parts.tokenizer.model_max_length} tokens and the text encoder "
            f"{length}; name the right tokenizer with --tokenizer."
        )


def _check_finite(part: ComponentState | None) -> None:
    """Check that the weights of a network are finite.

    Raises:
        UserError: If not. The message names the first such tensor.
    """
    for name, tensor in part.tensors.items() if part else ():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{part.source if part else ''}: {name} contains values that are not finite; use "
                "another copy of the model."
            )


def _account(component: str, copied: int, new: int, part: ComponentState) -> TransferReport:
    return TransferReport(
        component, copied, new, len(part.refused), dict(Counter(part.refused.values()))
    )


def _stored(tensors: dict[str, Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(str(x.dtype), tuple(x.shape)) for name, x in tensors.items()}


def _plain(value: Any) -> Any:  # noqa: ANN401 - any setting
    return list(value) if isinstance(value, tuple) else value
