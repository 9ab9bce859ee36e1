"""The components of a model folder: names, allowed classes and files.

This is the only list of components; loading, saving, export and recipes use it. It does not import
torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX_FILE = "model_index.json"
PIPELINE_CLASS = "MagicVideoPipeline"
PIPELINE_FILE = "pipeline.py"
_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
_TRANSFORMERS_WEIGHTS = "model.safetensors"
_SCHEDULERS = dict.fromkeys(
    (
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "EulerDiscreteScheduler",
        "LCMScheduler",
    ),
    "diffusers",
)


@dataclass(frozen=True)
class Component:
    """One component of a model.

    Attributes:
        classes: Allowed classes, with the library of each. A model folder cannot name others, so
            that it cannot run code.
        weights: File name of its weights, or None for a component without weights.
        is_optional: Whether a model may lack it. Such a model does not support images, or lacks a
            stage after the key frames.
    """

    classes: Mapping[str, str]
    weights: str | None = None
    is_optional: bool = False


COMPONENTS: Mapping[str, Component] = {
    "vae": Component(
        {
            "PatchAutoencoder": "magicvideo",
            "AutoencoderKL": "diffusers",
            "VideoPatchAutoencoder": "magicvideo",
            "VideoAutoencoderKL": "magicvideo",
        },
        _DIFFUSERS_WEIGHTS,
    ),
    "text_encoder": Component({"CLIPTextModel": "transformers"}, _TRANSFORMERS_WEIGHTS),
    "tokenizer": Component({"CLIPTokenizer": "transformers"}),
    "image_encoder": Component(
        {"CLIPVisionModelWithProjection": "transformers"},
        _TRANSFORMERS_WEIGHTS,
        is_optional=True,
    ),
    "image_conditioner": Component(
        {"ImageConditioner": "magicvideo"}, _DIFFUSERS_WEIGHTS, is_optional=True
    ),
    "unet": Component({"VideoUNet": "magicvideo"}, _DIFFUSERS_WEIGHTS),
    "scheduler": Component(_SCHEDULERS),
    "interpolator": Component({"Interpolator": "magicvideo"}, _DIFFUSERS_WEIGHTS, is_optional=True),
    "upscaler": Component({"Upscaler": "magicvideo"}, _DIFFUSERS_WEIGHTS, is_optional=True),
    "upscaler_scheduler": Component(_SCHEDULERS, is_optional=True),
}
OPTIONAL = frozenset(name for name, component in COMPONENTS.items() if component.is_optional)
WEIGHTS = {name: one.weights for name, one in COMPONENTS.items() if one.weights is not None}

_PIPELINE_SOURCE = f'''"""Lets `diffusers.DiffusionPipeline.from_pretrained` load this folder.

`magicvideo.{PIPELINE_CLASS}.from_pretrained` does not run this file.
"""

from magicvideo import {PIPELINE_CLASS}

__all__ = ["{PIPELINE_CLASS}"]
'''


def library_of(component: str, class_name: str) -> list[str]:
    """Return library and class of a component, as stored in `model_index.json`."""
    return [COMPONENTS[component].classes[class_name], class_name]


def write_model_index(folder: Path, values: Mapping[str, Any]) -> None:
    """Write `model_index.json`, and the file with which diffusers finds the pipeline class.

    Args:
        folder: The model folder.
        values: Library and class of each component, and the configuration of the pipeline.
    """
    (folder / PIPELINE_FILE).write_text(_PIPELINE_SOURCE, encoding="utf-8")
    declared = [PIPELINE_FILE.removesuffix(".py"), PIPELINE_CLASS]
    index = {**values, "_class_name": declared}
    for name, component in COMPONENTS.items():
        # diffusers stores the module of a class, which is not part of the public interface
        class_name = (index.get(name) or [None, None])[1]
        if class_name in component.classes:
            index[name] = library_of(name, class_name)
    text = json.dumps(dict(sorted(index.items())), indent=2)
    (folder / INDEX_FILE).write_text(f"{text}\n", encoding="utf-8")
