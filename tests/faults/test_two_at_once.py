"""Two processes that write one output: the second is refused at once and names the first."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
import torch
from plain_request import PLAIN

from magicvideo import cli
from magicvideo.atomic_io import LOCK, atomic_file, lock_output
from magicvideo.cli.console import make_console
from magicvideo.cli.generate import DecodeJob, OutputOptions
from magicvideo.errors import UserError
from magicvideo.pipelines.request import ChunkSizes, GenerationSettings
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.pipelines.video import latents_path, read_latents, write_latents

HOLD = """
    import sys, time
    from pathlib import Path
    from magicvideo.atomic_io import lock_output
    with lock_output(Path("x.mp4")):
        Path("held").touch()
        time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that holds the lock of x.mp4 in the present folder."""
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOLD)])
    while not (tmp_path / "held").exists():
        assert process.poll() is None
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def test_the_second_process_is_refused_and_names_the_first(holder, tmp_path):
    expected = rf"x\.mp4 is being written by process {holder.pid} on \S+; wait until it ends"
    with pytest.raises(UserError, match=expected), lock_output(tmp_path / "x.mp4"):
        pass
    for name in ("X.MP4", "./x.mp4"):  # one file for some disks, and for all
        with pytest.raises(UserError, match=f"process {holder.pid}"), lock_output(tmp_path / name):
            pass
    with lock_output(tmp_path / "y.mp4"):
        pass


def test_generate_refuses_before_it_reads_the_other_process_files(holder, tmp_path):
    write_latents(tmp_path / "x.mp4.latents", torch.zeros(1, 5, 4, 2, 2), PLAIN)
    options = OutputOptions(output=tmp_path / "x.mp4", overwrite=True)
    with pytest.raises(UserError, match=f"process {holder.pid}"), options.reserve(["fox"], [1]):
        pass
    assert read_latents(tmp_path / "x.mp4.latents")[0] == PLAIN


def test_a_killed_process_holds_no_lock_and_its_temporary_files_are_removed(holder, tmp_path):
    with atomic_file(tmp_path / "x.mp4") as partial:
        litter = tmp_path / partial.name.replace("x-", "x-y-", 1)  # of another output
        litter.touch()
        partial.write_bytes(b"made")
    stale = tmp_path / ".partial-x-abcd_123.mp4"
    stale.touch()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert [path.name for path in tmp_path.glob(f"{LOCK}*")]
    with lock_output(tmp_path / "x.mp4"):
        assert not stale.exists()
        assert litter.exists()
    assert not list(tmp_path.glob(f"{LOCK}*"))


@pytest.mark.parametrize("name", ["frames", "model.v2"])
def test_folders_of_killed_writers_are_removed_or_restored(tmp_path, name):
    """Folders of PNG and exported models: a kill between two renames leaves the old one renamed."""
    stale, aside, foreign = (
        tmp_path / f".partial-{name}{end}" for end in ("-0123abcd", "-4567cdef-old", "-y-0123abcd")
    )
    for folder in (stale, aside, foreign):
        folder.mkdir()
        (folder / "000.png").write_bytes(folder.name.encode())
    with lock_output(tmp_path / name):
        assert (tmp_path / name / "000.png").read_bytes() == aside.name.encode()
    aside.mkdir()
    with lock_output(tmp_path / name):
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted(
            [foreign.name, name]
        )
    assert (tmp_path / name / "000.png").read_bytes() == b".partial-" + name.encode() + (
        b"-4567cdef-old"
    )


@pytest.mark.parametrize("command", ["export", "export --image-model", "inflate"])
def test_only_one_process_writes_a_model(holder, capsys, command):
    assert cli.run([*command.split(), "source", "x.mp4"]) == 2
    assert f"x.mp4 is being written by process {holder.pid}" in capsys.readouterr().err


def test_a_folder_created_for_the_lock_is_removed_with_it(tmp_path):
    options = OutputOptions(output=tmp_path / "new" / "{index}.webp")
    with options.reserve(["fox", "cat"], [1, 2]) as paths:
        assert [path.name for path in paths] == ["1.webp", "2.webp"]
        assert (tmp_path / "new").is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_latents_exist_if_the_message_says_so(tiny_model, tmp_path, capsys, overwrite):
    """Also without working locks: the first process to end removes the latents of the second."""
    pipeline = MagicVideoPipeline.from_pretrained(tiny_model)
    output = tmp_path / "x.webp"
    settings = GenerationSettings(stages=("keyframes",), num_frames=2, num_inference_steps=1)
    (request,) = pipeline.build_requests(["fox"], [1], settings)
    latents = pipeline.generate_latents(request)
    second = replace(request, seed=2)
    job = DecodeJob(None, None, ChunkSizes(), overwrite)
    write_latents(latents_path(output), latents, second)
    job.make(make_console(), "", pipeline, request, latents, output)
    if overwrite:
        job.make(make_console(), "", pipeline, second, latents, output)
        assert not latents_path(output).exists()
        return
    with pytest.raises(UserError, match=r"x\.webp exists"):
        job.make(make_console(), "", pipeline, second, latents, output)
    assert "The latents are stored" in capsys.readouterr().err
    assert read_latents(latents_path(output))[0] == second
