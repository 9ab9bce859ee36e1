"""Benchmarks through the command line, on a tiny model, tiny networks and seven tiny videos."""

import json
import shutil
from itertools import combinations

import pytest

from magicvideo.atomic_io import hash_files, sha256, write_checksums
from magicvideo.cli import run
from magicvideo.evaluation.benchmark.prompts import (
    prompts_hash,
    read_clip_pixels,
    reference_clips,
    sample_prompts,
)
from magicvideo.evaluation.benchmark.protocol import Benchmark

CLIP_FILES = ["*.json", "*.txt", "model.safetensors"]


@pytest.fixture
def command(shapes, tiny_model, tmp_path):
    return {
        "--reference": shapes,
        "--model": tiny_model,
        "--output": tmp_path / "results.md",
        "--json": tmp_path / "results.json",
        "--work": tmp_path / "videos",
    }


def evaluate(first, options, *flags):
    words = [str(word) for pair in options.items() for word in pair]
    return run(["evaluate", str(first), *words, *flags])


def read(command):
    page = command["--output"].read_text(encoding="utf-8")
    return page, json.loads(command["--json"].read_text(encoding="utf-8"))


def test_a_benchmark_becomes_a_row_beside_published_ones(values, write, command, networks):
    values["statistics"]["extrapolate"] = True
    given = {f"--{name}": path for name, path in networks.items()}
    assert evaluate(write(values), command | given) == 0
    page, document = read(command)
    scores = {score["name"]: score for score in document["scores"]}
    assert {"FVD", "KVD", "precision, videos", "Inception Score, frames"} <= set(scores)
    # too few features for the networks of papers, so their names are not used
    assert {"Frechet distance, frames", "Frechet distance, CLIP's frames"} <= set(scores)
    assert not {"FID", "CLIPSIM", "CLIP-FID"} & set(scores)
    fvd = scores["FVD"]
    assert fvd["network"] == "i3d.pt, 400 logits before the softmax"
    assert fvd["measured"]["low"] < fvd["measured"]["value"] < fvd["measured"]["high"]
    assert (fvd["measured"]["count"], fvd["real"]["count"]) == (4, 3)
    assert fvd["extrapolated"] is not None
    assert scores["all attributes as asked"]["real"]["value"] == 1
    assert document["protocol"] == values | {
        "prompts": values["prompts"] | {"wording": "{name}", "sentences": {}},
        "generation": {
            "num_frames": None,
            "scheduler": None,
            "guidance_scale": None,
            "guidance_stop": None,
        }
        | values["generation"],
    }
    assert document["identity"]["I3D, i3d.pt"] == sha256(networks["i3d"])
    assert document["identity"]["CLIP, clip"] == hash_files(networks["clip"], CLIP_FILES)
    assert document["generated"]["settings"]["num_inference_steps"] == 1
    assert document["generated"]["seeds"] == "that of prompt k is k, from 0"
    assert document["generated"]["settings"]["fps"] == 8  # 24 after two inserted frames
    assert document["real"]["fps"] == {"least": 24.0, "mean": 24.0, "most": 24.0}
    assert document["real"]["container"] == ".mp4"
    assert document["real"]["prepared_side"] is None
    assert document["caveats"] == []
    rows = page.splitlines()
    own = next(row for row in rows if row.startswith("| **tiny** | - | - |"))
    assert f"| **{fvd['measured']['value']:.2f} [" in own
    assert "measured here, 4 videos" in own
    assert any(row.startswith("| MagicVideo v2 | 36.50 | - | 998.00 | 0.2840 |") for row in rows)
    assert any(row.startswith("| PYoCo | 22.14 | 9.73 | - | - |") for row in rows)
    assert "Not the whole protocol" not in page
    assert len(list(command["--work"].glob("*.npy"))) == 4


