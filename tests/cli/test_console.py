import io
import re

import pytest
import torch
from rich.console import Console

from magicvideo.cli.console import is_out_of_memory, progress_bar
from magicvideo.cli.options import choose_device
from magicvideo.errors import UserError


def shown_by(place, *events):
    """The lines on the screen before the bars are taken away."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=70, color_system=None)
    with progress_bar(console, place) as report:
        for event in events:
            report(*event)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", screen.getvalue())
    return [line.strip() for line in plain.replace("\n", "\r").split("\r") if line.strip()]


def test_every_stage_has_its_own_bar():
    lines = shown_by(
        "2/3 ",
        ("key frames", 0, 20),
        ("decoding", 0, 61),
        ("key frames", 20, 20),
        ("decoding", 16, 61),
    )
    assert lines[-2].startswith("2/3 key frames")
    assert "20/20" in lines[-2]
    assert lines[-1].startswith("2/3 decoding")
    assert "16/61" in lines[-1]


def test_a_bar_waits_for_the_first_stage():
    assert shown_by("")[-1].startswith("reading")


@pytest.mark.parametrize(("typed", "found"), [("cpu", "cpu"), (" CPU", "cpu"), (None, "cpu")])
def test_devices_are_found_in_any_spelling(monkeypatch, typed, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(typed) == found


def test_one_of_several_gpus_is_taken_by_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(name) for name in ("CUDA", "cuda:1", None)] == ["cuda", "cuda:1", "cuda"]
    with pytest.raises(
        UserError, match=r"'cuda:2' does not exist; available are: cpu, cuda, cuda:0, cuda:1; "
    ):
        choose_device("cuda:2")


def test_a_missing_gpu_names_the_variable_that_hides_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"Device 'cuda:1' does not exist; .* CUDA_VISIBLE_DEVICES"):
        choose_device("cuda:1")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("could not create a primitive"), True),  # oneDNN where memory ends
        (RuntimeError("could not create a memory object"), True),
        (MemoryError(), True),
        (RuntimeError("could not create a window"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_the_end_of_memory_is_told_by_what_libraries_say(error, expected):
    assert is_out_of_memory(error) is expected
