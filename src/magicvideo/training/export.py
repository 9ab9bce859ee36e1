"""Export of a run as a model folder in diffusers' format, with its model card."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from huggingface_hub import ModelCardData
from safetensors.torch import load_file, save_file

from magicvideo.atomic_io import atomic_folder
from magicvideo.diffusion.sampling import FLOW_MAP
from magicvideo.errors import UserError
from magicvideo.models.components import COMPONENTS, library_of, write_model_index
from magicvideo.models.lora import LORA_FILE, convert_lora_state_dict, merge_lora
from magicvideo.models.video_vae import read_autoencoder_class
from magicvideo.training.components import (
    LORA,
    OPTIONAL,
    PRODUCING_STAGES,
    STAGE_FILE,
    WEIGHTS,
    stage_output,
)
from magicvideo.training.recipe import Recipe
from magicvideo.training.resolve import (
    component_source,
    init_component,
    lora_config,
    noise_config,
)
from magicvideo.training.run import read_run_recipe
from magicvideo.training.tasks.clip_model import WORDS

CARD = "README.md"
# identifiers of the Hub; any other licence is "other" with its name
_LICENCES = {
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "creativeml openrail-m": "creativeml-openrail-m",
}
_PAPER = "https://arxiv.org/abs/2211.11018"


def write_model_card(folder: Path, text: Path | None = None) -> None:
    """Write the model card of a model folder from its other files.

    Front matter, components and usage are generated. `text` adds data, limits and results.

    Args:
        folder: A model folder with `model_index.json` and `training.json`.
        text: A Markdown file with further sections.

    Raises:
        UserError: If `text` cannot be read.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    sections = [_front_matter(index), _introduction(training), _usage(), _components(index)]
    sections.append(_training(training))
    if text is not None:
        try:
            sections.append(text.read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{text} is not a text file; name the Markdown of the card.") from None
    (folder / CARD).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _front_matter(index: dict[str, Any]) -> str:
    name = index.get("license")
    known = _LICENCES.get(str(name).lower())
    data = ModelCardData(
        language="en",
        license=known or ("other" if name else None),
        license_name=None if known or not name else name,
        library_name="diffusers",
        pipeline_tag="text-to-video",
        tags=["text-to-video", "magicvideo", "arxiv:2211.11018"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _introduction(training: dict[str, Any]) -> str:
    return (
        f"# {training['recipe']}\n\n"
        f"A text-to-video latent diffusion model, an implementation of [MagicVideo]({_PAPER}), "
        "trained and exported with the package magicvideo."
    )


def _usage() -> str:
    return (
        "## Usage\n\n"
        "```sh\n"
        'magicvideo generate "a prompt in the words of its training captions" --model FOLDER\n'
        "```\n\n"
        "```python\n"
        "from magicvideo import MagicVideoPipeline\n\n"
        'pipeline = MagicVideoPipeline.from_pretrained("FOLDER")\n'
        "```"
    )


def _components(index: dict[str, Any]) -> str:
    rows = [
        f"| `{name}` | {value[1]} ({value[0]}) |"
        for name, value in index.items()
        if isinstance(value, list) and not name.startswith("_")
    ]
    return "\n".join(["## Components", "", "| component | class |", "|---|---|", *rows])


def _training(training: dict[str, Any]) -> str:
    rows = [f"| `{stage}` | {steps:,} |" for stage, steps in training["steps"].items()]
    lines = ["## Training", "", "| stage | updates |", "|---|---:|", *rows]
    if before := training.get("started_from"):
        lines += ["", f"It started from the model of the recipe `{before['recipe']}`."]
    return "\n".join(lines)


TRAINING = "training.json"
# stored next to the defaults in a model, but among them in a recipe
_BESIDE_DEFAULTS = ("license", "interpolation_noise_level", "upscaler_noise_level")


def export(
    run: Path, output: Path, precision: Literal["fp16", "fp32"], card: Path | None = None
) -> None:
    """Export the model of a finished run.

    Components that no stage trains are copied from `init_from`, and so are licence and default
    generation settings, unless the recipe sets them. A LoRA is merged into the weights. The folder
    contains `SHA256SUMS`, the words of the training captions, `training.json` with the steps of
    each stage, and a model card.

    Args:
        run: The `output` of a recipe.
        output: The folder to create; it must not exist.
        precision: Precision of the stored weights. fp16 halves the size; weights are loaded as
            float32.
        card: Markdown with further sections of the model card: data, limits, results.

    Raises:
        UserError: If a stage is not finished, an output is damaged, `output` exists, or `card`
            cannot be read.
    """
    if output.exists():
        raise UserError(f"{output} exists; remove it or choose another folder.")
    recipe = read_run_recipe(run)
    outputs = [stage_output(run, stage) for stage in recipe.stages()]
    parts = _parts(recipe)
    with atomic_folder(output) as partial:
        for name, folder in parts.items():
            shutil.copytree(folder, partial / name)
            _forget_origin(partial / name / "config.json")
        words = parts["text_encoder"].parent / WORDS
        if words.is_file():  # a model converted from Stable Diffusion has none
            shutil.copyfile(words, partial / WORDS)
        if lora_config(recipe) is not None:
            _merge_lora(partial / "unet" / WEIGHTS, stage_output(run, "keyframes"))
        if precision == "fp16":
            for file in partial.rglob("*.safetensors"):
                _halve(file)
        _write_index(partial, {name: _class_of(name, parts[name]) for name in parts}, recipe)
        _write_training(partial, recipe, outputs)
        write_model_card(partial, card)


def _forget_origin(config: Path) -> None:
    """Remove the path of a component in training from its configuration."""
    if not config.is_file():
        return
    values = json.loads(config.read_text(encoding="utf-8"))
    if values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _parts(recipe: Recipe) -> dict[str, Path]:
    """Return the folder of every component."""
    parts = {}
    for name, producers in PRODUCING_STAGES.items():
        trained = any(stage in recipe.stages() for stage in producers)
        if name == "image_conditioner" and "image_encoder" not in parts:
            continue
        if trained or name not in OPTIONAL or init_component(recipe, name):
            parts[name] = component_source(recipe, name).path()
    return parts


def _class_of(name: str, folder: Path) -> list[str]:
    """Return a component's library and class."""
    kind = read_autoencoder_class(folder).__name__ if name == "vae" else None
    return library_of(name, kind or next(iter(COMPONENTS[name].classes)))


def _halve(file: Path) -> None:
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(file).items()
    }
    if broken := [name for name, t in tensors.items() if not torch.isfinite(t).all()]:
        raise UserError(f"{broken[0]} exceeds the range of float16; export with --precision fp32.")
    save_file(tensors, file, metadata={"format": "pt"})


def _merge_lora(file: Path, product: Path) -> None:
    """Merge the trained LoRA into the weights of its model."""
    weights = {name: tensor.float() for name, tensor in load_file(file).items()}
    lora = product / LORA / LORA_FILE
    updates = convert_lora_state_dict(load_file(lora), {"unet": weights}, {}, str(lora))
    merge_lora(weights, updates["unet"], 1.0)
    save_file(weights, file, metadata={"format": "pt"})


def _write_index(folder: Path, components: dict[str, list[str]], recipe: Recipe) -> None:
    begun = {} if recipe.init_from is None else _read_index(recipe.init_from)
    said = recipe.defaults.model_fields_set
    own = recipe.defaults.model_dump()
    configuration = {
        name: own[name] if name in said else begun.get(name, own[name]) for name in _BESIDE_DEFAULTS
    }
    before = begun.get("generation_defaults", {})
    values = {}
    for name, value in own.items():
        if name not in _BESIDE_DEFAULTS:
            key = "num_inference_steps" if name == "steps" else name
            values[key] = value if name in said else before.get(key, value)
    if recipe.distill is not None:
        distilled = {"scheduler": FLOW_MAP, "guidance_scale": 1.0, "guidance_stop": 1.0}
        values |= {**distilled, "num_inference_steps": recipe.distill.sampling_steps}
    noise = noise_config(recipe)
    write_model_index(
        folder,
        {
            "_diffusers_version": diffusers.__version__,
            **components,
            **configuration,
            "generation_defaults": values,
            "noise_correlation": noise.noise_correlation,
            "noise_decay": noise.noise_decay,
            "max_given_frames": _max_given_frames(recipe, begun),
        },
    )


def _max_given_frames(recipe: Recipe, begun: dict[str, Any]) -> int:
    """Return the maximal number of given first frames in training, 0 if none."""
    if "keyframes" not in recipe.stages():
        return int(begun.get("max_given_frames", 0))
    stage = recipe.keyframes
    assert stage is not None
    most = min(stage.max_given_frames, recipe.unet.num_frames - 1)
    return most if stage.given_frames_prob else 0


def _read_index(model: Path) -> dict[str, Any]:
    file = model / "model_index.json"
    if not file.is_file():
        return {}
    index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return index


def _write_training(folder: Path, recipe: Recipe, outputs: list[Path]) -> None:
    """Write the steps of every stage, and those of the initial model."""
    entries = [json.loads((output / STAGE_FILE).read_text(encoding="utf-8")) for output in outputs]
    about = {
        "recipe": recipe.name,
        "steps": {entry["stage"]: entry["steps"] for entry in entries},
    }
    before = recipe.init_from / TRAINING if recipe.init_from else None
    if before and before.is_file():
        about["started_from"] = json.loads(before.read_text(encoding="utf-8"))
    (folder / TRAINING).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
