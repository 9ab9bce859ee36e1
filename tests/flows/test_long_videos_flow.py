"""Long and extended videos through the real command line."""

from itertools import islice

import pytest
import torch
from continuing_model import make_continuing_pipeline
from PIL import Image
from tiny_model import FRAMES, INSERTED

from magicvideo import MagicVideoPipeline, read_request
from magicvideo.cli import run
from magicvideo.media.video_io import open_video_stream, to_uint8
from magicvideo.pipelines.video import read_latents, write_video

SMALL = ("--output-scale", "1", "--steps", "2", "--interpolation-steps", "1")


@pytest.fixture(scope="module")
def continuing(tmp_path_factory):
    """A model folder that continues frames; do not write into it."""
    folder = tmp_path_factory.mktemp("models") / "continuing"
    make_continuing_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def command(continuing, tmp_path, monkeypatch):
    """A function that runs `magicvideo generate` on that model in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run(["generate", *arguments, "--model", str(continuing)])


def bytes_of(path):
    return path.read_bytes()


def test_a_long_video_is_written_while_it_is_generated(command, continuing, tmp_path, monkeypatch):
    made = []

    def count_windows(self, *arguments):
        made.append(len(written))
        return sample(self, *arguments)

    def count_frames(frames, scale=1):
        written.append(1)
        return to_uint8(frames, scale)

    sample, written = MagicVideoPipeline._sample_window, []
    monkeypatch.setattr(MagicVideoPipeline, "_sample_window", count_windows)
    monkeypatch.setattr("magicvideo.media.video_io.to_uint8", count_frames)
    long = ("a cat", "--seconds", "3", "--seed", "3", *SMALL)
    assert command(*long, "--output", "x.webp") == 0
    assert len(made) > 3
    assert made[2] > 0  # frames are in the file before later windows are sampled
    request = read_request(tmp_path / "x.webp")
    assert request.num_frames > 2 * FRAMES
    assert len(written) == request.video_frames
    assert open_video_stream(tmp_path / "x.webp").num_frames == request.video_frames
    # the file makes itself again, and the Python call makes the same
    assert command("--reproduce", "x.webp", "--output", "y.webp") == 0
    assert bytes_of(tmp_path / "y.webp") == bytes_of(tmp_path / "x.webp")
    video = MagicVideoPipeline.from_pretrained(continuing).generate(request)
    write_video(video.frames, request, tmp_path / "z.webp")
    assert bytes_of(tmp_path / "z.webp") == bytes_of(tmp_path / "x.webp")


def test_an_interrupted_long_video_is_finished_from_its_key_frames(
    command, continuing, tmp_path, monkeypatch, capsys
):
    long = ("a cat", "--seconds", "3", "--seed", "3", *SMALL)
    assert command(*long, "--output", "whole.webp") == 0
    written = []

    def press_ctrl_c(frames, scale=1):
        written.append(1)
        if len(written) == 20:
            raise KeyboardInterrupt
        return to_uint8(frames, scale)

    with monkeypatch.context() as patch:
        patch.setattr("magicvideo.media.video_io.to_uint8", press_ctrl_c)
        assert command(*long, "--output", "x.webp") == 130
    assert "The latents are stored; resume with: magicvideo generate --resume" in (
        capsys.readouterr().err
    )
    request, keys = read_latents(tmp_path / "x.webp.latents")
    assert FRAMES <= keys.shape[1] < request.num_frames
    assert run(["generate", "--resume", "x.webp", "--model", str(continuing)]) == 0
    assert bytes_of(tmp_path / "x.webp") == bytes_of(tmp_path / "whole.webp")
    assert not (tmp_path / "x.webp.latents").exists()


def test_a_video_is_extended_with_its_own_prompt(command, tmp_path, capsys):
    assert command("a cat", "--seed", "4", "--output", "cat.mp4", *SMALL) == 0
    assert command("--extend", "cat.mp4", "--seconds", "0.6", "--output", "on.mp4", *SMALL) == 0
    before, after = (open_video_stream(tmp_path / name) for name in ("cat.mp4", "on.mp4"))
    assert after.num_frames == before.num_frames + round(0.6 * 7) * (INSERTED + 1)
    assert after.fps == pytest.approx(before.fps)
    request = read_request(tmp_path / "on.mp4")
    assert (request.prompt, request.seed, request.unrecorded) == ("a cat", 4, ("extend",))
    # the frames of the video come first, as they were but for the file's compression
    own = torch.stack([*before.frames])
    kept = torch.stack([*after.frames][: before.num_frames])
    assert (own - kept).abs().mean() < 0.05
    assert command("--reproduce", "on.mp4", "--output", "no.mp4") == 2
    assert "was made with extend" in capsys.readouterr().err


@pytest.mark.parametrize("made", [0, 3])
def test_an_interrupted_extension_ends_with_what_was_made(command, tmp_path, monkeypatch, made):
    assert command("a cat", "--seed", "4", "--output", "cat.mp4", *SMALL) == 0
    iter_frames = MagicVideoPipeline.iter_frames

    def press_ctrl_c(self, *arguments):
        yield from islice(iter_frames(self, *arguments), made)
        raise KeyboardInterrupt

    monkeypatch.setattr(MagicVideoPipeline, "iter_frames", press_ctrl_c)
    extend = ("--extend", "cat.mp4", "--seconds", "0.6", "--output", "on.mp4", *SMALL)
    assert command(*extend) == 130
    if made:
        before, after = (open_video_stream(tmp_path / name) for name in ("cat.mp4", "on.mp4"))
        assert after.num_frames == before.num_frames + made
    else:
        assert [path.name for path in tmp_path.iterdir()] == ["cat.mp4"]


def test_a_video_with_a_first_frame_is_reproduced_without_the_image(command, tmp_path):
    Image.new("RGB", (40, 31), "red").save(tmp_path / "face.png")
    first = ("--image", "face.png", "--seed", "5", "--motion", "1.5", *SMALL)
    assert command("a cat", *first, "--output", "x.mp4") == 0
    (tmp_path / "face.png").unlink()
    assert command("--reproduce", "x.mp4", "--output", "again.mp4") == 0
    assert bytes_of(tmp_path / "x.mp4") == bytes_of(tmp_path / "again.mp4")
    request = read_request(tmp_path / "again.mp4")
    assert (request.first_frame.name, request.motion) == ("face.png", 1.5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("a cat", "--seconds", "60"),
            "this model supports at most 5, because it was trained without",
        ),
        (("a cat", "--motion", "1"), "trained without a motion score"),
        (("a cat", "--extend", "a.mp4"), "cannot be used"),
        (("--extend", "a.mp4"), "contains no prompt; describe what the video should show"),
        (("a cat", "a dog", "--extend", "a.mp4"), "needs exactly one prompt"),
    ],
)
def test_models_without_given_frames_give_an_error(
    tiny_model, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    assert run(["generate", *arguments, "--model", str(tiny_model)]) == 2
    assert sentence in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
