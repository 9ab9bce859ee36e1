"""Outputs that cannot be written: one sentence before sampling, and no partial files."""

import os
import signal
import threading
import time

import pytest
import torch
from plain_request import PLAIN

from magicvideo.cli import run
from magicvideo.errors import UserError
from magicvideo.pipelines.video import read_latents, read_request, write_latents, write_video


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The current folder, with files at the output paths."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.mp4").write_text("precious")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "holiday.png").write_text("precious")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--output", "taken.mp4"], "taken.mp4 exists; choose another name, or add --overwrite."),
        (["--output", "folder.mp4", "--format", "mp4", "--overwrite"], "no model"),
        (["--output", "none/x.mp4"], "The folder none does not exist; create it first."),
        (["--output", "taken.mp4/x.mp4"], "The folder taken.mp4 does not exist; create it first."),
        (["--output", "x.avi"], "x.avi ends in .avi, which is not a supported format"),
        (["--output", "x"], "x has no suffix"),
        (["--output", "album", "--format", "png"], "album exists; choose another name"),
        (
            ["--output", "album", "--format", "png", "--overwrite"],
            "album exists and is not a folder of frames; choose another name.",
        ),
        (["--output", "/proc/x.mp4"], "/proc cannot be written"),
        (["a dog", "--output", "x.mp4"], "Several videos would be x.mp4"),
        (["a dog", "--output", "none/deep/{index}.mp4"], "The folder none does not exist"),
        (["--steps", "0"], "The number of steps is 0; it must be an integer from 1 to 1000."),
        (["--frames", "-3"], "The number of frames is -3"),
        (["--fps", "nan"], "The frame rate is nan"),
        (["--guidance", "inf"], "The guidance scale is inf"),
        (["--seed", "-1"], "The seed is -1"),
        (["--seed", str(2**63)], f"The seed is {2**63}"),
        (["--output-scale", "0"], "The output scale is 0"),
        (["--scheduler", "heun"], "Unknown scheduler 'heun'; choose one of ddim, dpm++"),
        (["--prompts", "none.txt"], "none.txt cannot be read (No such file or directory); give"),
        (
            ["--reproduce", "taken.mp4"],
            "--reproduce uses the prompt and all settings of the file",
        ),
    ],
)
def test_mistakes_are_reported_before_the_model_is_loaded(there, arguments, sentence, capsys):
    if sentence == "no model":  # a folder in the way of a file takes the video inside
        sentence = "The model folder none-such does not exist."
    before = sorted(there.rglob("*"))
    assert run(["generate", "a cat", *arguments, "--model", "none-such"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert sorted(there.rglob("*")) == before
    assert (there / "taken.mp4").read_text() == "precious"


@pytest.mark.parametrize("prompt", [[], [""], ["  "], ["a cat", ""]])
@pytest.mark.usefixtures("there")
def test_empty_prompts_are_refused(prompt, capsys):
    assert run(["generate", *prompt]) == 2
    assert "The prompt is empty; describe what the video should show." in capsys.readouterr().err


def test_files_of_prompts_that_hold_none_are_refused(there, capsys):
    (there / "blank.txt").write_text("\n \n")
    (there / "latin.txt").write_bytes(b"caf\xe9\n")
    for name, sentence in {
        "blank.txt": "holds no prompt",
        "latin.txt": "is not UTF-8 text",
    }.items():
        assert run(["generate", "--prompts", name]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission(there):
    there.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written \\(Permission denied\\)"):
        write_video(torch.zeros(5, 3, 24, 24), PLAIN, there / "x.mp4")


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.webp", "x.gif", "x"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_keeps_the_existing_file(tmp_path, full_disk, name, overwrite):
    target = tmp_path / name
    noise = torch.rand(5, 3, 24, 24) * 2 - 1
    if overwrite:
        write_video(torch.zeros(5, 3, 24, 24), PLAIN, target)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with full_disk(4000), pytest.raises(UserError, match=f"{name} cannot be written \\("):
        write_video(noise, PLAIN, target, overwrite=overwrite)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_full_disk_leaves_no_partial_latents(tmp_path, full_disk):
    latents = torch.zeros(1, 5, 3, 11, 13)
    with (
        full_disk(4000),
        pytest.raises(UserError, match=r"x\.latents cannot be written \(File"),
    ):
        write_latents(tmp_path / "x.latents", latents, PLAIN)
    assert list(tmp_path.iterdir()) == []
    write_latents(tmp_path / "x.latents", latents, PLAIN)
    assert torch.equal(read_latents(tmp_path / "x.latents")[1], latents)


def test_only_folders_of_frames_are_replaced(tmp_path):
    frames = torch.zeros(5, 3, 24, 24)
    write_video(frames, PLAIN, tmp_path / "x")
    write_video(frames[:2], PLAIN, tmp_path / "x", overwrite=True)
    assert [path.name for path in sorted((tmp_path / "x").iterdir())] == ["000.png", "001.png"]


def test_ctrl_c_keeps_finished_videos_and_nothing_else(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prompts = [f"cat {index}" for index in range(101)]
    stopped = threading.Event()

    def press_ctrl_c():
        while not (tmp_path / "out" / "002-cat-1.webp").exists() and not stopped.is_set():
            time.sleep(0.002)
        # again after a while, as people do: Python drops an interrupt that falls in a finalizer
        while not stopped.is_set():
            os.kill(os.getpid(), signal.SIGINT)
            stopped.wait(5)

    finger = threading.Thread(target=press_ctrl_c)
    finger.start()
    try:
        code = run(
            [
                *("generate", *prompts, "--model", str(tiny_model), "--steps", "5"),
                *("--output", "out", "--format", "webp"),
            ]
        )
    finally:
        stopped.set()
        finger.join()
    assert code == 130
    assert "Traceback" not in capsys.readouterr().err
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files[:2] == ["001-cat-0.webp", "002-cat-1.webp"]
    assert len(files) < 101
    for name in files:
        assert read_request(tmp_path / "out" / name).num_inference_steps == 5
