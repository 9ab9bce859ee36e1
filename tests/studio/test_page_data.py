"""The Train and Data tabs, with real and damaged folders."""

import base64
import io
import math

import pytest
from PIL import Image

from magicvideo.studio.page_data import DataView, RunsView


def picture_of(address):
    kind, _, data = address.partition(";base64,")
    assert kind.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_runs_have_curves_figures_and_samples(run_folder):
    view = RunsView(run_folder)
    assert sorted(view.names()) == ["emoji/keyframes", "emoji/vae"]
    assert view.values("emoji/vae") == ["loss", "lr"]
    curve = view.curve("emoji/keyframes", "loss")
    assert len(curve) <= 700
    assert all(math.isclose(y, 2.0 / x) for x, y in zip(curve["step"], curve["value"], strict=True))
    assert view.facts("emoji/vae", "loss") == [("step", "2,000"), ("loss", "0.0005")]
    sheet = view.sheet("emoji/keyframes")
    assert sheet.name == "step-00002000"
    with picture_of(sheet.image) as shown:
        assert shown.getpixel((0, 0)) == (2000 % 256, 0, 0)
    assert view.sheet("emoji/vae") is None


@pytest.mark.parametrize("name", ["..", "../emoji/vae", "/etc", "", "emoji/none"])
def test_a_run_is_one_of_the_listed(run_folder, name):
    view = RunsView(run_folder / "emoji")
    assert view.values(name) == []
    assert view.facts(name, "loss") == []
    assert len(view.curve(name, "loss")) == 0
    assert view.sheet(name) is None


def test_without_runs_the_tab_says_what_to_do(tmp_path):
    assert "--runs" in RunsView(None).hint()
    assert RunsView(tmp_path).names() == []
    assert str(tmp_path) in RunsView(tmp_path).hint()


def test_clips_are_shown_and_searched(prepared):
    view = DataView(prepared)
    summary, clips = view.clips("")
    assert summary.startswith("7 clips of 24x24 pixels")
    assert len(clips) == 7
    with picture_of(clips[0].image) as shown:
        assert (shown.format, shown.n_frames) == ("WEBP", 12)
    words = clips[3].caption.split()[:2]
    _, found = view.clips(" ".join(words).upper())
    assert clips[3].id in {clip.id for clip in found}
    assert view.clips("no such words here")[1] == []
    assert view.skipped() == []


def test_a_folder_that_is_not_prepared_says_so(tmp_path):
    summary, clips = DataView(tmp_path).clips("")
    assert "magicvideo data prepare" in summary
    assert clips == []
    assert DataView(tmp_path).skipped() is None
