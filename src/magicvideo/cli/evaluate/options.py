"""Options that several verbs of evaluation have, and the command line that they came from."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Option(help="Folder of prepared clips; the held-out are used.")]
Model = Annotated[
    Path | None, typer.Option(help="A model folder; by default the model that is shipped.")
]
JudgeFolder = Annotated[
    Path | None, typer.Option(help="A judge's folder; by default the one that is shipped.")
]
Page = Annotated[
    Path, typer.Option(help="The Markdown page; the command's own section of it is replaced.")
]
Work = Annotated[
    Path, typer.Option(help="Where generated videos are kept, so that a stopped run goes on.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the draw of clips, and of all noise.")]

_SWEEPS = "Sweeps"
SweptSteps = Annotated[
    list[int] | None,
    typer.Option(
        help="Diffusion steps in place of the protocol's; repeatable, one result each.",
        rich_help_panel=_SWEEPS,
    ),
]
SweptGuidance = Annotated[
    list[float] | None,
    typer.Option(
        help="Guidance scale in place of the protocol's; repeatable, one result each.",
        rich_help_panel=_SWEEPS,
    ),
]

_BENCHMARKS = "Benchmarks"
Generated = Annotated[
    Path | None,
    typer.Option(
        help="Folder of finished videos to score in place of a model's.",
        rich_help_panel=_BENCHMARKS,
    ),
]
I3dFile = Annotated[
    str | None,
    typer.Option(
        help="I3D, for FVD and KVD: TorchScript or .safetensors, or hub:OWNER/REPOSITORY/FILE.",
        rich_help_panel=_BENCHMARKS,
    ),
]
InceptionFile = Annotated[
    str | None,
    typer.Option(
        help="Inception-v3 of FID, for FID, KID and IS: as --i3d.",
        rich_help_panel=_BENCHMARKS,
    ),
]
ClipFolder = Annotated[
    str | None,
    typer.Option(
        help="CLIP ViT-B/32, for CLIPSIM: a folder, or hub:OWNER/REPOSITORY.",
        rich_help_panel=_BENCHMARKS,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(min=4, help="The first so many videos alone.", rich_help_panel=_BENCHMARKS),
]
AllowFewer = Annotated[
    bool,
    typer.Option(
        "--allow-fewer",
        help="Score fewer videos or real clips than the protocol asks for, and mark it.",
        rich_help_panel=_BENCHMARKS,
    ),
]

DEFAULT_PAGE = Path("docs/results.md")
DEFAULT_WORK = Path("runs/evaluate")


EVALUATE = ("magicvideo", "evaluate")


def command_line(
    words: list[str | Path],
    options: Mapping[str, object],
    program: tuple[str, ...] = EVALUATE,
) -> str:
    """Return a command as a user would type it again, one that names no place on a machine.

    Args:
        words: What follows the program.
        options: Values by name, `_` for `-`. Those that are None or False are left out, True is the
            option alone, a list repeats its option. The last part stands for an absolute path.
        program: Its words.
    """
    typed = [_typed(word) for word in words]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        typed += [part for one in _values(value) for part in (option, *one)]
    return shlex.join([*program, *typed])


def _values(value: object) -> Iterator[tuple[str, ...]]:
    """Yield what follows an option's name, each time that it is given."""
    if value is True:
        yield ()
    elif isinstance(value, list):
        yield from ((_typed(one),) for one in value)
    elif value is not None and value is not False:
        yield (_typed(value),)


def _typed(value: object) -> str:
    if isinstance(value, Path):
        return value.name if value.is_absolute() else value.as_posix()
    return f"{value:g}" if isinstance(value, float) else str(value)
