"""Options that verbs of evaluation share, and what each verb does first."""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from typer.models import OptionInfo

from magicvideo.cli.console import say
from magicvideo.errors import UserError

if TYPE_CHECKING:
    import torch

    from magicvideo.pipelines.text_to_video import MagicVideoPipeline


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
    Path, typer.Option(help="Where generated videos are kept, so that a stopped run continues.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the draw of clips, and of all noise.")]


def _sweep(what: str) -> OptionInfo:
    text = f"{what} in place of the protocol's; repeatable, one result each."
    option: OptionInfo = typer.Option(help=text, rich_help_panel="Sweeps")
    return option


def _benchmark(text: str, *flags: str, lowest: int | None = None) -> OptionInfo:
    option: OptionInfo = typer.Option(*flags, help=text, min=lowest, rich_help_panel="Benchmarks")
    return option


SweptSteps = Annotated[list[int] | None, _sweep("Diffusion steps")]
SweptGuidance = Annotated[list[float] | None, _sweep("Guidance scale")]

Generated = Annotated[
    Path | None, _benchmark("Folder of finished videos to score in place of a model's.")
]
I3dFile = Annotated[
    str | None,
    _benchmark("I3D, for FVD and KVD: TorchScript or .safetensors, or hub:OWNER/REPOSITORY/FILE."),
]
InceptionFile = Annotated[
    str | None, _benchmark("Inception-v3 of FID, for FID, KID and IS: as --i3d.")
]
ClipFolder = Annotated[
    str | None, _benchmark("CLIP ViT-B/32, for CLIPSIM: a folder, or hub:OWNER/REPOSITORY.")
]
Samples = Annotated[int | None, _benchmark("The first so many videos alone.", lowest=4)]
AllowFewer = Annotated[
    bool,
    _benchmark(
        "Score fewer videos or real clips than the protocol asks for, and mark it.",
        "--allow-fewer",
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


Report: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, the count done and the count in all."""


def require_scipy() -> None:
    """Refuse to begin without the packages that scores need.

    Raises:
        UserError: If one is missing.
    """
    require(("scipy", "torchmetrics"), "evaluate", "Scores")


def require(packages: tuple[str, ...], extra: str, what: str) -> None:
    """Refuse to begin without some packages.

    Args:
        packages: Names to import.
        extra: The extra of this package that brings them.
        what: Needs them.

    Raises:
        UserError: If one is missing.
    """
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        verb = "need" if what.endswith("s") else "needs"
        raise UserError(
            f"{what} {verb} {missing[0]}; install it with `pip install 'magicvideo[{extra}]'`."
        )


def check_target(path: Path) -> None:
    """Refuse a place that cannot be written before hours are spent on what belongs there.

    Raises:
        UserError: If nothing can be written there.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; create it first, or choose another path.")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} cannot be written; choose another place.")


def check_writable_folder(folder: Path) -> None:
    """Make a folder, or refuse a place that cannot be one.

    Raises:
        UserError: If nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be a folder ({error.strerror}); choose another."
        ) from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to; choose another.")


def prepare_section(page: Path, name: str) -> None:
    """Check all that a section of scores needs before it is worked on.

    Raises:
        UserError: If a package is missing, or the page cannot take the section.
    """
    require_scipy()
    check_target(page)
    from magicvideo.evaluation.results_page import check_page

    check_page(page, name)


def write_results(
    page: Path,
    name: str,
    words: list[str | Path],
    options: Mapping[str, object],
    parts: list[str],
    program: tuple[str, ...] = EVALUATE,
) -> None:
    """Put a command's section into the page of results: its heading, the command, and the rest.

    Args:
        page: The Markdown page.
        name: The verb, which the section is called by.
        words: What a user typed after the verb.
        options: Values by name.
        parts: Paragraphs and tables.
        program: The words before the verb.
    """
    from magicvideo.evaluation.results_page import write_section

    command = command_line([name, *words], options, program)
    text = "\n\n".join([f"## {name.capitalize()}", f"`{command}`", *parts])
    write_section(page, name, text)
    say(page)


def process_device() -> "torch.device":
    """Return the CPU, or where there are GPUs that of this process, by torchrun's LOCAL_RANK."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda")


def load(model: Path | None) -> "MagicVideoPipeline":
    """Return a model, or the shipped one, on the GPU if there is one.

    Raises:
        UserError: If the folder is not a complete model.
    """
    from rich.console import Console

    from magicvideo.cli.options import load_pipeline

    process_device()
    return load_pipeline(Console(stderr=True), model, None, whole=True)


@contextmanager
def progress() -> Iterator[Report]:
    """Give a function that shows how far the work is: a bar, or lines where no terminal is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("generating", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)
            if not console.is_terminal and (done == total or done % max(1, total // 10) == 0):
                say(f"{what}: {done} of {total}", err=True)

        yield report
