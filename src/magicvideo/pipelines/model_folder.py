"""A model folder as it lies on the disk: what it says of itself, checked before torch is loaded."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from magicvideo.atomic_io import hash_folder, verify_checksums
from magicvideo.errors import UserError

INDEX = "model_index.json"
TRAINING = "training.json"
BUNDLED_MODEL_DIR = Path(__file__).resolve().parent.parent / "weights" / "emoji"
# the classes that a component may have; a folder can name no other, so that it cannot run code
CLASSES = {
    "vae": (
        "PatchAutoencoder",
        "AutoencoderKL",
        "VideoPatchAutoencoder",
        "VideoAutoencoderKL",
    ),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer",),
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "image_conditioner": ("ImageConditioner",),
    "unet": ("VideoUNet",),
    "scheduler": ("DDIMScheduler",),
    "interpolator": ("Interpolator",),
    "upscaler": ("Upscaler",),
    "upscaler_scheduler": ("DDIMScheduler",),
}
# a model without them takes no pictures, or lacks the stages that follow the key frames
OPTIONAL = frozenset(
    {"image_encoder", "image_conditioner", "interpolator", "upscaler", "upscaler_scheduler"}
)
WEIGHTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "image_encoder": "model.safetensors",
    "image_conditioner": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "interpolator": "diffusion_pytorch_model.safetensors",
    "upscaler": "diffusion_pytorch_model.safetensors",
}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_WIDEST_HEADER = 2_000_000  # twenty thousand tensors; the format allows fifty times as much
_WIDTHS = {"BOOL": 1, "I8": 1, "U8": 1, "F16": 2, "BF16": 2, "I16": 2, "F32": 4, "I32": 4}
_WIDTHS |= {"F64": 8, "I64": 8}


class ModelIndex(BaseModel):
    """`model_index.json`: a class for each component, and the model's own defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    class_name: str = Field(alias="_class_name")
    diffusers_version: str = Field(alias="_diffusers_version", default="")
    name_or_path: str = Field(alias="_name_or_path", default="")
    vae: tuple[str, str]
    text_encoder: tuple[str, str]
    tokenizer: tuple[str, str]
    image_encoder: tuple[str, str] | tuple[None, None] = (None, None)
    image_conditioner: tuple[str, str] | tuple[None, None] = (None, None)
    unet: tuple[str, str]
    scheduler: tuple[str, str]
    interpolator: tuple[str, str] | tuple[None, None] = (None, None)
    upscaler: tuple[str, str] | tuple[None, None] = (None, None)
    upscaler_scheduler: tuple[str, str] | tuple[None, None] = (None, None)
    default_fps: float = 8.0
    default_steps: int = 25
    default_guidance_scale: float = 4.0
    default_guidance_stop: float = Field(default=1.0, ge=0, le=1)
    default_scheduler: str = "ddim"
    default_interpolation_steps: int = Field(default=8, ge=1)
    default_upscaler_steps: int = Field(default=2, ge=1)
    interpolation_noise_level: int = Field(default=0, ge=0, lt=1000)
    upscaler_noise_level: float = Field(default=0.0, ge=0)
    noise_correlation: float = Field(default=0.0, ge=0, le=1)
    license: str | None = None

    def class_of(self, component: str) -> str | None:
        """Return the name of a component's class, or None if the model lacks the component."""
        library_and_class: tuple[str | None, str | None] = getattr(self, component)
        return library_and_class[1]

    def networks(self) -> dict[str, str]:
        """Return the components that have weights, with the names of their classes."""
        found = {name: self.class_of(name) for name in WEIGHTS}
        return {name: class_name for name, class_name in found.items() if class_name is not None}


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)


def verify_model_folder(folder: Path) -> ModelIndex:
    """Check a whole model folder and return its index.

    Every file is compared with `SHA256SUMS`, and every weights file with its own header.

    Raises:
        UserError: If the folder is no model, or a file is missing, foreign, damaged or a pickle.
    """
    if not folder.is_dir():
        raise UserError(f"The model folder {folder} does not exist.")
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} is not a model folder: it has no {INDEX}.")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _PICKLES:
            raise UserError(f"{path} is a pickle, which can run code; only safetensors are read.")
    verify_checksums(folder)
    index = read_index(folder)
    for component in index.networks():
        read_safetensors_header(folder / component / WEIGHTS[component])
    return index


