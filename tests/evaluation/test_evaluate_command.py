"""The command `evaluate` on a tiny model and tiny data."""

import json
import subprocess
import sys
import threading
import time

import pytest
import yaml
from filelock import FileLock
from tiny_model import FRAMES, make_tiny_pipeline

from magicvideo.cli import run
from magicvideo.evaluation.judge.network import load_judge
from magicvideo.evaluation.protocol import read_protocol


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def protocol(tmp_path):
    values = read_protocol("emoji-heldout").model_dump(mode="json")
    values |= {"name": "tiny", "num_frames": FRAMES, "stride": 2, "num_inference_steps": 2}
    values |= {"pool_size": 3, "reference_clips": 7, "resamples": 20}
    values["sets"] = values["sets"][:2]  # wordings need the emoji data, finished videos a model
    for prompt_set, count in zip(values["sets"], (5, 3), strict=True):
        prompt_set["prompts"] = count
    values["autoencoder"]["clips"] = 2
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def command(emoji, model, judge_folder, tmp_path):
    """The options of a valid command, which a test can change."""
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


def without(command, option):
    return {name: value for name, value in command.items() if name != option}


def kept(command):
    """Modification time of each cached video by its index."""
    return {path: path.stat().st_mtime_ns for path in command["--work"].rglob("*.npy")}


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
    scores = {score["name"]: score for score in document["sets"][0]["scores"]}
    assert scores["background_colour"]["real"]["value"] == 1.0
    distance = scores["frechet"]
    assert distance["network"] == "judge judge, 64 features"  # it lies in a folder of that name
    assert distance["measured"]["low"] < distance["measured"]["value"]
    assert distance["extrapolated"] is not None
    identity = document["identity"]
    assert set(identity["prompts"]) == {"training captions", "held-out combinations"}
    assert {"scipy", "torchmetrics"} <= set(identity["versions"])
    assert f"| prompts | training captions {identity['prompts']['training captions']}, " in page
    assert identity["seeds"] == "that of prompt k is k, from 0"
    assert "| extrapolation | points 15, smallest_subset half, seed 0 |" in page
    rates = [found["fps"] for found in document["sets"]]
    whole, halved = ({"least": fps, "mean": fps, "most": fps} for fps in (24.0, 12.0))  # stride 2
    assert rates == [{"generated": halved, "real": whole}] * 2 + [{}]
    assert len(kept(command)) == 8

    again = command | {"--output": tmp_path / "again.md", "--json": tmp_path / "again.json"}
    assert evaluate(protocol, again) == 0  # the same numbers to the byte, from the kept videos
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "results.json").read_bytes()
    assert (tmp_path / "again.md").read_bytes() == (tmp_path / "results.md").read_bytes()


def test_the_document_is_written_beside_the_videos_and_reference_is_an_alias(
    protocol, command, emoji, capsys
):
    """The options may come before the protocol."""
    renamed = without(command, "--data") | {"--reference": emoji}
    unplaced = without(renamed, "--json")
    words = [str(word) for pair in unplaced.items() for word in pair]
    assert run(["evaluate", *words, str(protocol)]) == 0
    document = command["--work"] / "tiny.json"
    assert capsys.readouterr().out.split() == [str(command["--output"]), str(document)]
    assert json.loads(document.read_text(encoding="utf-8"))["protocol"]["name"] == "tiny"
    assert "`magicvideo evaluate tiny.yaml --reference data " in command["--output"].read_text()
    capsys.readouterr()
    assert evaluate(protocol, command | renamed) == 2
    assert "--data and --reference name the same folder" in capsys.readouterr().err
    assert evaluate(protocol, without(command, "--data")) == 2
    assert "tiny needs --reference (or --data, which is the same)" in capsys.readouterr().err


