"""The ComfyUI nodes against a small stand-in for ComfyUI's interface."""

import asyncio
import importlib.util
import inspect
import json
import sys
from pathlib import Path

import comfy_stub
import pytest
import torch

from magicvideo import MagicVideoPipeline
from magicvideo.errors import UserError
from magicvideo.pipelines.request import GenerationSettings

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
COMMON = {
    "steps": 2,
    "guidance": -1.0,
    "frames": 0,
    "fps": 0.0,
    "negative_prompt": "",
    "motion": -5.0,
}


@pytest.fixture
def switch(monkeypatch):
    return comfy_stub.install(monkeypatch)


@pytest.fixture
def nodes(switch, monkeypatch):
    switch.cancel = False
    spec = importlib.util.spec_from_file_location(
        "magicvideo_nodes", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "magicvideo_nodes", package)
    spec.loader.exec_module(package)
    monkeypatch.setitem(
        sys.modules, "magicvideo_nodes.nodes", sys.modules["magicvideo_nodes.nodes"]
    )
    extension = asyncio.run(package.comfy_entrypoint())
    assert isinstance(extension, comfy_stub.ComfyExtension)
    found = asyncio.run(extension.get_node_list())
    return {node.define_schema().node_id: node for node in found}


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return MagicVideoPipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def reference(pipeline):
    settings = GenerationSettings(num_inference_steps=2)
    (request,) = pipeline.build_requests(["a cat"], [5], settings, None)
    return request, pipeline.generate(request)


def as_images(video):
    return ((video.frames.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1)


def test_schemas_fit_their_functions(nodes):
    assert len(nodes) == 8
    for node in nodes.values():
        schema = node.define_schema()
        ids = [socket.id for socket in schema.inputs]
        assert len(set(ids)) == len(ids)
        parameters = inspect.signature(node.execute).parameters
        assert set(ids) <= set(parameters)
        optional = {socket.id for socket in schema.inputs if socket.options.get("optional")}
        needed = {name for name, value in parameters.items() if value.default is value.empty}
        assert needed <= set(ids) - optional
        assert {parameters[name].default for name in optional} <= {None}
        assert schema.category == "magicvideo"
        assert all(socket.display_name for socket in schema.outputs)
        for socket in schema.inputs:
            if "default" in socket.options and socket.io_type in ("INT", "FLOAT"):
                assert socket.options["min"] <= socket.options["default"] <= socket.options["max"]


def test_one_node_and_single_stage_nodes_give_the_frames_of_the_pipeline(
    nodes, tiny_model, reference
):
    request, expected = reference
    (model,) = nodes["MagicVideoLoadModel"].execute(str(tiny_model), "auto")
    video, images = nodes["MagicVideoGenerate"].execute(model, "a cat", 5, **COMMON)
    torch.testing.assert_close(images, as_images(expected), rtol=0, atol=0)
    components = video.get_components()
    assert components.frame_rate == request.video_fps
    assert components.images is images
    (keys,) = nodes["MagicVideoTextToKeyframes"].execute(model, "a cat", 5, **COMMON)
    assert keys.latents.shape[1] == request.num_frames
    (frames,) = nodes["MagicVideoInterpolate"].execute(model, keys, 0)
    small, _, fps = nodes["MagicVideoDecode"].execute(model, frames)
    assert (len(small), fps) == (request.video_frames, request.video_fps)
    large, large_video = nodes["MagicVideoUpscale"].execute(model, small, frames, 0)
    assert large.shape[1] == small.shape[1] * model.capabilities.upscale_factor
    torch.testing.assert_close(large, as_images(expected), rtol=0, atol=2e-5)
    assert large_video.get_components().frame_rate == request.video_fps


def test_an_image_changes_the_key_frames(nodes, pipeline):
    node = nodes["MagicVideoImageToKeyframes"]
    pictures = [torch.full((1, 9, 7, 3), shade) for shade in (0.1, 0.9)]
    first, again, other = (
        node.execute(pipeline, "", 5, image=picture, **COMMON)[0].latents
        for picture in (pictures[0], pictures[0], pictures[1])
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    whole = nodes["MagicVideoGenerate"]
    _, plain = whole.execute(pipeline, "a cat", 5, **COMMON)
    _, begun = whole.execute(pipeline, "a cat", 5, **COMMON, image=pictures[0])
    assert begun.shape == plain.shape
    assert not torch.equal(begun, plain)


def test_progress_is_shown_and_cancel_stops_sampling(nodes, pipeline, switch):
    node = nodes["MagicVideoTextToKeyframes"]
    node.execute(pipeline, "a cat", 5, **COMMON)
    (bar,) = comfy_stub.ProgressBar.made
    assert [value for value, _ in bar.values] == [0, 1, 2]
    switch.cancel = True
    with pytest.raises(comfy_stub.InterruptedByUserError):
        node.execute(pipeline, "a cat", 5, **COMMON)


def test_frames_cannot_be_interpolated_twice(nodes, pipeline):
    (keys,) = nodes["MagicVideoTextToKeyframes"].execute(pipeline, "a cat", 5, **COMMON)
    (frames,) = nodes["MagicVideoInterpolate"].execute(pipeline, keys, 1)
    with pytest.raises(UserError, match="already interpolated"):
        nodes["MagicVideoInterpolate"].execute(pipeline, frames, 1)


def test_a_recipe_is_read(nodes, reference, tmp_path):
    _, video = reference
    video.save(tmp_path / "cat.webp")
    outputs = nodes["MagicVideoReadRecipe"].execute(str(tmp_path / "cat.webp"))
    assert outputs[0] == "a cat"
    assert outputs[2:4] == (5, 2)
    with pytest.raises(UserError, match="does not exist"):
        nodes["MagicVideoReadRecipe"].execute(str(tmp_path / "none.mp4"))


@pytest.mark.parametrize("name", ["generate.json", "single_stages.json"])
def test_example_workflows_fit_the_schemas(nodes, name):
    workflow = json.loads((FOLDER / "example_workflows" / name).read_text(encoding="utf-8"))
    schemas = {node_id: node.define_schema() for node_id, node in nodes.items()}
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for node in workflow["nodes"]:
        if node["type"] not in schemas:
            assert node["type"] in ("SaveVideo", "PreviewImage")
            continue
        schema = schemas[node["type"]]
        linked = [socket for socket in schema.inputs if not socket.is_widget]
        assert [(s["name"], s["type"]) for s in node["inputs"]] == [
            (s.id, s.io_type) for s in linked
        ]
        assert [(s["name"], s["type"]) for s in node["outputs"]] == [
            (s.display_name, s.io_type) for s in schema.outputs
        ]
        widgets = [socket for socket in schema.inputs if socket.is_widget]
        after_generate = sum("control_after_generate" in socket.options for socket in widgets)
        assert len(node["widgets_values"]) == len(widgets) + after_generate
    for number, source, slot, target, place, kind in workflow["links"]:
        assert by_id[source]["outputs"][slot]["type"] == kind
        assert number in by_id[source]["outputs"][slot]["links"]
        assert by_id[target]["inputs"][place]["link"] == number