def read_index(folder: Path) -> ModelIndex:
    """Return the checked content of `model_index.json`.

    Raises:
        UserError: If it cannot be read or names a class that a model may not have.
    """
    path = folder / INDEX
    try:
        index = ModelIndex.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is not understood: {place}: {first['msg']}.") from None
    for component, allowed in CLASSES.items():
        if component in OPTIONAL and index.class_of(component) is None:
            continue
        if index.class_of(component) not in allowed:
            raise UserError(
                f"{path} names the class {index.class_of(component)} for {component}; "
                f"it must be {' or '.join(allowed)}."
            )
    return index


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: If the file is absent or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; take a complete copy of the folder.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} holds no valid JSON; take a fresh copy of the folder.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; take a fresh copy of the folder.")
    return content


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors that a safetensors file lists, by name.

    Raises:
        UserError: If the file is missing, cut short or no safetensors file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; take a complete copy of the folder.")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _WIDEST_HEADER:
                raise ValueError("no header is that long")
            text = file.read(length).decode("utf-8")
        if not text.startswith("{"):
            raise ValueError("no header begins so")
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {
            name: TensorInfo(entry["dtype"], tuple(entry["shape"]))
            for name, entry in header.items()
        }
        end = _end_of_data([(tensors[name], header[name]["data_offsets"]) for name in tensors])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        raise UserError(f"{path} is not a safetensors file; copy it again.") from None
    size = path.stat().st_size
    if size != 8 + length + end:
        raise UserError(
            f"{path} has {size} bytes where its header promises {8 + length + end}; copy it again."
        )
    return tensors


def _end_of_data(places: list[tuple[TensorInfo, list[int]]]) -> int:
    """Return where the last tensor ends; they follow one another without gaps and overlaps."""
    end = 0
    for tensor, (first, last) in sorted(places, key=lambda place: place[1]):
        whole = all(type(number) is int and number >= 0 for number in (*tensor.shape, first, last))
        if not whole or first != end or last - first != tensor.count * _WIDTHS[tensor.dtype]:
            raise ValueError("tensors do not lie one after the other")
        end = last
    return end


def check_keys(
    path: Path, stored: dict[str, TensorInfo], expected: dict[str, tuple[int, ...]]
) -> None:
    """Compare the tensors of a file with those that a network has.

    Raises:
        UserError: If one is missing, foreign or has another shape. It names the first such tensor.
    """
    if missing := sorted(expected.keys() - stored.keys()):
        raise UserError(f"{path} lacks the tensor {missing[0]}{_others(missing)}.")
    if foreign := sorted(stored.keys() - expected.keys()):
        raise UserError(f"{path} holds the tensor {foreign[0]}{_others(foreign)}, unknown here.")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise UserError(
                f"{path} holds {name} with the shape {list(stored[name].shape)}; "
                f"the network asks for {list(shape)}."
            )


def _others(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


@dataclass(frozen=True)
class ComponentSummary:
    """What `magicvideo info` says of one component."""

    name: str
    class_name: str
    parameters: int
    size: int


@dataclass(frozen=True)
class ModelSummary:
    """What `magicvideo info` says of a model; `training` is steps a stage, where it is known."""

    folder: Path
    hash: str
    license: str | None
    training: dict[str, int]
    components: list[ComponentSummary]


def summarize(folder: Path) -> ModelSummary:
    """Return what a model folder says of itself, from its headers alone.

    Raises:
        UserError: As `verify_model_folder`.
    """
    index = verify_model_folder(folder)
    components = []
    for name in CLASSES:
        class_name = index.class_of(name)
        if class_name is None:
            continue
        tensors = read_safetensors_header(folder / name / WEIGHTS[name]) if name in WEIGHTS else {}
        files = [path for path in (folder / name).rglob("*") if path.is_file()]
        components.append(
            ComponentSummary(
                name=name,
                class_name=class_name,
                parameters=sum(tensor.count for tensor in tensors.values()),
                size=sum(path.stat().st_size for path in files),
            )
        )
    return ModelSummary(
        folder, hash_folder(folder), index.license, _training_steps(folder), components
    )


def _training_steps(folder: Path) -> dict[str, int]:
    if not (folder / TRAINING).is_file():
        return {}
    steps = read_json(folder / TRAINING).get("steps")
    return steps if isinstance(steps, dict) else {}