def test_processes_share_the_videos_and_the_last_one_scores(
    protocol, command, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", "3")
    made = []
    for rank in ("2", "0"):
        monkeypatch.setenv("RANK", rank)
        assert evaluate(protocol, command) == 0
        made.append(kept(command))
        said = capsys.readouterr()
        assert f"{len(made[-1])} of 8 videos are made" in said.err
        assert said.out == ""
    assert list(map(len, made)) == [2, 5]
    assert not command["--json"].exists()
    assert not command["--output"].exists()
    monkeypatch.setenv("RANK", "1")
    assert evaluate(protocol, command) == 0
    assert capsys.readouterr().out.split() == [str(command["--output"]), str(command["--json"])]
    assert kept(command).items() >= made[1].items()  # no process made another's again

    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    alone = command | {"--json": tmp_path / "alone.json", "--work": tmp_path / "alone"}
    assert evaluate(protocol, alone) == 0
    assert (tmp_path / "alone.json").read_bytes() == command["--json"].read_bytes()


def test_if_two_processes_finish_together_only_one_scores(protocol, command, monkeypatch, capsys):
    command["--work"].mkdir()
    held = threading.Event()

    def score_elsewhere():
        """Hold the lock from before the last video is made until the results are written."""
        with FileLock(command["--work"] / "tiny.lock"):
            held.set()
            deadline = time.monotonic() + 300
            # counted by name: a file may be renamed between listing and reading its time
            while len([*command["--work"].rglob("*.npy")]) < 8 and time.monotonic() < deadline:
                time.sleep(0.02)
            command["--json"].write_text("written elsewhere", encoding="utf-8")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert evaluate(protocol, command) == 0  # leaves four videos to the other
    other = threading.Thread(target=score_elsewhere)
    other.start()
    held.wait()
    monkeypatch.setenv("RANK", "0")
    capsys.readouterr()
    assert evaluate(protocol, command) == 0
    other.join()
    said = capsys.readouterr()
    assert said.out == ""
    assert "Another process has scored the videos" in said.err
    assert command["--json"].read_text(encoding="utf-8") == "written elsewhere"
    assert not command["--output"].exists()

    # what lies there from before does not keep the same command from scoring again
    assert evaluate(protocol, command) == 0
    assert json.loads(command["--json"].read_text(encoding="utf-8"))["protocol"]["name"] == "tiny"


def test_steps_and_guidance_are_swept(protocol, command, capsys):
    command = without(command, "--json")
    assert evaluate(protocol, command) == 0  # its section and its document stay
    own = json.loads((command["--work"] / "tiny.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    values = [
        "--steps",
        "1",
        "--steps",
        "3",
        "--steps",
        "1",
        "--guidance",
        "1",
        "--guidance",
        "2.5",
    ]
    words = [str(word) for pair in command.items() for word in pair]
    assert run(["evaluate", str(protocol), *words, *values]) == 0

    named = [f"steps-{steps}-guidance-{scale}" for steps in (1, 3) for scale in ("1", "2.5")]
    documents = [command["--work"] / f"tiny-{name}.json" for name in named]
    assert capsys.readouterr().out.split() == list(map(str, [command["--output"], *documents]))
    folders = [command["--work"] / name for name in named]
    assert [len(list(folder.glob("*.npy"))) for folder in folders] == [8, 8, 8, 8]
    read = [json.loads(path.read_text(encoding="utf-8")) for path in documents]
    asked = [(1, 1.0), (1, 2.5), (3, 1.0), (3, 2.5)]
    for document, (steps, scale) in zip(read, asked, strict=True):
        changed = {"num_inference_steps": steps, "guidance_scale": scale}
        assert document["protocol"] == own["protocol"] | changed
        assert document["identity"] == own["identity"]
    distances = [
        score["measured"]["value"]
        for document in read
        for score in document["sets"][0]["scores"]
        if score["name"] == "frechet"
    ]
    assert len(set(distances)) == len(distances) == 4

    page = command["--output"].read_text(encoding="utf-8")
    assert page.index("\n## tiny\n") < page.index("\n## tiny by steps and guidance\n")
    assert "--steps 1 --steps 3 --steps 1 --guidance 1 --guidance 2.5`" in page
    swept = page[page.index("\n## tiny by steps and guidance\n") :]
    rows = [row for row in swept.splitlines() if row.startswith("| background colour, exact |")]
    labels = [f"steps {steps}, guidance {scale:g}" for steps, scale in asked]
    assert [row.split(" | ")[1] for row in rows] == [*labels, *labels]
    assert (
        swept.count("| PSNR in dB |") == swept.count("| PSNR in dB | all |") == 1
    )  # steps are nothing to the autoencoder

    assert run(["evaluate", "report", str(command["--work"])]) == 0
    report = (command["--work"] / "report.html").read_text(encoding="utf-8")
    assert "by num inference steps</text>" in report
    assert "training captions, guidance scale 2.5</text>" in report


def test_the_name_of_a_swept_document_contains_the_values(protocol, command, tmp_path):
    assert evaluate(protocol, command | {"--steps": 1}) == 0  # of one result it is the name
    read = json.loads(command["--json"].read_text(encoding="utf-8"))
    assert read["protocol"]["num_inference_steps"] == 1
    words = [str(word) for pair in command.items() for word in pair]
    assert run(["evaluate", str(protocol), *words, "--steps", "1", "--steps", "3"]) == 0
    names = {"results.json", "results-steps-1.json", "results-steps-3.json"}
    assert {path.name for path in tmp_path.glob("*.json")} == names
    assert (tmp_path / "results-steps-1.json").read_bytes() == command["--json"].read_bytes()


def test_a_judge_is_trained_saved_and_scored(emoji, tmp_path, capsys):
    out = tmp_path / "judge"
    words = ["--steps", "2", "--batch-size", "3", "--seed", "5"]
    assert run(["evaluate", "judge", str(emoji), str(out), *words]) == 0
    said = capsys.readouterr()
    assert "step 2/2, contrast" in said.err
    assert "real clips: skin tone" in said.out
    assert load_judge(out).config.tones == ("default", "dark", "light", "medium")
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["skin tone"]["count"] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["judge"]


def test_a_sheet_is_written(model, tmp_path):
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
        ({"--output": "nowhere/results.md"}, "nowhere is not a folder; create it first"),
        ({"--output": "."}, ". cannot be written"),
        ({"--json": "nowhere/results.json"}, "nowhere is not a folder; create it first"),
        ({"--steps": 0}, "The number of steps is 0; it must be an integer from 1 to 1000"),
        ({"--guidance": "nan"}, "The guidance scale is nan; it must be a number from 0 to 100"),
        ({"--guidance": 0}, "A guidance scale of 0 ignores the prompt; take one above 0"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(protocol, command, change, sentence, capsys):
    assert evaluate(protocol, command | change) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not command["--json"].exists()


def test_an_unknown_protocol_gives_an_error(command, capsys):
    assert evaluate("emoji-heldin", command) == 2
    said = capsys.readouterr().err
    assert "'emoji-heldin' is neither a protocol (emoji-heldout, msrvtt-2990, " in said


def test_a_protocol_with_too_many_prompts_is_refused(protocol, command, capsys):
    values = yaml.safe_load(protocol.read_text(encoding="utf-8"))
    values["sets"][1]["prompts"] = 4
    protocol.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert evaluate(protocol, command) == 2
    assert "asks for 4 clips" in capsys.readouterr().err


def test_an_existing_judge_is_not_overwritten(emoji, judge_folder, capsys):
    assert run(["evaluate", "judge", str(emoji), str(judge_folder)]) == 2
    assert "exists; choose a new folder" in capsys.readouterr().err


def test_the_command_imports_no_heavy_library():
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
