"""Settings, lists and headers from untrusted files are read, or refused in a sentence."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from hostile_inputs import FUZZ, changed_bytes, changed_json, safely
from hypothesis import given
from hypothesis import strategies as st
from plain_request import PLAIN
from safetensors.torch import save

from magicvideo.data.shards.index import read_index
from magicvideo.data.sources.registry import open_source
from magicvideo.pipelines.model_folder import read_json, read_safetensors_header
from magicvideo.pipelines.request import request_from_json
from magicvideo.pipelines.video import read_latents
from magicvideo.training.recipe import load_yaml, parse_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("documents")


@FUZZ
@given(changed_json(json.loads(PLAIN.to_json())))
def test_requests_in_files(folder, text):
    with safely(folder):
        request_from_json(text)


TENSORS = save({"latents": torch.zeros(1, 2, 4, 3, 5)}, {"request": PLAIN.to_json()})


@FUZZ
@given(changed_bytes(TENSORS))
def test_safetensors(folder, content):
    path = folder / "a.mp4.latents"
    path.write_bytes(content)
    for read in (read_safetensors_header, read_latents):
        with safely(folder):
            read(path)


HEADER = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {}}


@FUZZ
@given(changed_json(HEADER))
def test_safetensors_headers(folder, text):
    header = text.encode("utf-8", "surrogatepass")
    path = folder / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    with safely(folder):
        read_safetensors_header(path)


@FUZZ
@given(st.one_of(changed_json({"a": [1, {"b": None}]}), st.text(max_size=60)))
def test_configs(folder, text):
    path = folder / "config.json"
    path.write_text(text, encoding="utf-8", errors="replace")
    with safely(folder):
        read_json(path)


INDEX = {
    "info": {
        "format": 2,
        "source": "folder",
        "origin": "/data",
        "height": 32,
        "width": 32,
        "fit": "crop",
        "frame_step": 1,
        "licence": "",
        "split_rule": "none",
        "variants": 2,
        "clips_per_shard": 4,
        "parts": {"vae": "ab"},
        "device": "cpu",
        "threads": 1,
    },
    "shards": [
        {
            "file": "train-000000.tar",
            "split": "train",
            "bytes": 10240,
            "sha256": "ab" * 32,
            "clips": 1,
            "samples": 2,
        }
    ],
}


@FUZZ
@given(changed_json(INDEX))
def test_shard_indexes(folder, text):
    (folder / "index.json").write_text(text, encoding="utf-8", errors="replace")
    with safely(folder):
        for shard in read_index(folder).shards:
            assert (folder / shard.file).parent == folder


RECIPE = (Path(__file__).parents[2] / "recipes" / "emoji.yaml").read_bytes()


@FUZZ
@given(changed_json(yaml.safe_load(RECIPE)))
def test_recipes(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with safely(folder):
        parse_recipe(load_yaml(path), str(path))


@FUZZ
@given(changed_bytes(RECIPE))
def test_recipes_in_any_bytes(folder, content):
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    with safely(folder):
        parse_recipe(load_yaml(path), str(path))


LINE = {"file_name": "sub/a.mp4", "text": "a fox", "split": "train", "other": None}


@FUZZ
@given(st.sampled_from(["jsonl", "csv"]), changed_json(LINE), st.binary(max_size=40))
def test_metadata(folder, kind, text, more):
    data = folder / "data"
    (data / "sub").mkdir(parents=True, exist_ok=True)
    (data / "sub" / "a.mp4").write_bytes(b"x")
    for old in data.glob("metadata.*"):
        old.unlink()
    (data / f"metadata.{kind}").write_bytes(text.encode("utf-8", "replace") + b"\n" + more)
    with safely(folder):
        for clip in open_source(data).clips:
            assert data.resolve() in clip.path.resolve().parents
