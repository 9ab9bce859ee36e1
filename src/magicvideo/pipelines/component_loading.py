"""Loading the components of a verified model folder; every key is checked, nothing downloaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import torch
from diffusers import ModelMixin
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from magicvideo.diffusion.sampling import Scheduler
from magicvideo.errors import UserError
from magicvideo.limits import check_model_config
from magicvideo.models.conditioning import ImageConditioner
from magicvideo.models.interpolator import Interpolator
from magicvideo.models.unet import VideoUNet
from magicvideo.models.upscaler import Upscaler
from magicvideo.models.video_vae import AUTOENCODERS
from magicvideo.pipelines.model_folder import (
    ModelIndex,
    check_keys,
    read_json,
    read_safetensors_header,
    weights_files,
)

_NETWORKS: Mapping[str, type[Any]] = {
    **AUTOENCODERS,
    **{
        network.__name__: network
        for network in (ImageConditioner, Interpolator, Upscaler, VideoUNet)
    },
}
_ENCODERS: Mapping[str, type[Any]] = {
    encoder.__name__: encoder for encoder in (CLIPTextModel, CLIPVisionModelWithProjection)
}
# settings that make transformers download code or load other weights
_FOREIGN = frozenset(
    {
        "_attn_implementation",
        "attn_implementation",
        "auto_map",
        "quantization_config",
        "transformers_weights",
    }
)
_NO_NETWORK = (
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
Network: TypeAlias = ModelMixin | PreTrainedModel
Dtypes: TypeAlias = Mapping[str, torch.dtype]


@contextmanager
def own_precision(device: torch.device) -> Iterator[None]:
    """Compute in the precision of the weights, ignoring the caller's autocast and dtype.

    `torch.autocast` and `torch.set_default_dtype` around a call would change the video, and its
    request could not reproduce it.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)


def resolve_dtypes(dtype: torch.dtype | Mapping[str, torch.dtype] | None) -> Dtypes:
    """Return the dtype of each component, with `default` for unnamed ones."""
    if isinstance(dtype, torch.dtype) or dtype is None:
        return {"default": dtype or torch.float32}
    return {"default": torch.float32, **dtype}


class LazyComponentLoader:
    """Loads the networks of a verified model folder on demand.

    Args:
        folder: The model folder.
        index: Index of the folder.
        dtypes: Data type of the weights, by component.
        device: Device of the weights.
        variant: Variant of the weights files, where available.
    """

    def __init__(
        self,
        folder: Path,
        index: ModelIndex,
        dtypes: Dtypes,
        device: torch.device,
        variant: str | None = None,
    ) -> None:
        self.folder, self.dtypes, self.device, self.variant = folder, dtypes, device, variant
        self.classes = index.networks()

    def build(self, name: str) -> Network:
        """Build a network without weights, on the meta device."""
        return component_from_config_meta(
            self.folder, name, self.classes[name], self._dtype(name), self.variant
        )

    def load(self, name: str) -> Network:
        """Load a network with its weights.

        Raises:
            UserError: If a tensor does not fit. The message names it.
        """
        network = load_component(
            self.folder, name, self.classes[name], self._dtype(name), self.variant
        )
        return nn.Module.to(network, self.device)

    def place(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        """Set device and dtype of the following loads."""
        self.device = device or self.device
        self.dtypes = self.dtypes if dtype is None else {"default": dtype}

    def _dtype(self, name: str) -> torch.dtype:
        return self.dtypes.get(name, self.dtypes["default"])


@own_precision(torch.device("cpu"))
def load_component(
    folder: Path, component: str, class_name: str, dtype: torch.dtype, variant: str | None = None
) -> Network:
    """Load one network of a model folder, in evaluation mode.

    Raises:
        UserError: If its configuration or a tensor does not fit. The message names the tensor.
    """
    if class_name in _ENCODERS:
        return _load_encoder(folder / component, _ENCODERS[class_name], dtype, variant)
    model = component_from_config_meta(folder, component, class_name, dtype, variant)
    tensors = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for file in weights_files(folder / component, variant)
        for key, tensor in load_file(file).items()
    }
    _check_numbers(folder / component, tensors, model.state_dict())
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def component_from_config_meta(
    folder: Path, component: str, class_name: str, dtype: torch.dtype, variant: str | None = None
) -> Network:
    """Build one network of a model folder on the meta device, without weights.

    Raises:
        UserError: If its configuration or the list of its tensors (not checked for CLIP's encoders)
            does not fit. The message names the tensor.
    """
    place = folder / component
    config = _read_config(place / "config.json")
    try:
        with torch.device("meta"), no_init_weights():  # weights that are not there yet
            if class_name in _ENCODERS:
                kind = _ENCODERS[class_name]
                return kind(kind.config_class.from_dict(config)).to(dtype)
            model: ModelMixin = _NETWORKS[class_name].from_config(config)
    except _NO_NETWORK as error:
        raise _config_error(place, error) from None
    files = weights_files(place, variant)
    stored = {key: info for file in files for key, info in read_safetensors_header(file).items()}
    check_keys(files[0], stored, {key: tuple(x.shape) for key, x in model.state_dict().items()})
    # not diffusers' own method, whose warnings do not apply before weights are loaded
    return nn.Module.to(model, dtype)


