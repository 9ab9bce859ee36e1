"""A run's products, put together as one model folder in diffusers' format."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal, get_args

import diffusers
import torch
from safetensors.torch import load_file, save_file

from magicvideo.errors import UserError
from magicvideo.storage import atomic_folder, verify_sums
from magicvideo.train.loop import PRODUCT, STAGE
from magicvideo.train.recipe import StageName
from magicvideo.train.run import SETTINGS
from magicvideo.train.tasks.clip import WORDS

# component: (stage that makes it, library and class for model_index.json); those of stages that the
# recipe lacks are left out
_COMPONENTS = {
    "vae": ("autoencoder", ("magicvideo", "PatchAutoencoder")),
    "text_encoder": ("clip", ("transformers", "CLIPTextModel")),
    "tokenizer": ("clip", ("transformers", "CLIPTokenizer")),
    "image_encoder": ("clip", ("transformers", "CLIPVisionModelWithProjection")),
    "unet": ("keyframes", ("magicvideo", "VideoUNet")),
    "image_conditioner": ("keyframes", ("magicvideo", "ImageConditioner")),
    "scheduler": ("keyframes", ("diffusers", "DDIMScheduler")),
    "interpolator": ("interpolation", ("magicvideo", "Interpolator")),
    "upscaler": ("upscaler", ("magicvideo", "Upscaler")),
    "upscaler_scheduler": ("upscaler", ("diffusers", "DDIMScheduler")),
}
TRAINING = "training.json"
_AS_NAMED = ("license", "interpolation_noise_level", "upscaler_noise_level")


def export(run: Path, output: Path, precision: Literal["fp16", "fp32"]) -> None:
    """Write the model of a run that has trained all its stages.

    The folder carries `SHA256SUMS`, the words of its training captions, and in `training.json` how
    many steps each stage trained.

    Args:
        run: The `output` of a recipe.
        output: The folder to make; one that exists is not touched.
        precision: Of the stored weights. Half precision halves the files and is read back as
            single precision.

    Raises:
        UserError: If a stage is not done, a product is damaged, or the output exists.
    """
    if output.exists():
        raise UserError(f"{output} exists; remove it or choose another folder.")
    products = {}
    for stage in _stages(run):
        product = run / stage / PRODUCT
        if not product.is_dir():
            raise UserError(f"Stage {stage} of {run} is not done: {product} does not exist.")
        verify_sums(product)
        products[stage] = product
    with atomic_folder(output) as partial:
        components = {n: where for n, where in _COMPONENTS.items() if where[0] in products}
        for name, (stage, _) in components.items():
            shutil.copytree(products[stage] / name, partial / name)
        shutil.copyfile(products["clip"] / WORDS, partial / WORDS)
        if precision == "fp16":
            for file in partial.rglob("*.safetensors"):
                _halve(file)
        recipe = json.loads((run / SETTINGS).read_text(encoding="utf-8"))
        index = {name: list(where) for name, (_, where) in components.items()}
        _write_index(partial, index, recipe)
        _write_training(partial, recipe["name"], list(products.values()))


def _stages(run: Path) -> list[str]:
    """Return the stages whose products make up the model, directly or as a start of others."""
    settings = run / SETTINGS
    if not settings.is_file():
        raise UserError(f"{run} is no training run: {settings} does not exist.")
    recipe = json.loads(settings.read_text(encoding="utf-8"))
    return [name for name in get_args(StageName) if recipe.get(name) is not None]


def _halve(file: Path) -> None:
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(file).items()
    }
    if broken := [name for name, t in tensors.items() if not torch.isfinite(t).all()]:
        raise UserError(f"{broken[0]} does not fit half precision; export with --precision fp32.")
    save_file(tensors, file, metadata={"format": "pt"})


def _write_index(folder: Path, components: dict[str, list[str]], recipe: dict[str, Any]) -> None:
    defaults = {
        name if name in _AS_NAMED else f"default_{name}": value
        for name, value in recipe["defaults"].items()
    }
    index = {
        "_class_name": "MagicVideoPipeline",
        "_diffusers_version": diffusers.__version__,
        **components,
        **defaults,
        "shared_noise": recipe["noise"]["shared"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_training(folder: Path, recipe: str, products: list[Path]) -> None:
    stages = [json.loads((product / STAGE).read_text(encoding="utf-8")) for product in products]
    about = {"recipe": recipe, "steps": {entry["stage"]: entry["steps"] for entry in stages}}
    (folder / TRAINING).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
