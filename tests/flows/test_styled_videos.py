"""LoRAs on the command line: a video with LoRAs, and its reproduction."""

import shutil

import pytest
from loras import write_style

from magicvideo import MagicVideoPipeline, read_request
from magicvideo.cli import run


@pytest.fixture
def command(tiny_model, tmp_path, monkeypatch):
    """A function that runs `magicvideo generate` on the tiny model, beside two LoRAs."""
    monkeypatch.chdir(tmp_path)
    pipeline = MagicVideoPipeline.from_pretrained(tiny_model)
    for name in ("style.safetensors", "other.safetensors"):
        write_style(tmp_path / name, pipeline)
    return lambda *words: run(["generate", *words, "--model", str(tiny_model)])


def test_reproduce_needs_the_same_lora_files(command, tmp_path, capsys):
    key = ("a cat", "--seed", "3", "--stages", "keyframes")
    loras = ("--lora", "style.safetensors:0.5", "--lora", "other.safetensors")
    assert command(*key, *loras, "-o", "x.gif") == 0
    again = capsys.readouterr().out.partition("Make it again: magicvideo ")[2].split()
    assert [use.scale for use in read_request(tmp_path / "x.gif").loras] == [0.5, 1.0]
    assert run(again) == 0
    assert (tmp_path / "again-x.gif").read_bytes() == (tmp_path / "x.gif").read_bytes()
    # the order and the scales are those of the file
    shutil.copy("style.safetensors", "renamed.safetensors")
    named = ("--lora", "other.safetensors", "--lora", "renamed.safetensors")
    assert command("--reproduce", "x.gif", *named, "-o", "y.gif") == 0
    request = read_request(tmp_path / "y.gif")
    assert [use.scale for use in request.loras] == [0.5, 1.0]
    for words, sentence in (
        ((), "made with the LoRA style.safetensors of SHA-256"),
        (named[:2], "which is none of those named; name its file with --lora"),
        ((*named, "--lora", "third.safetensors"), "third.safetensors does not exist"),
        (("--lora", "style.safetensors:0.7", *named[:2]), "is 0.7, but the video has 0.5"),
    ):
        assert command("--reproduce", "x.gif", *words, "-o", "z.gif") == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert command(*key, "-o", "plain.gif") == 0
    assert command("--reproduce", "plain.gif", "--lora", "other.safetensors", "-o", "z.gif") == 2
    assert "made without the LoRA other.safetensors" in " ".join(capsys.readouterr().err.split())
    assert command(*key, "--lora", "style.safetensors:strong", "-o", "z.gif") == 2
    assert "'strong' of the LoRA style.safetensors is not a number" in capsys.readouterr().err
    assert not (tmp_path / "z.gif").exists()
