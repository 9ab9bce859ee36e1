"""Command-line options: groups of them as dataclasses; the model and device of a command."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from magicvideo.errors import UserError
from magicvideo.imports import pause_garbage_collection

if TYPE_CHECKING:
    from rich.console import Console

    from magicvideo.pipelines.text_to_video import MagicVideoPipeline


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with one option for each field of its option groups.

    Args:
        command: A command whose arguments are options or groups: dataclasses whose fields are
            options. A field is declared with typer's annotation, or with metadata for flag and
            help, as in `pipelines.request`. The help lists options in this order. Names must be
            unique.
    """
    taken = signature(command).parameters
    groups: dict[str, type[Any]] = {
        name: one.annotation
        for name, one in taken.items()
        if isinstance(one.annotation, type) and is_dataclass(one.annotation)
    }
    members = {name: _options_of(group) for name, group in groups.items()}

    @wraps(command)
    def gather(**values: Any) -> None:  # noqa: ANN401 - whatever the options hold
        gathered = {
            name: _build(group, {member: values.pop(member) for member in members[name]})
            for name, group in groups.items()
        }
        command(**gathered, **values)

    options = [one for name in taken for one in members.get(name, {name: taken[name]}).values()]
    gather.__signature__ = Signature(  # type: ignore[attr-defined]
        [one.replace(kind=Parameter.KEYWORD_ONLY) for one in options]
    )
    return gather


def _build(group: type[Any], values: dict[str, Any]) -> object:
    """Build a group from its values, with `from_values` if it exists."""
    convert = getattr(group, "from_values", None)
    return group(**values) if convert is None else convert(values)


def _options_of(group: type[Any]) -> dict[str, Parameter]:
    """Return the options of a group by field name."""
    parameters = dict(signature(group).parameters)
    types = get_type_hints(group)
    for one in fields(group):
        if "help" not in one.metadata:
            continue
        flag = one.metadata["flag"] or f"--{one.name.replace('_', '-')}"
        usual = one.metadata["usual"]
        option = typer.Option(
            flag, help=one.metadata["help"], show_default=True if usual is None else usual
        )
        kind = str | None if types[one.name] == tuple[str, ...] | None else types[one.name]
        parameters[one.name] = parameters[one.name].replace(annotation=Annotated[kind, option])
    return parameters


Model = Annotated[
    Path | None, typer.Option(help="Model folder.", show_default="bundled, the included model")
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1 or mps.", show_default="cuda if available, else cpu"),
]


def load_pipeline(
    console: "Console", model: Path | None, device: str | None, *, whole: bool = False
) -> "MagicVideoPipeline":
    """Load a model; each stage loads its networks to the device when it starts.

    Args:
        console: Console for status messages.
        model: The model folder; None for the included model.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; None for a GPU if available.
        whole: Whether to load all networks at once, for evaluations with hundreds of videos.

    Raises:
        UserError: If the folder is not a complete model, or the device does not exist.
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
    """Check that a device exists and return it.

    Args:
        device: Name of the device, in any case; None for a GPU if available.

    Raises:
        UserError: If it does not exist. The message lists available devices.
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
        advice = "; CUDA_VISIBLE_DEVICES hides GPUs, and the remaining ones are numbered from 0"
    raise UserError(
        f"Device {device!r} does not exist; available are: {', '.join(present)}{advice}."
    )
