"""Generation through the real command line: from a prompt to a file, and reproducing it."""

import os
import re
import runpy
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_model import FRAMES, INSERTED, SIDE, UPSCALING, VIDEO_FRAMES

import magicvideo
from magicvideo import MagicVideoPipeline, __version__, read_request
from magicvideo.atomic_io import hash_folder
from magicvideo.cli import run
from magicvideo.media.video_io import open_video_stream, to_uint8
from magicvideo.pipelines.component_loading import load_component
from magicvideo.pipelines.video import write_video

COMMAND = [
    sys.executable,
    "-W",
    "error::UserWarning",
    "-c",
    "from magicvideo.cli import main; main()",
]


def bytes_of(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file.read_bytes() for file in files]


@pytest.fixture
def command(tiny_model, tmp_path, monkeypatch):
    """A function that runs `magicvideo generate` on the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run(["generate", *arguments, "--model", str(tiny_model)])


def test_the_first_command_and_the_command_that_it_prints_work(tiny_model, tmp_path, monkeypatch):
    first = subprocess.run(
        [*COMMAND, "generate", "a woman sufring", "--model", str(tiny_model)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert first.returncode == 0, first.stderr
    assert 'Hint: "sufring" is not in the training captions; the most similar' in first.stderr
    path, seed = re.match(r"(\S+) \(seed (\d+)\)\n", first.stdout).groups()
    assert path == f"a-woman-sufring-{seed}.mp4"
    again = first.stdout.partition("Make it again: magicvideo ")[2].split()
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # the file says how many it was made with
    try:
        assert run(again) == 0
        assert torch.get_num_threads() == read_request(tmp_path / path).threads == 1
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / again[-1]).read_bytes() == (tmp_path / path).read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path, again[-1]])


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.webp", "x.gif", "x"])
def test_reproduce_recreates_every_format_byte_for_byte(command, tmp_path, name):
    png = ["--format", "png"] if name == "x" else []
    assert command("a cat", "--output", name, "--steps", "4", "--output-scale", "3", *png) == 0
    request = read_request(tmp_path / name)
    assert (request.num_inference_steps, request.output_scale) == (4, 3)
    assert command("--reproduce", name, "--output", f"again-{name}", *png) == 0
    assert bytes_of(tmp_path / name) == bytes_of(tmp_path / f"again-{name}")


@pytest.mark.parametrize("name", ["x.mp4", "x.webp"])
def test_python_and_the_command_write_the_same_bytes(command, tiny_model, tmp_path, name):
    assert command("a cat", "--output", name, "--seed", "3") == 0
    request = read_request(tmp_path / name)
    video = MagicVideoPipeline.from_pretrained(tiny_model).generate(request)
    write_video(video.frames, request, tmp_path / f"whole-{name}")
    assert bytes_of(tmp_path / name) == bytes_of(tmp_path / f"whole-{name}")


def test_the_command_never_loads_more_than_one_stage(command, tmp_path, monkeypatch):
    loaded, sizes, held = weakref.WeakSet(), {}, []

    def watch(folder, component, class_name, dtype, variant):
        network = load_component(folder, component, class_name, dtype, variant)
        loaded.add(network)
        sizes[component] = sum(p.numel() for p in network.parameters())
        held.append(sum(p.numel() for one in loaded for p in one.parameters()))
        return network

    monkeypatch.setattr("magicvideo.pipelines.component_loading.load_component", watch)
    Image.new("RGB", (7, 5), "red").save(tmp_path / "face.png")
    assert command("a cat", "a dog", "--image", "face.png", "--output", "out") == 0
    assert len(sizes) == 7
    sizes["text_encoder"] += sizes.pop("image_conditioner")
    assert max(held) == max(sizes.values()) < sum(sizes.values()) / 2
    assert not loaded


def test_reproduce_needs_no_image(command, tmp_path):
    Image.new("RGB", (7, 5), "red").save(tmp_path / "face.png")
    assert command("--image", "face.png", "--seed", "5") == 0
    (tmp_path / "face.png").unlink()
    assert command("--reproduce", "face-5.mp4", "--output", "again.mp4") == 0
    assert bytes_of(tmp_path / "face-5.mp4") == bytes_of(tmp_path / "again.mp4")
    assert read_request(tmp_path / "again.mp4").image_condition.name == "face.png"


def test_reproduce_refuses_another_model_and_names_both_hashes(
    command, tmp_path, tiny_model, capsys
):
    pipeline = MagicVideoPipeline.from_pretrained(tiny_model)
    pipeline.words = frozenset()
    pipeline.save_pretrained(tmp_path / "other")
    assert command("a cat", "--output", "x.gif", "--output-scale", "1") == 0
    code = run(["generate", "--reproduce", "x.gif", "--output", "y.gif", "--model", "other"])
    assert code == 2
    error = capsys.readouterr().err
    assert hash_folder(tiny_model) in error
    assert hash_folder(tmp_path / "other") in error
    assert not (tmp_path / "y.gif").exists()


def test_several_prompts_get_consecutive_seeds_and_are_independent(command, tmp_path):
    (tmp_path / "list.txt").write_text("a dog\n\n  woman surfing \n")
    assert command("a cat", "--prompts", "list.txt", "--output", "out", "--seed", "7") == 0
    names = ["1-a-cat.mp4", "2-a-dog.mp4", "3-woman-surfing.mp4"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert [read_request(tmp_path / "out" / name).seed for name in names] == [7, 8, 9]
    assert command("a dog", "--seed", "8", "--output", "alone.mp4") == 0
    assert bytes_of(tmp_path / "alone.mp4") == bytes_of(tmp_path / "out" / names[1])


def test_outputs_are_replaced_only_with_overwrite(command, tmp_path):
    assert command("a cat", "--output", "x.webp", "--seed", "1") == 0
    before = bytes_of(tmp_path / "x.webp")
    assert command("a cat", "--output", "x.webp", "--seed", "2") == 2
    assert bytes_of(tmp_path / "x.webp") == before
    assert command("a cat", "--output", "x.webp", "--seed", "2", "--overwrite") == 0
    assert read_request(tmp_path / "x.webp").seed == 2


def test_files_are_upscaled_to_256_pixels_or_by_output_scale(command, tmp_path):
    assert command("a cat", "--output", "x.webp") == 0
    small = (
        "--output",
        "small.webp",
        "--output-scale",
        "1",
        "--frames",
        "2",
        "--stages",
        "keyframes",
    )
    assert command("a cat", *small) == 0
    with Image.open(tmp_path / "x.webp") as large, Image.open(tmp_path / "small.webp") as small:
        assert large.size == (256 // (UPSCALING * SIDE) * UPSCALING * SIDE,) * 2
        assert small.size == (SIDE, SIDE)
        assert (large.n_frames, small.n_frames) == (VIDEO_FRAMES, 2)


def test_the_users_own_videos_are_interpolated_and_upscaled(command, tiny_model, capsys):
    assert (
        command("a cat", "--output", "x.gif", "--stages", "keyframes", "--output-scale", "1") == 0
    )
    model = ["--model", str(tiny_model)]
    assert run(["interpolate", "x.gif", "--output", "y.webp", "--prompt", "a cat", *model]) == 0
    assert run(["upscale", "x.gif", "--output", "z.webp", "--steps", "1", *model]) == 0
    told = capsys.readouterr().out
    assert f"y.webp ({FRAMES} frames became {VIDEO_FRAMES}" in told
    assert f"z.webp ({SIDE}x{SIDE} became {UPSCALING * SIDE}x{UPSCALING * SIDE})" in told
    with Image.open("x.gif") as x, Image.open("y.webp") as y, Image.open("z.webp") as z:
        assert (y.n_frames, y.size) == (VIDEO_FRAMES, x.size)
        assert (z.n_frames, z.size) == (FRAMES, (UPSCALING * SIDE,) * 2)
    rates = [open_video_stream(Path(name)).fps for name in ("x.gif", "y.webp", "z.webp")]
    assert rates[1:] == pytest.approx([rates[0] * (INSERTED + 1), rates[0]], rel=0.1)
    assert run(["upscale", "x.gif", "--output", "z.webp", *model]) == 2
    assert run(["interpolate", "no.mp4", "--output", "w.webp", *model]) == 2
    assert "no.mp4 does not exist" in capsys.readouterr().err
    assert run(["upscale", "none/no.mp4", *model]) == 2
    assert "none/no.mp4 does not exist" in capsys.readouterr().err


def test_outputs_are_written_beside_their_inputs(command, tiny_model, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    small = ("--stages", "keyframes", "--output-scale", "1")
    assert command("a cat", "--output", "mine/in.mp4", *small) == 0
    capsys.readouterr()
    model = ["--model", str(tiny_model)]
    for verb, made, told in (
        ("interpolate", "mine/in-interpolated.mp4", f"{FRAMES} frames became {VIDEO_FRAMES}"),
        ("upscale", "mine/in-upscaled.mp4", f"{SIDE}x{SIDE} became {UPSCALING * SIDE}x"),
    ):
        assert run([verb, "mine/in.mp4", *model]) == 0
        assert f"{made} ({told}" in capsys.readouterr().out
        before = bytes_of(tmp_path / made)
        assert run([verb, "mine/in.mp4", "--seed", "1", *model]) == 2
        assert f"{made} exists; choose another name, or add" in capsys.readouterr().err
        assert bytes_of(tmp_path / made) == before
        assert run([verb, "mine/in.mp4", "--seed", "1", "--overwrite", *model]) == 0
        assert bytes_of(tmp_path / made) != before
        capsys.readouterr()
    names = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert names == ["in-interpolated.mp4", "in-upscaled.mp4", "in.mp4"]
    footage = [open_video_stream(tmp_path / "mine" / name) for name in names]
    assert [one.num_frames for one in footage] == [VIDEO_FRAMES, FRAMES, FRAMES]
    assert [one.height for one in footage] == [SIDE, UPSCALING * SIDE, SIDE]
    assert [one.fps for one in footage] == [7.0 * (INSERTED + 1), 7.0, 7.0]


@pytest.mark.parametrize("verb", ["interpolate", "upscale"])
def test_ctrl_c_leaves_no_partial_video(command, tiny_model, tmp_path, monkeypatch, verb):
    assert (
        command("a cat", "--output", "in.mp4", "--stages", "keyframes", "--output-scale", "1") == 0
    )
    written = []

    def press_ctrl_c(frame):
        written.append(frame)
        assert not list(tmp_path.glob("in-*"))  # what is not finished has not its name yet
        if len(written) == 3:
            raise KeyboardInterrupt
        return to_uint8(frame)

    monkeypatch.setattr("magicvideo.media.video_io.to_uint8", press_ctrl_c)
    assert run([verb, "in.mp4", "--model", str(tiny_model)]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_too_long_prompts_are_truncated_and_the_rest_is_shown(command, capsys):
    assert command("a cat and a dog " * 4 + "on the moon", "--seed", "3") == 0
    hint = capsys.readouterr().err
    assert "longer than the model's 13 tokens" in hint
    assert 'on the moon".' in hint


def test_unusable_devices_are_refused(command, capsys):
    assert command("a cat", "--device", "abacus") == 2
    assert "Device 'abacus' does not exist; available are: cpu" in capsys.readouterr().err


def test_info_shows_components_sizes_and_hash(tiny_model, capsys):
    assert run(["info", str(tiny_model)]) == 0
    assert run(["info", "--model", str(tiny_model)]) == 0
    shown = capsys.readouterr().out
    pipeline = MagicVideoPipeline.from_pretrained(tiny_model)
    for name in ("vae", "text_encoder", "image_encoder", "image_conditioner", "unet"):
        count = sum(p.numel() for p in getattr(pipeline, name).parameters())
        assert re.search(rf"{name} .* {count:,} ", shown)
    for text in (hash_folder(tiny_model), "Apache-2.0", __version__, "DDIMScheduler"):
        assert text in shown


def test_public_names_exist_and_are_imported_lazily():
    for name in magicvideo.__all__:
        assert getattr(magicvideo, name) is not None
    assert set(magicvideo.__all__) == set(dir(magicvideo))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = magicvideo.nothing
    heavy = (
        "import sys, magicvideo, magicvideo.cli; assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", heavy], check=True)


def test_the_example_runs(tiny_model, tmp_path):
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "generate.py"))
    example["main"](tiny_model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heart.mp4", "surfer.mp4"]
    assert read_request(tmp_path / "surfer.mp4").seed == 8
