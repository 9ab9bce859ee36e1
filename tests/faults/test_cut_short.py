"""A video interrupted after its latents: nothing is lost, and one line says how to continue."""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magicvideo.atomic_io import LOCK
from magicvideo.cli import run
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.pipelines.video import (
    latents_path,
    output_of,
    read_latents,
    read_request,
    write_latents,
)

WISH = ("a cat", "--seed", "4")
GO_ON = "The latents are stored; resume with: magicvideo "
STALL = """
import sys, time
from pathlib import Path
from magicvideo.cli import main
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

def stall(*_):
    Path("stalled").touch()
    time.sleep(600)

setattr(MagicVideoPipeline, sys.argv.pop(1), stall)
main()
"""


@pytest.fixture
def command(tiny_model, tmp_path, monkeypatch):
    """A function that runs `magicvideo generate` on the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run(["generate", *arguments, "--model", str(tiny_model)])


@pytest.fixture
def whole(command, tmp_path, capsys):
    """The video of an uninterrupted run."""
    assert command(*WISH, "--output", "whole.webp") == 0
    capsys.readouterr()
    return tmp_path / "whole.webp"


def ends_python(*_):
    raise MemoryError


def ends_cpu(*_):
    torch.empty(2**50)


def ends_gpu(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has")


def stops(*_):
    raise KeyboardInterrupt


def frames_of(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]).astype(int)


def go_on(line):
    """Run the command that a line contains."""
    assert line.startswith(GO_ON)
    return run(shlex.split(line.removeprefix(GO_ON)))


@pytest.mark.parametrize("stage", ["decode", "upscale"])
def test_a_kill_during_decoding_loses_nothing(command, whole, tiny_model, tmp_path, stage):
    arguments = ["generate", *WISH, "--output", "cut.webp", "--model", str(tiny_model)]
    process = subprocess.Popen(
        [sys.executable, "-c", STALL, stage, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    while not (tmp_path / "stalled").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    names = ["cut.webp.latents", "stalled", "whole.webp"]
    # the lock of the killed process, which nobody holds any more, goes with the next
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(LOCK))
    assert left == names
    assert command("--resume", "cut.webp") == 0
    assert (tmp_path / "cut.webp").read_bytes() == whole.read_bytes()
    assert not (tmp_path / names[0]).exists()


@pytest.mark.parametrize(
    ("stage", "end", "asked"),
    [
        ("decode", ends_python, ""),
        ("upscale", ends_python, ""),
        ("decode", ends_cpu, " (4503599627370496 bytes more were requested)"),
        ("upscale", ends_gpu, " (20.00 GiB more were requested)"),
    ],
)
def test_running_out_of_memory_gives_a_sentence_and_a_command(
    command, tmp_path, monkeypatch, capsys, stage, end, asked
):
    assert command(*WISH, "--output", "whole", "--format", "png") == 0
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(MagicVideoPipeline, stage, end)
        assert command(*WISH, "--output", "cut", "--format", "png") == 2
    line, error = capsys.readouterr().err.splitlines()
    assert error == (
        f"Error: There is not enough memory{asked}; reduce --decoder-frames and --upscaler-frames "
        "as above, or use another --device."
    )
    assert line.endswith(" --decoder-frames 1 --upscaler-frames 1")
    monkeypatch.setattr(MagicVideoPipeline, "sample_keyframes", end)  # they are not made again
    assert go_on(line) == 0
    assert read_request(tmp_path / "cut") == read_request(tmp_path / "whole")
    shown, expected = frames_of(tmp_path / "cut"), frames_of(tmp_path / "whole")
    np.testing.assert_allclose(shown, expected, atol=1)  # levels: the last bits may differ


def test_stored_latents_are_not_replaced_by_another_video(command, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(MagicVideoPipeline, "decode", ends_python)
        assert command(*WISH, "--output", "x.webp") == 2
    kept = latents_path(Path("x.webp")).read_bytes()
    capsys.readouterr()
    assert command("a dog", "--output", "x.webp") == 2
    assert "finish it with `magicvideo generate --resume x.webp`" in capsys.readouterr().err
    assert latents_path(Path("x.webp")).read_bytes() == kept
    assert command("a dog", "--output", "x.webp", "--overwrite") == 0
    assert read_request(Path("x.webp")).prompt == "a dog"
    assert not latents_path(Path("x.webp")).exists()


def test_with_minimal_chunks_more_memory_is_suggested(command, monkeypatch, capsys):
    monkeypatch.setattr(MagicVideoPipeline, "decode", ends_cpu)
    least = ("--stages", "keyframes", "--decoder-frames", "1", "--output", "x.webp")
    assert command(*WISH, *least) == 2
    line, error = capsys.readouterr().err.splitlines()
    assert line.endswith(" --decoder-frames 1")
    assert error.endswith("; close other programs, or use a machine with more memory.")


def test_running_out_of_memory_before_latents_exist_gives_a_sentence(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(MagicVideoPipeline, "sample_keyframes", ends_gpu)
    assert command(*WISH, "--output", "x.webp") == 2
    assert capsys.readouterr().err == (
        "Error: There is not enough memory (20.00 GiB more were requested); use fewer "
        "--frames, or another --device.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_and_errors_report_how_to_continue(command, whole, tmp_path, monkeypatch, capsys):
    whole.rename(tmp_path / "x.webp")
    expected = (tmp_path / "x.webp").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(MagicVideoPipeline, "upscale", stops)
        assert command(*WISH, "--output", "x.webp", "--overwrite", "--device", "cpu") == 130
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.endswith(" --device cpu --overwrite")
        patched.setattr(MagicVideoPipeline, "upscale", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            go_on(line)
        assert capsys.readouterr().err == f"{line}\n"
    assert go_on(line) == 0
    assert (tmp_path / "x.webp").read_bytes() == expected
    assert command("--resume", "x.webp") == 2
    assert "x.webp.latents does not exist; there is nothing" in capsys.readouterr().err


def test_a_full_disk_during_writing_reports_how_to_continue(
    command, whole, tmp_path, capsys, full_disk
):
    with full_disk(whole.stat().st_size // 2):
        assert command(*WISH, "--output", "cut.webp") == 2
    line, error = capsys.readouterr().err.splitlines()
    assert "cut.webp cannot be written (File too large)" in error
    assert go_on(line) == 0
    assert (tmp_path / "cut.webp").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "told", [("--seed", "4"), ("a cat",), ("--output", "y.webp"), ("--lora", "x.safetensors")]
)
def test_resume_refuses_prompts_and_settings(command, capsys, told):
    assert command("--resume", "x.webp", *told) == 2
    assert "--resume uses the prompt and all settings" in capsys.readouterr().err


def test_latents_of_one_device_are_finished_on_another(
    command, whole, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        patched.setattr(MagicVideoPipeline, "decode", stops)
        assert command(*WISH, "--output", "cut.webp") == 130
    kept = latents_path(tmp_path / "cut.webp")
    request, latents = read_latents(kept)
    write_latents(kept, latents, replace(request, device="abacus"))
    capsys.readouterr()
    assert command("--resume", "cut.webp") == 2
    assert "Device 'abacus' does not exist" in capsys.readouterr().err
    assert command("--resume", "cut.webp", "--device", "cpu") == 0
    assert "the latents are from abacus" in capsys.readouterr().err
    again = read_request(tmp_path / "cut.webp")
    assert (again.device, replace(again, device="cpu")) == ("abacus", read_request(whole))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--decoder-frames", "0"], "--decoder-frames is 0; it must be 1 or more."),
        (["--upscaler-tile", "20"], "omit --upscaler-tile."),
        (["--upscaler-frames", "2", "--stages", "keyframes"], "has no stage upscaler; omit"),
    ],
)
def test_chunk_sizes_without_effect_are_refused_at_once(command, capsys, options, sentence):
    assert command(*WISH, "--output", "x.webp", *options) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_resume_accepts_the_file_of_latents(tmp_path):
    assert output_of(tmp_path / "x.mp4") == (tmp_path / "x.mp4", tmp_path / "x.mp4.latents")
    kept = tmp_path / "x.mp4.latents"
    kept.write_bytes(b"")
    assert output_of(kept) == (tmp_path / "x.mp4", kept)
