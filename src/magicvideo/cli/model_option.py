"""The model of a command: its options, the device that is there, and loading."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.errors import UserError
from magicvideo.garbage_collection import pause_garbage_collection

if TYPE_CHECKING:
    from rich.console import Console

    from magicvideo.pipelines.text_to_video import MagicVideoPipeline

Model = Annotated[
    Path | None, typer.Option(help="Model folder.", show_default="the model of the package")
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1 or mps.", show_default="cuda if there is a GPU, or cpu"),
]


def load_pipeline(
    console: "Console", model: Path | None, device: str | None, *, whole: bool = False
) -> "MagicVideoPipeline":
    """Return a model whose stages load their networks to a device when they begin.

    Args:
        console: Shows that a model is being loaded.
        model: The model folder; None for the model that comes with the package.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; None for the GPU if there is one.
        whole: All networks are loaded at once, for evaluation, which makes hundreds of videos.

    Raises:
        UserError: If the folder is no whole model, or the device is not there.
    """
    with console.status("Loading the model"):
        with pause_garbage_collection():
            from transformers.utils import logging as transformers_logging

            from magicvideo.pipelines.text_to_video import MagicVideoPipeline

        place = choose_device(device)
        transformers_logging.disable_progress_bar()
        if whole:
            return MagicVideoPipeline.from_pretrained(model).to(place)
        return MagicVideoPipeline.from_pretrained(model, offload_device=place)


def choose_device(device: str | None) -> str:
    """Return a device that is there.

    Args:
        device: As typed, in small or capital letters; None for the GPU if there is one.

    Raises:
        UserError: If it is not there. It names those that are.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present = ["cpu", *(["cuda"] if gpus else [])]
    present += [f"cuda:{number}" for number in range(gpus)] if gpus > 1 else []
    present += ["mps"] if torch.backends.mps.is_available() else []
    if device is None:
        return "cuda" if gpus else "cpu"
    name = device.strip().lower()
    if name in present or (name == "cuda:0" and gpus):
        return name
    advice = ""
    if name.startswith("cuda:"):
        advice = "; CUDA_VISIBLE_DEVICES hides GPUs, and the others are counted from 0"
    raise UserError(f"There is no device {device!r} here; there are: {', '.join(present)}{advice}.")
