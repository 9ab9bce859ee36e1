"""Stable Diffusion as a folder in diffusers' format, and weights from untrusted files."""

import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from magicvideo.errors import UserError
from magicvideo.limits import check_model_config
from magicvideo.models.components import INDEX_FILE
from magicvideo.pipelines.component_loading import load_tokenizer
from magicvideo.pipelines.model_folder import read_json, read_safetensors_header


@dataclass(frozen=True)
class ComponentState:
    """One stored network.

    Attributes:
        source: Its folder or file, for messages.
        config: Its configuration, by the names of diffusers or transformers.
        tensors: Its weights, by the names of diffusers or transformers.
        refused: Stored tensors that are not used, with the reason for each.
    """

    source: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SDCheckpoint:
    """The components of Stable Diffusion that a video model starts from.

    Attributes:
        unet: Weights of a `UNet2DConditionModel`.
        vae: Weights of an `AutoencoderKL`.
        text_encoder: Weights of a `CLIPTextModel`.
        image_encoder: Weights of CLIP's image encoder with its projection, or None.
        tokenizer: Tokenizer of the text encoder.
        scheduler: The noise schedule, with the settings common to all schedulers.
        refused: Other stored content that is not used, with reasons.
    """

    unet: ComponentState
    vae: ComponentState
    text_encoder: ComponentState
    image_encoder: ComponentState | None
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    refused: dict[str, str]


_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