def _load_encoder(
    folder: Path, encoder: type[Any], dtype: torch.dtype, variant: str | None
) -> PreTrainedModel:
    # transformers renames keys between versions: check the keys that it reports
    path = weights_files(folder, variant)[0]
    has_variant = variant is not None and f".{variant}" in path.name
    _read_config(folder / "config.json")
    if (adapter := folder / "adapter_config.json").exists():
        # transformers would load an adapter, whose weights are not verified
        raise UserError(f"{adapter} would change the network; remove it, or use another copy.")
    try:
        model, report = encoder.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            variant=variant if has_variant else None,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except _NO_NETWORK as error:
        raise _config_error(folder, error) from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{path} lacks the tensor {missing[0]}.")
    if foreign := sorted(report["unexpected_keys"]):
        raise UserError(f"{path} contains the unknown tensor {foreign[0]}.")
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise UserError(
            f"{path} holds {name} with shape {list(stored)}; the configuration asks for "
            f"{list(expected)}."
        )
    _check_numbers(folder, model.state_dict(), model.state_dict())
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load the tokenizer in a folder.

    Raises:
        UserError: If the folder contains none.
    """
    if (settings := folder / "tokenizer_config.json").is_file():
        config = read_json(settings)
        # transformers stores 10^30 for a tokenizer without a limit
        if config.get("model_max_length", 0) == int(1e30):
            config.pop("model_max_length")
        check_model_config(str(settings), config)
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{folder} is not a CLIP tokenizer: {_reason(error)}") from None


def load_scheduler(folder: Path, class_name: str = "DDIMScheduler") -> Scheduler:
    """Load the noise schedule in a folder.

    Raises:
        UserError: If the folder contains none.
    """
    path = folder / "scheduler_config.json"
    config = read_json(path)
    check_model_config(str(path), config)
    try:
        scheduler: Scheduler = getattr(diffusers, class_name).from_config(config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"{path} is not a valid schedule: {_reason(error)}") from None
    return scheduler


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if foreign := sorted(_FOREIGN & _names_in(config)):
        raise UserError(
            f"{path} sets {foreign[0]}, by which code or other weights would be loaded; take the "
            "line out, or another version of the model."
        )
    check_model_config(str(path), config)
    return config


def _check_numbers(
    place: Path, tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> None:
    """Check that stored values are valid weights.

    Raises:
        UserError: If a tensor is not floating-point although the network's is, or not finite.
    """
    for name, tensor in tensors.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise UserError(
                f"{place}: {name} holds {str(tensor.dtype).removeprefix('torch.')}; weights are "
                "floating-point numbers. Take another copy of the model."
            )
        if not tensor.isfinite().all():
            raise UserError(
                f"{place}: {name} holds numbers that are not finite; take another copy of the "
                "model."
            )


def _names_in(value: Any) -> set[str]:  # noqa: ANN401 - anything that JSON can hold
    if isinstance(value, dict):
        return set(value).union(*(_names_in(inner) for inner in value.values()))
    return set[str]().union(*map(_names_in, value)) if isinstance(value, list) else set()


def _config_error(folder: Path, error: Exception) -> UserError:
    path = folder / "config.json"
    return UserError(f"{path} is not a valid network configuration: {_reason(error)}")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0].rstrip('.')}."
