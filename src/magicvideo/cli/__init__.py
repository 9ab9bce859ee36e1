"""The command line: `magicvideo VERB`, one module a command.

The modules import no large library until their command runs, so that `--help` is fast.
"""

import errno
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from magicvideo.cli import (
    data,
    evaluate,
    export,
    generate,
    inflate,
    info,
    interpolate,
    studio,
    train,
)
from magicvideo.cli.console import (
    is_out_of_memory,
    out_of_memory_error,
    say,
    tolerate_broken_streams,
)
from magicvideo.errors import UserError
from magicvideo.imports import explain_missing

MISTAKE = 2
INTERRUPTED = 130

# Base class of all argument errors, which typer does not export
_UsageError: type[typer.BadParameter] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    help="Text to video by latent diffusion.",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        say(f"magicvideo {version('magicvideo')}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options before the command."""


for command in (generate, interpolate, studio, data, inflate, train, export, evaluate, info):
    command.register(app)


def main() -> None:
    """Run the command line and exit: 0 success, 2 user error, 130 Ctrl-C."""
    stdout_failure = tolerate_broken_streams()
    code = run(sys.argv[1:])
    failure = stdout_failure()
    if failure is not None and failure.errno != errno.EPIPE and not code:
        code = _complain(
            "The command succeeded, but its output cannot be written to stdout "
            f"({failure.strerror})."
        )
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; invalid input becomes one sentence on stderr."""
    return run_app(app, arguments, "magicvideo")


def run_app(commands: typer.Typer, arguments: list[str], name: str) -> int:
    """Run one command of an app, as `run` does."""
    try:
        code = commands(args=arguments or ["--help"], prog_name=name, standalone_mode=False)
    except UserError as error:
        return _complain(str(error))
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else name
        return _complain(_usage(error.format_message(), command))
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        sentence = explain_missing(error)
        if sentence is None:
            raise
        return _complain(sentence)
    except OSError as error:
        return _complain(_disk(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "use smaller or fewer frames, or another device"
        return _complain(str(out_of_memory_error(error, advice)))
    return code if isinstance(code, int) else 0


def _complain(sentence: str) -> int:
    say(f"Error: {sentence}", err=True)
    return MISTAKE


def _usage(message: str, command: str) -> str:
    message = message.rstrip(".?").replace(". Did", "; did")
    if message.startswith("No such option: -") and not message.startswith("No such option: --"):
        message += "; write -- before a prompt that begins with a hyphen"
    return f"{message}; see `{command} --help`."


def _disk(error: OSError) -> str:
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full{where}{_room(error)}; free space and run the command again."
    return f"{error.strerror or error}{where}."


def _room(error: OSError) -> str:
    """Return the free space on the disk of a file, without its partial file."""
    folder = Path(str(error.filename)).parent
    if error.filename is None or not folder.is_dir():
        return ""
    return f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB are free there)"
