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
    """One network as stored.

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
        image_encoder: Weights of CLIP's vision tower with its projection, or None.
        tokenizer: The text encoder's own.
        scheduler: The noise schedule, with the settings that every scheduler shares.
        refused: What else was stored and is not used, with the reason for each.
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
    """Return the tensors of one component, whole or in shards, in single or half precision.

    Args:
        folder: The component's folder.
        stem: What its weights are called: `diffusion_pytorch_model` or `model`.

    Raises:
        UserError: If there are no safetensors, or a file is missing, damaged or not as the index
            of the shards says.
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
            f"{folder} holds pickles alone, which can run code; take the version of the model "
            f"that has {stem}.safetensors."
        )
    raise UserError(f"{folder} lacks {stem}.safetensors; take a complete copy of the model.")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file, or of a `.ckpt` that holds nothing but data.

    A checkpoint is a pickle. It is read by torch's restricted reader, which builds tensors and
    plain containers and calls nothing else that the file names.

    Raises:
        UserError: If the file is damaged or of another kind, or holds objects.
    """
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", ".ckpt", ".pt", ".pth"):
        raise UserError(f"{path} is no checkpoint; allowed are .safetensors and .ckpt.")
    # the content decides, since files get other names
    if _is_safetensors(path):
        return _read_whole(path)
    if suffix == ".safetensors" and _is_pickle(path):
        raise UserError(
            f"{path} is called .safetensors and is a PyTorch checkpoint; rename it to .ckpt, or "
            "take the .safetensors version of the model."
        )
    if suffix == ".safetensors":
        return _read_whole(path)  # which says what is wrong
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused a moment later
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is a pickle that holds more than tensors, and reading it could run code; "
            "take the .safetensors version of the model."
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}).") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no weights by name; take another version of the model.")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if strange := [name for name in state if name not in tensors]:
        raise UserError(f"{path} holds {strange[0]!r}, which is no tensor.")
    size = path.stat().st_size
    if large := [name for name, tensor in tensors.items() if tensor.nbytes > size]:
        raise UserError(f"{path} has {size:,} bytes, and {large[0]!r} in it would be larger.")
    return tensors


def _check_archive(path: Path) -> None:
    """Refuse a compressed archive, which torch never writes: it may expand without end."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({error}).") from None
    if unfolded > path.stat().st_size:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes and would unfold to {unfolded:,}; "
            "checkpoints are not compressed, so take another copy of the model."
        )


def _is_pickle(path: Path) -> bool:
    """Return whether a file begins as a pickle, or as the ZIP archive in which torch saves one."""
    with path.open("rb") as file:
        start = file.read(2)
    return start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors: the header's length in 8 bytes, then JSON."""
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
                f"{path} holds {name} in {kind}: 8-bit floats are too coarse to train from; take "
                "the version in half or single precision."
            )
    return tensors


def _read_shards(index: Path) -> dict[str, Tensor]:
    places: Any = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise UserError(f"{index} is no index of shards; take a fresh copy of the folder.")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        shard = _read_whole(index.parent / file)
        if foreign := [name for name in shard if places.get(name) != file]:
            raise UserError(
                f"{index.parent / file} holds {foreign[0]}, which {index.name} does not say; "
                "take a fresh copy of the folder."
            )
        tensors.update(shard)
    if missing := sorted(places.keys() - tensors.keys()):
        raise UserError(f"{index} promises {missing[0]}, which no shard holds.")
    return tensors


_TAKEN = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_NETWORK, _ENCODER = "diffusion_pytorch_model", "model"
# names of the autoencoder's attention when Stable Diffusion 1.x was published
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
    """Return the components in a folder, in single or half precision, sharded or not.

    Args:
        folder: With `model_index.json`.
        tokenizer: A folder to take the tokenizer from, in place of the model's own.
        image_encoder: A folder with CLIP's vision tower, in place of the safety checker's.

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
    """Return a text encoder, its tensors without the prefix `text_model.`."""
    check_model_config(str(source), config)
    kept, refused = {}, {}
    for name, tensor in tensors.items():
        if name.endswith("position_ids"):
            refused[name] = _POSITIONS
        else:
            kept[name.removeprefix("text_model.")] = tensor
    return ComponentState(source, config, kept, refused)


def vision_part(folder: Path) -> ComponentState:
    """Return CLIP's vision tower and its projection, alone or from a larger model.

    A safety checker has both, and so has a whole CLIP.

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
        raise UserError(f"{folder} is a model of magicvideo already; there is nothing to inflate.")
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
    """Return the noise schedule of any of Stable Diffusion's schedulers.

    Latents are unbounded, so predictions are not clipped, which is the default of some schedulers.
    """
    config = read_json(path)
    check_model_config(str(path), config)
    if not {"beta_schedule", "beta_start", "beta_end"} <= config.keys():
        raise UserError(f"{path} has no beta_schedule, which Stable Diffusion has.")
    kept = {name: config[name] for name in _SCHEDULE if name in config}
    try:
        return DDIMScheduler(**{**kept, "clip_sample": False})
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"{path} does not describe a schedule: {error}.") from None
