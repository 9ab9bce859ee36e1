"""The command line: `magicvideo VERB`, one module a command.

The modules import nothing heavy until their command is called, so that `--help` answers at once.
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

# The base of every mistake in arguments; typer gives it no name, and its message is like this one's
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
    """Hold the options that stand before every command."""


for command in (generate, interpolate, studio, data, inflate, train, export, evaluate, info):
    command.register(app)


def main() -> None:
    """Run the command line and exit: 0 done, 2 a mistake of the user's, 130 Ctrl-C."""
    stdout_failure = tolerate_broken_streams()
    code = run(sys.argv[1:])
    failure = stdout_failure()
    if failure is not None and failure.errno != errno.EPIPE and not code:
        code = _complain(
            f"The work is done, but the standard output cannot be written ({failure.strerror})."
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
        advice = "take smaller frames or fewer of them, or another device"
        return _complain(str(out_of_memory_error(error, advice)))
    return code if isinstance(code, int) else 0


def _complain(sentence: str) -> int:
    say(f"Error: {sentence}", err=True)
    return MISTAKE


def _usage(message: str, command: str) -> str:
    message = message.rstrip(".?").replace(". Did", "; did")
    if message.startswith("No such option: -") and not message.startswith("No such option: --"):
        message += "; write -- before a prompt that begins with a hyphen"
    return f"{message}; `{command} --help` shows what there is."


def _disk(error: OSError) -> str:
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full{where}{_room(error)}; make room and run the same command again."
    return f"{error.strerror or error}{where}."


def _room(error: OSError) -> str:
    """Return what is free where a file did not fit, as it is without the part that was written."""
    folder = Path(str(error.filename)).parent
    if error.filename is None or not folder.is_dir():
        return ""
    return f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB are free there)"
