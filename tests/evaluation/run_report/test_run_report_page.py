"""The page of a real run and of hand-written results."""

import base64
import json
import re

import numpy as np
import pytest
from PIL import Image

from magicvideo.cli import run
from magicvideo.errors import UserError
from magicvideo.evaluation.run_report.page import as_html
from magicvideo.evaluation.run_report.results import flatten
from magicvideo.evaluation.run_report.run import read_run


def results(steps, guidance, value, **more):
    """A document as `magicvideo evaluate PROTOCOL` writes it, in what a report reads."""
    return {
        "protocol": {
            "name": "by-hand",
            "about": "Numbers <made> by hand.",
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "pool_size": 17,
        },
        "identity": {"model": "c0ffee", "versions": {"torch": "2.0"}},
        "sets": [
            {
                "name": "some captions",
                "scores": [
                    {
                        "name": "frechet_distance",
                        "measured": {"value": value, "count": 61, "low": 0.8 * value, "high": 3},
                        "real": {"value": 0.0625, "count": 61, "low": None, "high": None},
                        "chance": {"value": 5.5, "count": 61, "low": None, "high": None},
                        "chance_is": "a still background",
                        "met": False,
                    },
                    {"name": "undone", "measured": {"value": None, "count": 0}},
                ],
            }
        ],
        **more,
    }


def write(path, document):
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(trained):
    """The page of a whole run without results."""
    return as_html(read_run(trained, []), 2)


def plots(text):
    return re.findall(r"<svg.*?</svg>", text, re.DOTALL)


def test_every_stage_has_its_curves_and_samples(page, trained):
    stages = re.findall(r'<h2 id="stage-(\w+)">', page)
    assert stages == ["autoencoder", "clip", "image"]
    for stage, plot in zip(stages, plots(page), strict=True):
        log = (trained / stage / "log.jsonl").read_text().splitlines()
        for name in json.loads(log[0]).keys() - {"step", "seconds"}:
            assert f">{name.replace('_', ' ')}</text>" in plot
        assert ">samples a second</text>" in plot
    sheets = sorted((trained / "image" / "samples").iterdir())
    assert len(sheets) == 2
    for sheet in sheets:
        assert base64.b64encode(sheet.read_bytes()).decode() in page
        assert f'alt="{sheet.stem}"' in page


def test_numbers_of_the_log_are_there(page, trained):
    lines = (trained / "image" / "log.jsonl").read_text().splitlines()
    first, last = (json.loads(lines[place])["loss"] for place in (0, -1))
    image = page[page.index('id="stage-image"') :]
    row = re.search(r'<th scope="row">loss</th><td>(.*?)</td><td>(.*?)</td>', image)
    assert row.groups() == (f"{first:.4g}", f"{last:.4g}")
    assert '<th scope="row">steps</th><td>4 of 4</td>' in image
    assert '<th scope="row">learning_rate</th><td>0.001</td>' in image
    assert '<th scope="row">unet.block_out_channels</th><td>[8, 12]</td>' in page


def test_the_page_is_self_contained(page):
    loads = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert loads
    assert [load[:30] for load in loads if not load.startswith(("data:", "#"))] == []
    assert set(re.findall(r"https?://[\w./]+", page)) <= {
        "http://www.w3.org/1999/xlink",  # names of what SVG is, which nothing loads
        "http://www.w3.org/2000/svg",
    }
    assert not re.search(r"@import|url\((?!#)|<script", page)


def test_the_same_run_gives_the_same_page(page, trained):
    assert as_html(read_run(trained, []), 2) == page


def test_marks_of_svg_stand_once_for_each_shape(page):
    names = re.findall(r'<g id="', page)
    assert names == []
    for name in set(re.findall(r'href="#(?!stage)([^"]+)"', page)):
        assert f'id="{name}"' in page


