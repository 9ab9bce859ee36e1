"""Model folders: locating and verifying them, without importing torch."""

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from magicvideo.atomic_io import hash_folder, verify_checksums
from magicvideo.errors import UserError
from magicvideo.limits import MAX_WIDTH
from magicvideo.models.components import (
    COMPONENTS,
    INDEX_FILE,
    OPTIONAL,
    PIPELINE_CLASS,
    PIPELINE_FILE,
    WEIGHTS,
)
from magicvideo.pipelines.request import GenerationSettings

TRAINING = "training.json"
BUNDLED_MODEL_DIR = Path(__file__).resolve().parent.parent / "weights" / "emoji"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_LONGEST_HEADER = 2_000_000  # about 20,000 tensors; the format allows fifty times as much
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class ModelIndex(BaseModel):
    """`model_index.json`: the class of each component, and the pipeline's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    class_name: tuple[str, str] | str = Field(alias="_class_name")
    diffusers_version: str = Field(alias="_diffusers_version", default="")
    name_or_path: str = Field(alias="_name_or_path", default="")
    components: dict[str, tuple[str, str] | tuple[None, None]]
    generation_defaults: dict[str, Any] = {}
    interpolation_noise_level: int = Field(default=0, ge=0, lt=1000)
    upscaler_noise_level: float = Field(default=0.0, ge=0)
    noise_correlation: float = Field(default=0.0, ge=0, le=1)
    noise_decay: float = Field(default=0.0, ge=0, lt=1)
    max_given_frames: int = Field(default=0, ge=0, le=MAX_WIDTH)
    license: str | None = None

    @field_validator("class_name")
    @classmethod
    def _check_class(cls, name: tuple[str, str] | str) -> tuple[str, str] | str:
        expected = (PIPELINE_FILE.removesuffix(".py"), PIPELINE_CLASS)
        if name not in (PIPELINE_CLASS, expected):
            raise ValueError(f"the class of the pipeline must be {PIPELINE_CLASS}")
        return name

    @field_validator("generation_defaults")
    @classmethod
    def _check_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        try:
            return GenerationSettings(**values).chosen()
        except TypeError:
            known = GenerationSettings.__dataclass_fields__
            foreign = sorted(values.keys() - known.keys())
            raise ValueError(f"{', '.join(foreign)} is not a generation setting") from None

    def class_of(self, component: str) -> str | None:
        """Return the name of a component's class, or None if the model lacks the component."""
        return self.components.get(component, (None, None))[1]

    def networks(self) -> dict[str, str]:
        """Return the components with weights, with their class names."""
        found = {name: self.class_of(name) for name in WEIGHTS}
        return {name: class_name for name, class_name in found.items() if class_name is not None}

    def configuration(self) -> dict[str, Any]:
        """Return the arguments of the pipeline other than its components."""
        own = {"class_name", "diffusers_version", "name_or_path", "components"}
        return {name: value for name, value in self if name not in own}


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)


