"""A console that fails or cannot encode a name does not stop a command."""

import os
import subprocess
import sys

import pytest

TOOL = [sys.executable, "-m", "magicvideo"]
WORK = """
import sys
from pathlib import Path
from magicvideo.cli import console
failure = console.tolerate_broken_streams()
for number in range(3000):
    console.say(f"line {number} " + "x" * 100)
    print("plain", file=sys.stderr)
console.make_console().print("of rich")
console.say("\\u72d0 \\x1b[2J \\udce9")
Path(sys.argv[1]).write_text(str(failure()))
"""


def run_work(tmp_path, **streams):
    done = tmp_path / "done"
    command = [sys.executable, "-c", WORK, str(done)]
    code = subprocess.run(command, timeout=60, check=False, **streams).returncode
    return code, done.read_text()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")  # noqa: PTH110
def test_a_full_disk_behind_the_output(tmp_path):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        code, failure = run_work(tmp_path, stdout=full, stderr=full)
    assert code == 0
    assert "No space left" in failure


def test_a_reader_that_goes_away(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    code, failure = run_work(tmp_path, stdout=writer, stderr=writer)
    os.close(writer)
    assert code == 0
    assert "Broken pipe" in failure


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_that_the_console_cannot_encode_are_escaped(tmp_path, encoding):
    with (tmp_path / "log").open("wb") as log:
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        code, failure = run_work(tmp_path, stdout=log, stderr=subprocess.DEVNULL, env=env)
    assert (code, failure) == (0, "None")
    last = (tmp_path / "log").read_bytes().splitlines()[-1].decode(encoding)
    fox = "\u72d0" if encoding == "utf-8" else "\\u72d0"
    assert last == f"{fox} \\x1b[2J \\xe9"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")  # noqa: PTH110
def test_a_command_whose_results_are_lost_says_so():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*TOOL, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The command succeeded, but its output cannot be")
    assert done.stderr.count("\n") == 1