def test_results_of_several_files_are_tables_and_sweeps(tmp_path, capsys):
    for steps, value in ((5, 2.5), (20, 1.375)):
        write(tmp_path / f"steps-{steps}.json", results(steps, 4.0, value))
    write(tmp_path / "other.json", {"protocol": "of something else"})
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "sheet.png")
    extra = write(tmp_path.parent / "guided.json", results(20, 7.5, 2.0))
    assert run(["evaluate", "report", str(tmp_path), "--results", str(extra)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    extra.unlink()
    for file in ("steps-5.json", "steps-20.json", "guided.json"):
        assert f"<h3>by-hand ({file})</h3>" in text
    assert "<td>1.375 [1.1, 3]</td><td>0.0625 [61]</td><td>5.5 (a still background)</td>" in text
    assert "<td>not met</td>" in text
    assert "<td>not defined</td>" in text
    assert "Numbers &lt;made&gt; by hand." in text
    assert '<th scope="row">depends on: versions.torch</th><td>2.0</td>' in text
    assert 'alt="sheet"' in text
    scores, by_steps, by_guidance = plots(text)
    assert scores.count(">some captions</text>") == 3
    assert "frechet distance by num inference steps</text>" in by_steps
    assert "some captions, guidance scale 7.5</text>" in by_steps
    assert "frechet distance by guidance scale</text>" in by_guidance
    assert "undone" not in scores


def test_two_schedulers_are_two_lines(lines):
    documents = [results(steps, 4.0, steps / 7) for steps in (20, 5, 20, 5)]
    for document, scheduler in zip(documents, ("ddim", "ddim", "dpm++", "dpm++"), strict=True):
        document["protocol"]["scheduler"] = scheduler
    assert lines(documents) == {
        "some captions, scheduler ddim": [(5, 5 / 7), (20, 20 / 7)],
        "some captions, scheduler dpm++": [(5, 5 / 7), (20, 20 / 7)],
    }


def test_two_models_are_two_lines(lines):
    documents = [results(steps, 4.0, steps / 7) for steps in (5, 20, 5)]
    documents[2]["identity"] = {"model": "decaf" + "0" * 59, "versions": {"torch": "2.0"}}
    assert lines(documents) == {
        "some captions, model hash c0ffee": [(5, 5 / 7), (20, 20 / 7)],
        f"some captions, model hash decaf{'0' * 19}": [(5, 5 / 7)],
    }


def test_two_protocols_are_two_lines_and_two_versions_of_torch_are_one(lines):
    documents = [results(steps, 4.0, steps / 7) for steps in (5, 20, 5)]
    documents[1]["identity"]["versions"] = {"torch": "2.1"}
    documents[1]["protocol"]["about"] = "Put in other words."
    documents[2]["protocol"]["name"] = "another"
    assert lines(documents) == {
        "some captions, protocol by-hand": [(5, 5 / 7), (20, 20 / 7)],
        "some captions, protocol another": [(5, 5 / 7)],
    }


def test_benchmarks_that_differ_in_the_swept_setting_are_one_line(lines):
    documents = []
    for steps in (20, 5, 10):
        document = results(None, None, steps / 7)
        (score, _) = document.pop("sets")[0]["scores"]
        document["protocol"]["generation"] = {"num_inference_steps": steps, "guidance_scale": None}
        real = {"pixels_sha256": "ba5e"}
        documents.append(document | {"model": "tiny", "scores": [score], "real": real})
    documents[2]["real"] = {"pixels_sha256": "facade"}
    assert lines(documents) == {
        "tiny, data hash ba5e": [(5, 5 / 7), (20, 20 / 7)],
        "tiny, data hash facade": [(10, 10 / 7)],
    }


def test_a_benchmark_has_one_set(tmp_path):
    document = results(None, None, 700.0)
    (score, _) = document.pop("sets")[0]["scores"]
    document["protocol"]["generation"] = {"num_inference_steps": 33, "guidance_scale": 4.5}
    path = tmp_path / "benchmark.json"
    scores = [score | {"name": "FVD", "network": "I3D, logits"}]
    write(path, document | {"model": "tiny", "scores": scores})
    found = read_run(tmp_path, []).results[0]
    assert (found.protocol.num_inference_steps, found.protocol.guidance_scale) == (33, 4.5)
    assert [(part.name, part.scores[0].name) for part in found.sets] == [
        ("tiny", "FVD, I3D, logits")
    ]
    assert found.sets[0].scores[0].measured.high == 3


def test_a_truncated_log_line_is_skipped(tmp_path):
    (tmp_path / "image").mkdir()
    lines = [
        '{"step": 1, "loss": 2.5}',
        '{"step": 2, "loss": NaN, "found": true}',
        '{"step": 3, "lo',
    ]
    (tmp_path / "image" / "log.jsonl").write_text("\n".join(lines))
    (stage,) = read_run(tmp_path, []).stages
    assert stage.series["loss"].values.tolist() == [2.5]
    assert stage.steps == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "nowhere is not a folder; name the folder of a run"),
        (["{empty}"], "holds no run and no results; name a folder in which `magicvideo train`"),
        (["{empty}", "--results", "nowhere.json"], "nowhere.json cannot be read"),
        (["{empty}", "--results", "{wrong}"], "wrong.json holds no results of an evaluation"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(words, sentence, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    wrong = write(tmp_path / "wrong.json", [1, 2])
    filled = [word.format(empty=tmp_path / "empty", wrong=wrong) for word in words]
    assert run(["evaluate", "report", *filled]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_recipe_is_named(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(UserError, match=r"recipe\.json is damaged"):
        read_run(tmp_path, [])


def test_a_sheet_that_is_not_a_png_is_named(tmp_path):
    write(tmp_path / "results.json", results(5, 4.0, 1.0))
    (tmp_path / "sheet.png").write_bytes(b"<svg onload=alert(1)>")
    with pytest.raises(UserError, match=r"sheet\.png is not a PNG"):
        as_html(read_run(tmp_path, []), 3)


def test_nested_settings_are_flattened():
    nested = {"a": 1, "b": {"c": {"d": None}, "e": [2, 3]}, "f": "text"}
    assert flatten(nested) == {"a": "1", "b.c.d": "null", "b.e": "[2, 3]", "f": "text"}
