import io
import re

from rich.console import Console

from magicvideo.cli.console import progress_bar


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