def read_folder(folder: Path, stem: str) -> dict[str, Tensor]:
    """Read the tensors of one component, in one file or shards.

    Args:
        folder: The component's folder.
        stem: Base name of its weights: `diffusion_pytorch_model` or `model`.

    Raises:
        UserError: If there are no safetensors, a file is missing or damaged, or shards differ from
            their index.
    """
    for variant in ("", ".fp16"):
        whole = folder / f"{stem}{variant}.safetensors"
        if whole.is_file():
            return _read_whole(whole)
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return _read_shards(index)
    if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise UserError(
            f"{folder} contains only pickles, which can run code; use the version of the model "
            f"with {stem}.safetensors."
        )
    raise UserError(f"{folder} lacks {stem}.safetensors; get a complete copy of the model.")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` file, or of a `.ckpt` with only data.

    A `.ckpt` is a pickle. It is loaded with torch's restricted unpickler, which only creates
    tensors and plain containers.

    Raises:
        UserError: If the file is damaged, has another format, or contains other objects.
    """
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", ".ckpt", ".pt", ".pth"):
        raise UserError(f"{path} is not a checkpoint; supported are .safetensors and .ckpt.")
    # the content decides, because suffixes may be wrong
    if _is_safetensors(path):
        return _read_whole(path)
    if suffix == ".safetensors" and _is_pickle(path):
        raise UserError(
            f"{path} has the suffix .safetensors but is a PyTorch checkpoint; rename it to .ckpt, "
            "or use the .safetensors version of the model."
        )
    if suffix == ".safetensors":
        return _read_whole(path)  # raises the error
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about pickles, which are refused below
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is a pickle with other objects than tensors, and loading it could run code; "
            "use the .safetensors version of the model."
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}).") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise UserError(f"{path} contains no named weights; use another version of the model.")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if strange := [name for name in state if name not in tensors]:
        raise UserError(f"{path} holds {strange[0]!r}, which is not a tensor.")
    size = path.stat().st_size
    if large := [name for name, tensor in tensors.items() if tensor.nbytes > size]:
        raise UserError(f"{path} has {size:,} bytes, and {large[0]!r} in it would be larger.")
    return tensors


def _check_archive(path: Path) -> None:
    """Refuse compressed archives, which torch never writes: they may expand to any size."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({error}).") from None
    if unfolded > path.stat().st_size:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes and would expand to {unfolded:,}; "
            "checkpoints are not compressed, so use another copy of the model."
        )


def _is_pickle(path: Path) -> bool:
    """Return whether a file starts like a pickle, or like torch's ZIP archive of one."""
    with path.open("rb") as file:
        start = file.read(2)
    return start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _is_safetensors(path: Path) -> bool:
    """Return whether a file starts like safetensors: the header's length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[4:8] == bytes(4) and start[8:] == b"{"


def _read_whole(path: Path) -> dict[str, Tensor]:
    read_safetensors_header(path)
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{path} holds {name} in {kind}: 8-bit floats are too coarse for training; use "
                "the version in half or single precision."
            )
    return tensors


def _read_shards(index: Path) -> dict[str, Tensor]:
    places: Any = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise UserError(f"{index} is not an index of shards; get a new copy of the folder.")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        shard = _read_whole(index.parent / file)
        if foreign := [name for name in shard if places.get(name) != file]:
            raise UserError(
                f"{index.parent / file} holds {foreign[0]}, which {index.name} does not list; get "
                "a new copy of the folder."
            )
        tensors.update(shard)
    if missing := sorted(places.keys() - tensors.keys()):
        raise UserError(f"{index} lists {missing[0]}, which no shard contains.")
    return tensors


_TAKEN = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_NETWORK, _ENCODER = "diffusion_pytorch_model", "model"
# names of the autoencoder's attention in the first release of Stable Diffusion 1.x
_OLD_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
_SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "steps_offset",
    "set_alpha_to_one",
    "rescale_betas_zero_snr",
    "timestep_spacing",
)
_POSITIONS = "positions from 0 on, which are not stored"
_NOT_VISION = {
    "concept_embeds": "of the safety check, which is not part of a video model",
    "special_care_embeds": "of the safety check, which is not part of a video model",
    "text_model.": "of CLIP's text tower; the model has its own",
    "text_projection": "of CLIP's text tower; the model has its own",
    "logit_scale": "of CLIP's training",
}


def open_diffusers_folder(
    folder: Path, tokenizer: Path | None = None, image_encoder: Path | None = None
) -> SDCheckpoint:
    """Open the components of a folder in diffusers' format.

    Args:
        folder: Folder with `model_index.json`.
        tokenizer: Folder of another tokenizer.
        image_encoder: Folder of CLIP's image encoder, instead of the safety checker's.

    Raises:
        UserError: If it is not Stable Diffusion 1.x or 2.x, or a file is missing or damaged.
    """
    index = _read_index(folder)
    present = {name for name, value in index.items() if _is_component(value)}
    refused = {}
    if "feature_extractor" in present:
        refused["feature_extractor"] = "images are preprocessed by code"
    if image_encoder is not None:
        vision: ComponentState | None = vision_part(image_encoder)
        if "safety_checker" in present:
            refused["safety_checker"] = "replaced by the given image encoder"
    elif found := next((n for n in ("image_encoder", "safety_checker") if n in present), None):
        vision = vision_part(folder / found)
    else:
        vision = None
    return SDCheckpoint(
        unet=_network(folder / "unet", {}),
        vae=_network(folder / "vae", _OLD_ATTENTION),
        text_encoder=text_part(
            folder / "text_encoder",
            read_json(folder / "text_encoder" / "config.json"),
            read_folder(folder / "text_encoder", _ENCODER),
        ),
        image_encoder=vision,
        tokenizer=load_tokenizer(tokenizer or folder / "tokenizer"),
        scheduler=_scheduler(folder / "scheduler" / "scheduler_config.json"),
        refused=refused,
    )


def text_part(source: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> ComponentState:
    """Read a text encoder, without the prefix `text_model.`."""
    check_model_config(str(source), config)
    kept, refused = {}, {}
    for name, tensor in tensors.items():
        if name.endswith("position_ids"):
            refused[name] = _POSITIONS
        else:
            kept[name.removeprefix("text_model.")] = tensor
    return ComponentState(source, config, kept, refused)


def vision_part(folder: Path) -> ComponentState:
    """Read CLIP's image encoder and its projection, possibly from a larger model.

    A safety checker contains both, and so does a complete CLIP.

    Raises:
        UserError: If the folder is missing or damaged.
    """
    config = read_json(folder / "config.json")
    check_model_config(str(folder / "config.json"), config)
    kept, refused = {}, {}
    for name, tensor in read_folder(folder, _ENCODER).items():
        reason = next((why for start, why in _NOT_VISION.items() if name.startswith(start)), None)
        if name.endswith("position_ids"):
            reason = _POSITIONS
        if reason is not None:
            refused[name] = reason
        else:
            kept[name.replace("vision_model.vision_model.", "vision_model.")] = tensor
    if "vision_config" in config:
        inner = dict(config["vision_config"] or {})
        config = {**inner, "projection_dim": config.get("projection_dim", 512)}
    return ComponentState(folder, config, kept, refused)


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX_FILE).is_file():
        raise UserError(
            f"{folder} is not Stable Diffusion in diffusers' format: it has no {INDEX_FILE}."
        )
    index = read_json(folder / INDEX_FILE)
    if index.get("_class_name") == "MagicVideoPipeline":
        raise UserError(f"{folder} is already a model of magicvideo; there is nothing to inflate.")
    known = {*_TAKEN, "safety_checker", "feature_extractor", "image_encoder"}
    for name, value in index.items():
        if _is_component(value) and name not in known:
            raise UserError(
                f"{folder} has the component {name}; only Stable Diffusion 1.x and 2.x can be "
                f"inflated, with {', '.join(sorted(known))}."
            )
    if missing := [name for name in _TAKEN if not _is_component(index.get(name))]:
        raise UserError(f"{folder / INDEX_FILE} names no {missing[0]}; take a complete copy.")
    return index


def _is_component(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return isinstance(value, list) and len(value) == 2 and value[1] is not None


def _network(folder: Path, renamed: dict[str, str]) -> ComponentState:
    tensors = {}
    for name, tensor in read_folder(folder, _NETWORK).items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        tensors[name] = tensor
    config = read_json(folder / "config.json")
    check_model_config(str(folder / "config.json"), config)
    return ComponentState(folder, config, tensors)


def _scheduler(path: Path) -> DDIMScheduler:
    """Read the noise schedule of any of Stable Diffusion's schedulers.

    Predictions are not clipped, unlike in some schedulers by default, because latents are
    unbounded.
    """
    config = read_json(path)
    check_model_config(str(path), config)
    if not {"beta_schedule", "beta_start", "beta_end"} <= config.keys():
        raise UserError(f"{path} has no beta_schedule, which Stable Diffusion has.")
    kept = {name: config[name] for name in _SCHEDULE if name in config}
    try:
        return DDIMScheduler(**{**kept, "clip_sample": False})
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"{path} is not a valid schedule: {error}.") from None
