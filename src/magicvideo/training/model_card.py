"""The card of an exported model: `README.md` in the form that the Hugging Face Hub reads."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from magicvideo.errors import UserError

CARD = "README.md"
# identifiers of the Hub; any other licence is "other" with its name
_LICENCES = {
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "creativeml openrail-m": "creativeml-openrail-m",
}
_PAPER = "https://arxiv.org/abs/2211.11018"


def write_model_card(folder: Path, text: Path | None = None) -> None:
    """Write the card of a model folder, from what its other files say.

    The front matter, the components and the usage are generated. `text` adds what no file knows:
    data, limits and results.

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
        if isinstance(value, list)
    ]
    return "\n".join(["## Components", "", "| component | class |", "|---|---|", *rows])


def _training(training: dict[str, Any]) -> str:
    rows = [f"| `{stage}` | {steps:,} |" for stage, steps in training["steps"].items()]
    lines = ["## Training", "", "| stage | updates |", "|---|---:|", *rows]
    if before := training.get("started_from"):
        lines += ["", f"It started from the model of the recipe `{before['recipe']}`."]
    return "\n".join(lines)
