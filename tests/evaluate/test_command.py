"""The verb as a user types it, on a tiny model and tiny data."""

import json
import subprocess
import sys

import pytest
import yaml
from tiny_model import FRAMES, make_tiny_pipeline

from magicvideo.cli import run
from magicvideo.evaluate.judge.files import load_judge
from magicvideo.evaluate.protocol import read_protocol


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def protocol(tmp_path):
    values = read_protocol("emoji-heldout").model_dump(mode="json")
    values |= {"name": "tiny", "num_frames": FRAMES, "stride": 2, "num_inference_steps": 2}
    values |= {"pool_size": 3, "reference_clips": 7}
    for prompt_set, count in zip(values["sets"], (5, 3), strict=True):
        prompt_set["prompts"] = count
    values["autoencoder"]["clips"] = 2
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def command(emoji, model, judge_folder, tmp_path):
    """The words of a command that works, as pairs that a test can change."""
    return {
        "--data": emoji,
        "--model": model,
        "--judge": judge_folder,
        "--output": tmp_path / "results.md",
        "--json": tmp_path / "results.json",
        "--work": tmp_path / "videos",
    }


def evaluate(first, options):
    return run(["evaluate", str(first), *(str(word) for pair in options.items() for word in pair)])


def test_a_protocol_becomes_a_page_and_a_document(protocol, command, tmp_path, capsys):
    assert evaluate(protocol, command) == 0
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    document = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert capsys.readouterr().out.split() == [str(command["--output"]), str(command["--json"])]
    assert page.startswith("# Results\n")
    assert "\n## tiny\n" in page
    names = [[score["name"] for score in found["scores"]] for found in document["sets"]]
    assert names[-1] == ["psnr"]
    assert {"caption_first", "background_colour", "skin_tone", "frechet"} <= set(names[1])
    counts = [found["scores"][0]["measured"]["count"] for found in document["sets"]]
    assert counts == [5, 3, 2]
    colour = document["sets"][0]["scores"][2]
    assert (colour["name"], colour["real"]["value"]) == ("background_colour", 1.0)
    assert len(list(command["--work"].iterdir())) == 8

    again = command | {"--output": tmp_path / "again.md", "--json": tmp_path / "again.json"}
    assert evaluate(protocol, again) == 0  # the same numbers to the byte, from the kept videos
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "results.json").read_bytes()
    assert (tmp_path / "again.md").read_bytes() == (tmp_path / "results.md").read_bytes()


def test_options_may_come_first(protocol, command, tmp_path):
    words = [str(word) for pair in command.items() for word in pair]
    assert run(["evaluate", *words, str(protocol)]) == 0
    assert (tmp_path / "results.md").is_file()


def test_a_judge_is_trained_saved_and_scored(emoji, tmp_path, capsys):
    out = tmp_path / "judge"
    words = ["--steps", "2", "--batch-size", "3", "--seed", "5"]
    assert run(["evaluate", "judge", str(emoji), str(out), *words]) == 0
    said = capsys.readouterr()
    assert "step 2/2, contrast" in said.err
    assert "real clips, heldout: skin tone" in said.out
    assert load_judge(out).config.tones == ("default", "dark", "light", "medium")
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["heldout"]["skin tone"]["count"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["judge"]


def test_a_sheet_is_drawn(model, tmp_path):
    prompts, sheet = tmp_path / "prompts.txt", tmp_path / "sheet.png"
    prompts.write_text("a cat\na dog\n", encoding="utf-8")
    words = ["--prompts", prompts, "--output", sheet, "--model", model, "--work", tmp_path / "work"]
    assert run(["evaluate", "sheet", *map(str, words), "--steps", "2", "--shown", "3"]) == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "work").iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--judge": "nowhere"}, "nowhere holds no judge; train one with"),
        ({"--data": "nowhere"}, "nowhere is not a prepared data set"),
        ({"--model": "nowhere"}, "nowhere"),
        ({"--output": "nowhere/results.md"}, "nowhere is no folder; make it first"),
        ({"--output": "."}, ". cannot be written"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(protocol, command, change, sentence, capsys):
    assert evaluate(protocol, command | change) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not command["--json"].exists()


def test_an_unknown_protocol_is_answered(command, capsys):
    assert evaluate("emoji-heldin", command) == 2
    said = capsys.readouterr().err
    assert "'emoji-heldin' is neither a protocol (emoji-heldout, msrvtt-2990, " in said


def test_a_protocol_that_asks_for_too_much_is_refused(protocol, command, capsys):
    values = yaml.safe_load(protocol.read_text(encoding="utf-8"))
    values["sets"][1]["prompts"] = 4
    protocol.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert evaluate(protocol, command) == 2
    assert "asks for 4 clips" in capsys.readouterr().err


def test_an_existing_judge_is_not_overwritten(emoji, judge_folder, capsys):
    assert run(["evaluate", "judge", str(emoji), str(judge_folder)]) == 2
    assert "exists; choose a new folder" in capsys.readouterr().err


def test_the_verb_imports_nothing_heavy():
    code = (
        "import sys, magicvideo.cli.evaluate; "
        "print(sorted({'torch', 'numpy', 'scipy', 'diffusers', 'PIL'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_shows_how_to_name_a_protocol(capsys):
    assert run(["evaluate", "--help"]) == 0
    said = capsys.readouterr().out
    assert "emoji-heldout" in said
    assert "judge" in said