def test_what_scores_depend_on_is_in_the_document(values, write, command, networks, shapes):
    given = {f"--{name}": path for name, path in networks.items()}
    assert evaluate(write(values), command | given) == 0
    page, document = read(command)
    assert document["networks"] == {
        "I3D": {
            "name": "i3d.pt",
            "features": "400 logits before the softmax",
            "resizing": "all of a frame to 224 x 224, bilinear, no antialiasing, in floats",
            "sha256": sha256(networks["i3d"]),
        },
        "Inception": {
            "name": "inception.pt",
            "features": "6 pooled features",
            "resizing": "by the program itself",
            "sha256": sha256(networks["inception"]),
        },
        "CLIP": {
            "name": "clip",
            "features": "9 projected features of its image tower",
            "resizing": "all of a frame to 16 x 16, torch's bicubic with antialiasing, in floats",
            "sha256": hash_files(networks["clip"], CLIP_FILES),
        },
    }
    method = document["method"]
    assert method["kernel"] == {
        "degree": 3,
        "gamma": "1 / width",
        "offset": 1,
        "unbiased": True,
        "left_out": "pairs within one clip, such as of its frames for KID",
        "subsets": "none: all clips at once",
    }
    assert method["intervals"]["means"]["resamples"] == 2000
    assert method["intervals"]["confidence"] == 0.95
    assert method["extrapolation"] == {"points": 15, "smallest_subset": "half"}
    captions = [path.read_text(encoding="utf-8").strip() for path in shapes.glob("*.txt")]
    for count, name in ((4, "generated"), (6, "real")):
        assert document[name]["count"] == count
        assert document[name]["fps"] == {"least": 24.0, "mean": 24.0, "most": 24.0}
    asked = {prompts_hash(list(some)) for some in combinations(captions, 4)}
    assert document["generated"]["prompts_sha256"] in asked
    known = {prompts_hash(list(some)) for some in combinations(captions, 6)}
    assert document["real"]["captions_sha256"] in known
    assert "4 videos of tiny (from 8-bit arrays) at 24 to 24 frames per second against" in page
    assert "means 2000 times and the rest 2 times" in page


def test_processes_share_the_videos_and_the_last_one_scores(
    values, write, command, monkeypatch, capsys
):
    path = write(values)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert evaluate(path, command) == 0
    assert "2 of 4 videos are made" in capsys.readouterr().err
    assert not command["--json"].exists()
    monkeypatch.setenv("RANK", "0")
    assert evaluate(path, command) == 0
    page, document = read(command)
    networks = {score["network"] for score in document["scores"]}
    assert networks == {"emoji judge, 64 features", "emoji judge", "none"}
    resizing = "all of a frame to 64 x 64, bilinear with antialiasing, in floats"
    assert document["networks"] == {
        "judge": {"name": "emoji judge", "features": "64 features", "resizing": resizing}
    }
    assert "emoji judge" in document["identity"]
    assert not {"FVD", "CLIPSIM"} & {score["name"] for score in document["scores"]}
    assert "They are not FVD" in page


def test_steps_and_guidance_are_swept(values, write, command, networks, shapes, capsys):
    del command["--json"], command["--reference"]
    command |= {"--data": shapes, "--i3d": networks["i3d"], "--guidance": 2.5}
    assert evaluate(write(values), command, "--steps", "2", "--steps", "3") == 0
    documents = [command["--work"] / f"tiny-bench-steps-{n}-guidance-2.5.json" for n in (2, 3)]
    assert capsys.readouterr().out.split() == list(map(str, [command["--output"], *documents]))
    distances = []
    for steps, path in zip((2, 3), documents, strict=True):
        document = json.loads(path.read_text(encoding="utf-8"))
        changed = {"num_inference_steps": steps, "guidance_scale": 2.5}
        assert document["protocol"]["generation"].items() >= changed.items()
        assert document["generated"]["settings"].items() >= changed.items()
        distances += [one for one in document["scores"] if one["name"] == "FVD"]
        folder = command["--work"] / f"steps-{steps}-guidance-2.5"
        assert len(list(folder.glob("*.npy"))) == 4
    first, second = (f"{one['measured']['value']:.2f}" for one in distances)
    assert first != second
    assert distances[0]["real"] == distances[1]["real"]
    page = command["--output"].read_text(encoding="utf-8")
    assert "## tiny-bench by steps and guidance\n" in page
    network = "i3d.pt, 400 logits before the softmax"
    assert f"| FVD | steps 2, guidance 2.5 | {network} | 4 | **{first} [" in page
    assert f"| FVD | steps 3, guidance 2.5 | {network} | 4 | **{second} [" in page
    assert f"| **tiny, steps 3, guidance 2.5** | - | - | **{second} [" in page


