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
    """Return a command whose command line has an option for each field of the groups it takes.

    Args:
        command: Each of its arguments is an option, or a group: a dataclass whose fields are
            options. A field is one by its annotation, as typer's; or by its metadata, as those of
            `pipelines.request`, from which its flag and help are taken. They stand in the help in
            their order. No two options have the same name.
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
    """Return a group with its values; one with `from_values` converts what was typed."""
    convert = getattr(group, "from_values", None)
    return group(**values) if convert is None else convert(values)


def _options_of(group: type[Any]) -> dict[str, Parameter]:
    """Return the options of a group by the names of its fields."""
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