def find_model_folder(
    name_or_path: str | Path | None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Locate a model folder; download it if it is a repository on the Hub.

    Args:
        name_or_path: A folder; or, as a string, `owner/name` of a repository; None, or `bundled`
            unless a folder has that name, for the model included in the package.
        revision: Branch, tag or commit of the repository.
        cache_dir: Download cache.
        token: Access token of the Hub.
        local_files_only: Use cached files only.
        force_download: Download again.

    Raises:
        UserError: If the repository cannot be downloaded.
    """
    if name_or_path is None:
        return BUNDLED_MODEL_DIR
    folder = Path(name_or_path)
    if folder == Path("bundled") and not folder.exists():
        return BUNDLED_MODEL_DIR
    is_repository = isinstance(name_or_path, str) and _REPOSITORY.fullmatch(name_or_path)
    if folder.exists() or not is_repository:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                str(name_or_path),
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
                ignore_patterns=[f"*{suffix}" for suffix in sorted(_PICKLES)],
            )
        )
    except RevisionNotFoundError:
        raise UserError(f"The repository {name_or_path} has no revision {revision}.") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"Neither a model folder {name_or_path} nor a repository of this name exists on the "
            "Hub; check the name, or give a token if it is private."
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"The repository {name_or_path} is not cached and cannot be downloaded; check the "
            "connection, or name a model folder."
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"The repository {name_or_path} cannot be downloaded: {error}.") from None


def verify_model_folder(folder: Path, variant: str | None = None) -> ModelIndex:
    """Verify a complete model folder and return its index.

    Every file is compared with `SHA256SUMS`, and every weights file with its own header.

    Args:
        folder: The model folder.
        variant: Requested variant of the weights.

    Raises:
        UserError: If the folder is not a model, a file is missing, unknown, damaged or a pickle, or
            no component has the variant.
    """
    if not folder.is_dir():
        raise UserError(f"The model folder {folder} does not exist.")
    if not (folder / INDEX_FILE).is_file():
        raise UserError(f"{folder} is not a model folder: it has no {INDEX_FILE}.")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _PICKLES:
            raise UserError(f"{path} is a pickle, which can run code; only safetensors are loaded.")
    verify_checksums(folder)
    index = read_index(folder)
    files = [file for name in index.networks() for file in weights_files(folder / name, variant)]
    if variant is not None and not any(f".{variant}" in file.name for file in files):
        raise UserError(
            f"You are trying to load the model files of the `variant={variant}`, but no such "
            f"modeling files are available; {folder} has none of this variant."
        )
    for file in files:
        read_safetensors_header(file)
    return index


def weights_files(component: Path, variant: str | None = None) -> list[Path]:
    """Return the weights files of a component: one file, or its shards.

    Args:
        component: Folder of the component.
        variant: Variant of the files, if the component has it.

    Raises:
        UserError: If the list of shards is damaged, or names a file outside the folder.
    """
    plain = component / str(WEIGHTS[component.name])
    stem = plain.name.removesuffix(".safetensors")
    candidates = [(plain, component / f"{plain.name}.index.json")]
    if variant is not None:
        whole = component / f"{stem}.{variant}.safetensors"
        candidates.insert(0, (whole, component / f"{plain.name}.index.{variant}.json"))
    for whole, shards in candidates:
        if whole.is_file():
            return [whole]
        if shards.is_file():
            names = read_json(shards).get("weight_map")
            if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
                raise UserError(f"{shards} lists no files; get a new copy of the folder.")
            files = [component / name for name in sorted(set(names.values()))]
            if any(file.parent != component or "/" in file.name for file in files):
                raise UserError(f"{shards} names a file outside its folder.")
            return files
    return [plain]


def read_index(folder: Path) -> ModelIndex:
    """Read and validate `model_index.json`.

    Raises:
        UserError: If it cannot be read or names a class that is not allowed.
    """
    path = folder / INDEX_FILE
    content = read_json(path)
    components = {name: content.pop(name) for name in COMPONENTS if name in content}
    try:
        index = ModelIndex.model_validate({**content, "components": components})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is invalid: {place}: {first['msg']}.") from None
    for name, component in COMPONENTS.items():
        class_name = index.class_of(name)
        if name in OPTIONAL and class_name is None:
            continue
        if class_name not in component.classes:
            raise UserError(
                f"{path} names the class {class_name} for {name}; "
                f"it must be {' or '.join(component.classes)}."
            )
    return index


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        UserError: If the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; get a complete copy of the folder.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON; get a new copy of the folder.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object; get a new copy of the folder.")
    return content


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Read the header of a safetensors file: its tensors by name.

    Raises:
        UserError: If the file is missing, truncated or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path} is missing; get a complete copy of the folder.")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            begins = file.read(1)
        if length > _LONGEST_HEADER:
            raise ValueError("its header is too long")
        if begins != b"{":  # required by the format; the library accepts white space
            raise ValueError("its header does not begin with a brace")
        with safe_open(path, framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {
            name: TensorInfo(one.get_dtype(), tuple(one.get_shape()))
            for name, one in slices.items()
        }
    except (ValueError, SafetensorError, struct.error) as error:
        reason = str(error).strip().rstrip(".") or "it is too short"
        raise UserError(f"{path} is not a safetensors file ({reason}); copy it again.") from None


def check_keys(
    path: Path, stored: dict[str, TensorInfo], expected: dict[str, tuple[int, ...]]
) -> None:
    """Compare the tensors of a file with those of a network.

    Raises:
        UserError: If one is missing, unknown or has another shape. The message names the first.
    """
    if missing := sorted(expected.keys() - stored.keys()):
        raise UserError(f"{path} lacks the tensor {missing[0]}{_others(missing)}.")
    if foreign := sorted(stored.keys() - expected.keys()):
        raise UserError(f"{path} contains the unknown tensor {foreign[0]}{_others(foreign)}.")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise UserError(
                f"{path} holds {name} with shape {list(stored[name].shape)}; the network needs "
                f"{list(shape)}."
            )


def _others(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


@dataclass(frozen=True)
class ComponentSummary:
    """What `magicvideo info` shows for one component."""

    name: str
    class_name: str
    parameters: int
    size: int


@dataclass(frozen=True)
class ModelSummary:
    """What `magicvideo info` shows for a model.

    Attributes:
        folder: The model folder.
        hash: Hash of its files.
        license: Licence of its weights, if stated.
        training: Training steps by stage, if known.
        components: Its components, in the order of generation.
        max_given_frames: Maximal number of given first frames in training.
        has_motion: Whether its denoiser is conditioned on a motion score.
    """

    folder: Path
    hash: str
    license: str | None
    training: dict[str, int]
    components: list[ComponentSummary]
    max_given_frames: int
    has_motion: bool


def summarize(folder: Path) -> ModelSummary:
    """Summarize a model folder from its headers, without loading weights.

    Raises:
        UserError: As `verify_model_folder`.
    """
    index = verify_model_folder(folder)
    components = []
    for name in COMPONENTS:
        class_name = index.class_of(name)
        if class_name is None:
            continue
        tensors = [
            info
            for file in (weights_files(folder / name) if name in WEIGHTS else [])
            for info in read_safetensors_header(file).values()
        ]
        files = [path for path in (folder / name).rglob("*") if path.is_file()]
        components.append(
            ComponentSummary(
                name=name,
                class_name=class_name,
                parameters=sum(tensor.numel for tensor in tensors),
                size=sum(path.stat().st_size for path in files),
            )
        )
    return ModelSummary(
        folder,
        hash_folder(folder),
        index.license,
        _training_steps(folder),
        components,
        index.max_given_frames,
        bool(read_json(folder / "unet" / "config.json").get("motion_condition", False)),
    )


def _training_steps(folder: Path) -> dict[str, int]:
    if not (folder / TRAINING).is_file():
        return {}
    steps = read_json(folder / TRAINING).get("steps")
    return steps if isinstance(steps, dict) else {}
