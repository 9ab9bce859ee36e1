"""The contract of every command: exit codes, one-sentence errors, a fast --help."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import typer

from magicvideo import cli
from magicvideo.data.sources.synthetic import write_clips
from magicvideo.errors import UserError


@pytest.fixture
def verb(monkeypatch):
    """Puts a verb `try` into the command line; what it does is set by the test."""
    app = typer.Typer()
    monkeypatch.setattr(cli, "app", app)

    def add(function):
        app.callback()(lambda: None)
        app.command("try")(function)

    return add


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("No such clip."), 2, "Error: No such clip.\n"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.ENOSPC, "No space left on device", "a.mp4"), 2, "full at a.mp4 ("),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "Permission denied at /x."),
        (MemoryError(), 2, "not enough memory; use smaller or fewer frames, or another"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB."), 2, "(2.50 GiB more were"),
        (ModuleNotFoundError(name="accelerate"), 2, "`pip install 'magicvideo[train]'`."),
        (ModuleNotFoundError(name="jinja2"), 2, "`pip install 'magicvideo[report]'`."),
        (ModuleNotFoundError(name="peft.tuners"), 2, "This needs peft; install it with `pip "),
        (typer.Exit(7), 7, ""),
    ],
)
def test_errors_become_a_sentence_and_an_exit_code(verb, capsys, error, code, sentence):
    verb(raising(error))
    assert cli.run(["try"]) == code
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == bool(sentence)
    assert said.out == ""


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        RuntimeError("shapes do not match"),
        ModuleNotFoundError(name="magicvideo.nothing"),
        ModuleNotFoundError(name="mypy"),  # an extra of developers
    ],
)
def test_internal_errors_are_not_hidden(verb, error):
    verb(raising(error))
    with pytest.raises(type(error)):
        cli.run(["try"])


def test_success_exits_with_0(verb):
    verb(lambda: None)
    assert cli.run(["try"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dat"], "No such command 'dat'; did you mean 'data'; see `magicvideo --help`"),
        (["data", "docter"], "did you mean 'doctor'; see `magicvideo data --help`"),
        (["data", "prepare", "--siez", "3"], "--size"),
        (["--verson"], "--version"),
        (["data", "prepare", "--size", "x", "a", "b"], "--size 'x'"),
        (["data", "prepare", "a"], "Missing argument"),
        (["data"], "Missing command; see `magicvideo data --help`"),
        (["data", "doctor", "a", "b"], "unexpected extra argument"),
    ],
)
def test_mistyped_commands_give_suggestions(capsys, arguments, sentence):
    assert cli.run(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("Error: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_no_argument_shows_the_help(capsys):
    assert cli.run([]) == 0
    assert "Commands" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("magicvideo 0.")


def test_help_imports_no_heavy_library():
    code = (
        "import sys; from magicvideo.cli import run; run(['--help']); "
        "heavy = {'torch', 'numpy', 'av', 'PIL', 'pydantic', 'diffusers', 'transformers', 'yaml'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_a_command_without_a_traceback(tmp_path, workers):
    source = tmp_path / "source"
    write_clips(source, 40)
    arguments = ["data", "prepare", source, tmp_path / "out", "--workers", workers]
    process = subprocess.Popen(
        [sys.executable, "-m", "magicvideo", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    progress, deadline = tmp_path / "out/progress.jsonl", time.monotonic() + 60
    while not progress.exists() or progress.stat().st_size == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "")
    assert not list((tmp_path / "out").rglob(".partial-*"))
    assert not (tmp_path / "out/manifest.jsonl").exists()