def test_finished_videos_are_scored_and_fewer_are_marked(
    values, write, command, shapes, tmp_path, write_video
):
    made, captions = tmp_path / "made", []
    made.mkdir()
    values["prompts"] = {"kind": "class_mix", "split": "train", "count": 7}
    for number in (1, 4, 5):
        source = shapes / f"clip{number:03d}.mp4"
        caption = source.with_suffix(".txt").read_text(encoding="utf-8").strip()
        shutil.copy(source, made / f"{caption}-0.mp4")
        captions.append(caption)
    write_video(made / f"{caption}-0.mp4", read_clip_pixels(source).pixels, fps=12, crf="0")
    values["reference"]["count"] = 8
    command = command | {"--generated": made}
    del command["--model"]
    assert evaluate(write(values), command) == 2
    assert evaluate(write(values), command, "--allow-fewer") == 0
    page, document = read(command)
    assert document["caveats"] == ["3 of 7 videos", "7 of 8 real clips"]  # a part of the prompts
    scores = {score["name"]: score["measured"]["value"] for score in document["scores"]}
    assert scores["all attributes as asked"] == 1
    assert scores["precision, videos"] == 1  # they are real clips
    assert "**Not the whole protocol:** 3 of 7 videos; 7 of 8 real clips" in page
    generated, real = document["generated"], document["real"]
    assert generated["container"] == ".mp4"
    assert "seeds" not in generated  # of videos from elsewhere they are not known
    assert generated["fps"] == {"least": 12.0, "mean": 20.0, "most": 24.0}
    assert generated["classes"] == dict.fromkeys(sorted(captions), 1)
    assert set(captions) < set(real["classes"])
    assert sum(real["classes"].values()) == 7
    assert generated["prompts_sha256"] == prompts_hash(captions)
    assert generated["asked_prompts_sha256"] == real["captions_sha256"]  # one clip a class


@pytest.mark.parametrize(
    ("names", "caveats"),
    [
        (["{0}-0", "{1}-0"], ["2 of 4 videos"]),
        (["{0}-0", "a made-up thing-0"], ["2 of 4 videos", "prompts of its own"]),
        (["{0}-0", "{0}-1"], ["2 of 4 videos", "prompts of its own"]),  # it is asked for once
    ],
)
def test_prompts_outside_the_protocol_are_marked(
    names, caveats, values, write, command, shapes, tmp_path
):
    values["prompts"] = {"kind": "class_mix", "split": "train", "count": 4}
    benchmark = Benchmark.model_validate(values)
    captions = [wish.prompt for wish in sample_prompts(benchmark, reference_clips(shapes, "train"))]
    made = tmp_path / "made"
    made.mkdir()
    for name in names:
        shutil.copy(shapes / "clip000.mp4", made / f"{name.format(*captions)}.mp4")
    del command["--model"]
    assert evaluate(write(values), command | {"--generated": made}, "--allow-fewer") == 0
    page, document = read(command)
    assert document["caveats"] == caveats
    assert f"**Not the whole protocol:** {'; '.join(caveats)}." in page


def test_real_clips_that_were_prepared_are_marked(values, write, command, prepared):
    values["preprocessing"]["side"] = 24
    assert evaluate(write(values), command | {"--reference": prepared}) == 0
    page, document = read(command)
    assert document["caveats"] == ["real clips were prepared at 24 pixels"]
    assert document["real"]["container"] == ".npy"
    assert document["real"]["prepared_side"] == 24
    assert "**Not the whole protocol:** real clips were prepared at 24 pixels." in page
    assert "measured here, 4 videos; real clips were prepared at 24 pixels |" in page
    assert "against 6 real clips of data (from .npy) at 24 to 24 frames per second." in page


