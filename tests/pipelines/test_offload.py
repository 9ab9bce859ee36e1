"""A model that loads networks per stage: the same videos, one stage in memory at a time."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import frames_of

from magicvideo.atomic_io import write_checksums
from magicvideo.errors import UserError
from magicvideo.media.video_io import VideoStream
from magicvideo.pipelines.component_loading import load_component
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.pipelines.video_to_video import interpolate_video, upscale_video

NETWORKS = (
    "vae",
    "text_encoder",
    "image_encoder",
    "image_conditioner",
    "unet",
    "interpolator",
    "upscaler",
)


@pytest.fixture
def stagewise(tiny_model):
    return MagicVideoPipeline.from_pretrained(tiny_model, offload_device="cpu")


def in_memory(model: MagicVideoPipeline) -> set[str]:
    return {name for name in NETWORKS if not next(getattr(model, name).parameters()).is_meta}


def test_no_weights_are_in_memory_before_and_after_and_the_video_is_the_same(
    stagewise, pipeline, moving_square
):
    assert in_memory(stagewise) == set()
    assert (stagewise.device, stagewise.dtype) == (torch.device("cpu"), torch.float32)
    assert stagewise.capabilities == pipeline.capabilities
    models = (stagewise, pipeline)
    video, whole = (frames_of(m, "a cat", seed=3, num_inference_steps=2) for m in models)
    assert torch.equal(video, whole)
    assert in_memory(stagewise) == set()
    for run, held in (
        (interpolate_video, {"vae", "interpolator"}),
        (upscale_video, {"upscaler"}),
    ):
        made, expected = (
            iter(run(m, VideoStream(moving_square, 5, 18, 26, 5.0), num_steps=1).frames)
            for m in models
        )
        assert torch.equal(next(made), next(expected))
        assert in_memory(stagewise) == held
        assert torch.equal(torch.stack(list(made)), torch.stack(list(expected)))
        assert in_memory(stagewise) == set()


def test_each_stage_loads_only_its_networks(stagewise, monkeypatch):
    seen = []

    def watch(folder, component, class_name, dtype, variant):
        seen.append((component, in_memory(stagewise)))
        return load_component(folder, component, class_name, dtype, variant)

    monkeypatch.setattr("magicvideo.pipelines.component_loading.load_component", watch)
    stagewise("a cat", seed=3, num_inference_steps=1)
    assert seen == [
        ("text_encoder", set()),
        ("image_conditioner", {"text_encoder"}),
        ("unet", set()),
        ("interpolator", set()),
        ("vae", set()),
        ("upscaler", set()),
    ]


def test_weights_are_freed_when_a_stage_fails(stagewise):
    def fail():
        with stagewise.load_components("unet"):
            assert in_memory(stagewise) == {"unet"}
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert in_memory(stagewise) == set()


def test_a_tensor_that_does_not_fit_is_named_before_generation(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    file = folder / "upscaler" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)
    write_checksums(folder)
    with pytest.raises(UserError, match=f"lacks the tensor {name}"):
        MagicVideoPipeline.from_pretrained(folder, offload_device="cpu")