def test_videos_for_vbench(tiny_model, tmp_path, capsys):
    prompts, folder = tmp_path / "prompts.txt", tmp_path / "vbench"
    prompts.write_text("a cat\na dog\n", encoding="utf-8")
    words = [str(prompts), str(folder), "--model", str(tiny_model), "--per-prompt", "1"]
    assert run(["evaluate", "vbench", *words]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(before) == ["a cat-0.mp4", "a dog-0.mp4"]
    assert run(["evaluate", "vbench", *words]) == 0  # nothing is made again
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    prompts.write_text("up/down\n", encoding="utf-8")
    assert run(["evaluate", "vbench", *words]) == 2
    assert "cannot be the name of a file" in capsys.readouterr().err


def test_videos_of_another_model_or_seed_are_no_part_of_an_export(tiny_model, tmp_path, capsys):
    prompts, folder, other = tmp_path / "prompts.txt", tmp_path / "vbench", tmp_path / "other"
    prompts.write_text("a cat\na dog\n", encoding="utf-8")
    shutil.copytree(tiny_model, other)
    (other / "notes.txt").write_text("of another model", encoding="utf-8")
    write_checksums(other)

    def export(model, *words):
        words = [str(prompts), str(folder), "--model", str(model), "--per-prompt", "1", *words]
        return run(["evaluate", "vbench", *words]), capsys.readouterr().err

    assert export(tiny_model)[0] == 0
    (folder / "a cat-0.mp4").unlink()
    for words, sentence in (
        ([tiny_model, "--seed", "5"], "a dog-0.mp4 was made in another way (seed '1' in place of "),
        ([other], "a dog-0.mp4 was made in another way (model '"),
    ):
        code, said = export(*words)
        assert (code, sentence in said) == (2, True), said
        assert "delete it, and it is made anew, or name another folder" in said
        assert not (folder / "a cat-0.mp4").exists()  # refused before anything is made


def test_a_video_of_unknown_origin_is_no_part_of_an_export(tiny_model, shapes, tmp_path, capsys):
    prompts, folder = tmp_path / "prompts.txt", tmp_path / "vbench"
    prompts.write_text("a cat\n", encoding="utf-8")
    folder.mkdir()
    shutil.copy(shapes / "clip000.mp4", folder / "a cat-0.mp4")
    words = [str(prompts), str(folder), "--model", str(tiny_model), "--per-prompt", "1"]
    assert run(["evaluate", "vbench", *words]) == 2
    assert "a cat-0.mp4 does not tell what made it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--reference": None}, "needs --reference"),
        ({"--reference": "nowhere"}, "nowhere is not a folder"),
        ({"--data": "here"}, "--data and --reference name the same folder"),
        ({"--generated": "here"}, "takes the place of a model"),
        ({"--samples": "4"}, "add --allow-fewer"),
        ({"--i3d": "nowhere.pt"}, "nowhere.pt is not a file"),
        ({"--i3d": "hub:one"}, "hub:one is not a Hub id"),
        ({"--clip": "nowhere"}, "nowhere has no model.safetensors"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(values, write, command, change, sentence, capsys):
    options = {name: value for name, value in (command | change).items() if value is not None}
    assert evaluate(write(values), options) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not command["--json"].exists()


def test_finished_videos_have_their_steps(values, write, command, tmp_path, capsys):
    del command["--model"]
    assert evaluate(write(values), command | {"--generated": tmp_path, "--steps": 2}) == 2
    assert "leave --steps and --guidance out" in capsys.readouterr().err


def test_too_few_real_clips_are_refused_before_anything_is_made(values, write, command, capsys):
    values["reference"]["count"] = 8
    assert evaluate(write(values), command) == 2
    assert "tiny-bench wants 8 real clips, and there are 7" in capsys.readouterr().err
    assert not command["--work"].exists()


def test_emoji_have_no_use_for_networks_of_papers(capsys):
    assert run(["evaluate", "emoji-heldout", "--i3d", "x.pt"]) == 2
    assert "--i3d is for benchmarks" in capsys.readouterr().err
    assert run(["evaluate", "emoji-heldout"]) == 2
    assert "emoji-heldout needs --reference (or --data" in capsys.readouterr().err
