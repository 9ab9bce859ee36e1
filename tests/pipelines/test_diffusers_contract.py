"""The interface that users of diffusers expect, on a complete tiny model."""

import inspect
import json
import logging

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.utils import BaseOutput
from PIL import Image
from tiny_model import FRAMES, LATENT_CHANNELS, LATENT_SIDE, PATCH, SIDE, UPSCALING

from magicvideo.errors import UserError
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

KEYS = {"stages": ("keyframes",), "num_inference_steps": 2}
SHAPE = (FRAMES, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)
# diffusers' multistep solvers hand tensors to numpy in a way that numpy 2 discourages
numpy_habit = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def pipe(tiny_model):
    """A separate pipeline, which the test may change."""
    loaded = MagicVideoPipeline.from_pretrained(tiny_model)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def noise(count=1):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))


# ---------------------------------------------------------------------------- the call


def test_the_output_is_a_base_output_with_frames_of_every_type(pipe):
    pt = pipe("a cat", seed=3, output_type="pt", **KEYS)
    assert isinstance(pt, BaseOutput)
    assert pt.frames.shape == (1, FRAMES, 3, SIDE, SIDE)
    assert 0 <= pt.frames.min() <= pt.frames.max() <= 1
    assert torch.equal(pt[0], pt["frames"])
    array = pipe("a cat", seed=3, output_type="np", **KEYS).frames
    np.testing.assert_allclose(array, pt.frames.permute(0, 1, 3, 4, 2).numpy(), atol=1e-6)
    ((first, *_),) = pipe("a cat", seed=3, **KEYS).frames
    assert isinstance(first, Image.Image)
    np.testing.assert_allclose(np.asarray(first), array[0, 0] * 255, atol=1)
    latents = pipe("a cat", seed=3, output_type="latent", **KEYS).frames
    assert latents.shape == (1, *SHAPE)
    assert torch.equal(pipe.decode(latents)[0], pt.videos[0].frames)
    as_tuple = pipe("a cat", seed=3, output_type="pt", return_dict=False, **KEYS)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], pt.frames)


def test_a_generator_gives_reproducible_and_then_different_videos(pipe):
    def make(generator, prompt="a cat"):
        return pipe(prompt, generator=generator, output_type="pt", **KEYS)

    moving = torch.Generator().manual_seed(1)
    first, second = make(moving), make(moving)
    assert not torch.equal(first.frames, second.frames)
    assert torch.equal(make(torch.Generator().manual_seed(1)).frames, first.frames)
    both = make([torch.Generator().manual_seed(seed) for seed in (2, 1)], ["a dog", "a cat"])
    assert torch.equal(both.frames[1], first.frames[0])
    # the file holds the seed that was drawn, so that the video can be made again without it
    again = pipe.generate(second.videos[0].request).frames
    assert torch.equal(again, second.videos[0].frames)


def test_given_latents_replace_the_noise(pipe):
    given = noise(2)
    both = pipe(["a cat", "a dog"], latents=given, output_type="latent", **KEYS).frames
    alone = pipe("a dog", latents=given[1:], output_type="latent", **KEYS).frames
    assert torch.equal(both[1:], alone)
    assert not torch.equal(
        both[:1], pipe("a cat", latents=noise() * 0.9, output_type="latent", **KEYS).frames
    )
    with pytest.raises(UserError, match=r"pass latents\.transpose\(1, 2\)"):
        pipe("a cat", latents=given[:1].transpose(1, 2), **KEYS)
    with pytest.raises(UserError, match="2 latents were given for 1 videos"):
        pipe("a cat", latents=given, **KEYS)


def test_a_file_records_which_inputs_it_does_not_contain(pipe):
    request = pipe("a cat", latents=noise(), **KEYS).videos[0].request
    assert request.unrecorded == ("latents",)
    with pytest.raises(UserError, match="was made with latents, which its file does not hold"):
        pipe.generate(request)


def test_given_embeddings_replace_the_texts(pipe):
    positive, negative = pipe.encode_prompt(["a cat", "a dog"], ["a dog", ""])
    assert positive.shape == negative.shape
    expected = pipe(
        ["a cat", "a dog"], negative_prompt=["a dog", ""], seed=3, output_type="pt", **KEYS
    )
    made = pipe(
        prompt_embeds=positive, negative_prompt_embeds=negative, seed=3, output_type="pt", **KEYS
    )
    assert torch.equal(made.frames, expected.frames)
    with pytest.raises(UserError, match="Both prompt and prompt_embeds were given"):
        pipe("a cat", prompt_embeds=positive, **KEYS)


def test_the_text_encoder_is_optional_with_given_embeddings(pipe):
    positive, negative = pipe.encode_prompt("a cat")
    expected = pipe("a cat", seed=3, output_type="pt", **KEYS).frames
    parts = {**pipe.components, "text_encoder": None, "tokenizer": None}
    other = MagicVideoPipeline(**parts, **pipe.parameters)
    other.set_progress_bar_config(disable=True)
    made = other(
        prompt_embeds=positive, negative_prompt_embeds=negative, seed=3, output_type="pt", **KEYS
    )
    assert torch.equal(made.frames, expected)


def test_negative_prompts_are_one_or_one_for_each(pipe):
    each = pipe(
        ["a cat", "a cat"],
        negative_prompt=["a dog", "woman"],
        seed=[3, 3],
        output_type="pt",
        **KEYS,
    )
    for place, text in enumerate(("a dog", "woman")):
        alone = pipe("a cat", negative_prompt=text, seed=3, output_type="pt", **KEYS)
        assert torch.equal(each.frames[place], alone.frames[0])
    assert not torch.equal(each.frames[0], each.frames[1])
    none = pipe("a cat", negative_prompt=None, seed=3, output_type="pt", **KEYS)
    assert torch.equal(none.frames, pipe("a cat", seed=3, output_type="pt", **KEYS).frames)
    with pytest.raises(UserError, match="3 negative prompts were given for 2 prompts"):
        pipe(["a cat", "a dog"], negative_prompt=["", "", ""], **KEYS)


def test_several_videos_of_each_prompt_have_a_seed_each(pipe):
    made = pipe(["a cat", "a dog"], num_videos_per_prompt=2, seed=7, output_type="pt", **KEYS)
    assert [video.request.seed for video in made.videos] == [7, 8, 9, 10]
    assert [video.request.prompt for video in made.videos] == ["a cat"] * 2 + ["a dog"] * 2
    alone = pipe("a dog", seed=9, output_type="pt", **KEYS)
    assert torch.equal(made.frames[2], alone.frames[0])


def test_sizes_are_those_of_the_finished_video(pipe):
    made = pipe("a cat", height=SIDE + PATCH, width=2 * SIDE, output_type="pt", **KEYS)
    assert made.frames.shape[-2:] == (SIDE + PATCH, 2 * SIDE)
    request = made.videos[0].request
    assert torch.equal(pipe.generate(request).frames, made.videos[0].frames)
    large = pipe(
        "a cat",
        height=UPSCALING * SIDE,
        width=UPSCALING * 2 * SIDE,
        num_inference_steps=1,
        stages=("keyframes", "upscaler"),
        upscaler_steps=1,
        output_type="pt",
    )
    assert large.frames.shape[-2:] == (UPSCALING * SIDE, UPSCALING * 2 * SIDE)
    with pytest.raises(UserError, match=f"height is 25; .* a multiple of {PATCH}, such as 24"):
        pipe("a cat", height=25, **KEYS)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": np.int64(3)},
        {"seed": np.array([3])},
        {"seed": (3,)},
        {"seed": 3, "num_frames": np.int64(FRAMES)},
        {"seed": 3, "stages": ["keyframes"]},
        {"seed": 3, "stages": "keyframes"},
        {"seed": 3, "guidance_scale": np.float32(4)},
        {"seed": 3, "prompt": ("a cat",)},
        {"seed": 3, "negative_prompt": None},
    ],
)
def test_any_sequence_and_any_integer_type_is_accepted(pipe, changes):
    expected = pipe("a cat", seed=3, output_type="pt", **KEYS).frames
    values = {"prompt": "a cat", "output_type": "pt", **KEYS, **changes}
    assert torch.equal(pipe(**values).frames, expected)


# ---------------------------------------------------------------------------- callbacks


def test_a_callback_gets_the_requested_tensors_at_every_step(pipe):
    seen = []

    def watch(pipeline, step, timestep, tensors):
        assert pipeline is pipe
        seen.append((step, int(timestep), sorted(tensors), pipeline.num_timesteps))
        return tensors

    names = ["latents", "negative_prompt_embeds", "prompt_embeds"]
    made = pipe(
        "a cat",
        seed=3,
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=names,
        **KEYS,
    )
    assert [event[0] for event in seen] == [0, 1]
    assert all(event[2:] == (names, 2) for event in seen)
    assert made.videos[0].request.unrecorded == ()  # a callback that only looks changes nothing
    with pytest.raises(UserError, match="cannot get 'noise_pred'; it can get latents"):
        pipe("a cat", callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["noise_pred"])


def test_a_callback_changes_latents_embeddings_and_guidance(pipe):
    base = pipe("a cat", seed=3, output_type="latent", **KEYS).frames

    def zero(_pipeline, _step, _timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    def other_text(pipeline, _step, _timestep, _tensors):
        return {"prompt_embeds": pipeline.encode_prompt("a dog")[0]}

    def more_guidance(pipeline, _step, _timestep, _tensors):
        pipeline._guidance_scale += 3.0

    made = {}
    for callback in (zero, other_text, more_guidance):
        made[callback] = pipe(
            "a cat", seed=3, output_type="latent", callback_on_step_end=callback, **KEYS
        ).frames
        assert not torch.equal(made[callback], base)
    assert made[zero].abs().sum() == 0
    assert pipe.guidance_scale == 4.0 + 2 * 3.0
    video = pipe("a cat", seed=3, callback_on_step_end=more_guidance, **KEYS).videos[0]
    assert video.request.unrecorded == ("callback_on_step_end",)


def test_guidance_ends_by_diffusers_own_callback(pipe):
    cut = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    made = pipe("a cat", seed=3, output_type="latent", callback_on_step_end=cut, **KEYS).frames
    stopped = pipe("a cat", seed=3, output_type="latent", guidance_stop=0.5, **KEYS).frames
    torch.testing.assert_close(made, stopped, atol=1e-5, rtol=0)


def test_an_interrupted_call_returns_the_videos_so_far(pipe):
    steps = []

    def stop(pipeline, step, _timestep, tensors):
        steps.append(step)
        pipeline._interrupt = len(steps) == 4
        return tensors

    made = pipe(
        ["a cat", "a dog", "woman"], seed=3, callback_on_step_end=stop, num_inference_steps=3
    )
    assert steps == [0, 1, 2, 0]
    assert len(made.videos) == 2
    assert made.videos[1].request.unrecorded == ("callback_on_step_end",)
    assert len(made.videos[1].frames) == made.videos[1].request.video_frames == FRAMES


def test_progress_bars_are_configured_as_in_diffusers(pipe, capsys):
    pipe("a cat", **KEYS)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    pipe("a cat", **KEYS)
    assert "key frames" in capsys.readouterr().err


# ---------------------------------------------------------------------------- schedulers


@numpy_habit
@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        (DDIMScheduler, "ddim", {}),
        (DPMSolverMultistepScheduler, "dpm++", {"use_karras_sigmas": True}),
        (UniPCMultistepScheduler, "unipc", {"solver_order": 3}),
        (EulerDiscreteScheduler, "euler", {}),
        (LCMScheduler, "lcm", {}),
    ],
)
def test_an_assigned_scheduler_is_used_and_recorded(pipe, kind, name, options):
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
    video = pipe("a cat", seed=3, stages=("keyframes",)).videos[0]
    assert (video.request.scheduler, dict(video.request.scheduler_options)) == (name, options)
    assert torch.equal(pipe.generate(video.request).frames, video.frames)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(pipe.generate(video.request).frames, video.frames)


@numpy_habit
def test_a_scheduler_that_is_not_supported_is_refused(pipe):
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UserError, match="HeunDiscreteScheduler is not supported; assign"):
        pipe("a cat", **KEYS)


@numpy_habit
@pytest.mark.parametrize(("name", "share"), [("dpm++", 0.5), ("unipc", 0.5), ("euler", 0.7)])
def test_solvers_converge_to_the_same_video(pipe, name, share):
    """All solve the same equation: fine steps of any come near to finest ones of DDIM."""

    def latents(scheduler, steps):
        return pipe(
            "a cat",
            latents=noise(),
            scheduler=scheduler,
            num_inference_steps=steps,
            guidance_scale=1.0,
            stages=("keyframes",),
            output_type="latent",
        ).frames

    fine = latents("ddim", 60)
    coarse = (latents("ddim", 5) - fine).abs().mean()
    assert (latents(name, 30) - fine).abs().mean() < share * coarse


@numpy_habit
@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc", "euler", "lcm"])
def test_every_sampler_converges_with_a_perfect_denoiser(pipe, name):
    """Of data that is one point x, the exact velocity at (z, t) is (a z - x) / s; LCM's too."""
    target = noise()
    schedule = pipe._trained_scheduler.alphas_cumprod

    def perfect(latents, timestep, *_, **__):
        scale = schedule[timestep.long()].view(-1, 1, 1, 1, 1)
        clean = target.to(latents).expand_as(latents)
        spread = (1 - scale).sqrt()
        epsilon = (latents - scale.sqrt() * clean) / spread
        velocity = scale.sqrt() * epsilon - spread * clean
        return type(output)(sample=velocity) if output is not None else velocity

    sample = pipe.unet(
        noise(), torch.tensor([10]), pipe.encode_prompt("a cat")[0], torch.tensor([7.0])
    )
    output = sample if hasattr(sample, "sample") else None
    pipe.unet.forward = perfect
    made = pipe(
        "a cat",
        seed=3,
        scheduler=name,
        num_inference_steps=8,
        guidance_scale=1.0,
        stages=("keyframes",),
        output_type="latent",
    ).frames
    torch.testing.assert_close(made, target, atol=0.02, rtol=0)


# ---------------------------------------------------------------------------- loading and saving


def test_components_are_given_by_keyword(tiny_model, pipe):
    bare = MagicVideoPipeline.from_pretrained(tiny_model, unet=pipe.unet, upscaler=None)
    assert bare.unet is pipe.unet
    assert bare.upscaler is None
    assert bare.model_hash is None  # it is not the model of the folder any more
    euler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert MagicVideoPipeline.from_pretrained(tiny_model, scheduler=euler).scheduler is euler
    with pytest.raises(UserError, match="from_pretrained has no argument safety_checker"):
        MagicVideoPipeline.from_pretrained(tiny_model, safety_checker=None)


def test_dtypes_are_one_or_one_for_each_component(tiny_model):
    half = MagicVideoPipeline.from_pretrained(tiny_model, torch_dtype=torch.bfloat16)
    assert (half.unet.dtype, half.vae.dtype) == (torch.bfloat16, torch.bfloat16)
    mixed = MagicVideoPipeline.from_pretrained(
        tiny_model, dtype={"unet": torch.bfloat16, "default": torch.float32}, device_map="cpu"
    )
    assert (mixed.unet.dtype, mixed.text_encoder.dtype) == (torch.bfloat16, torch.float32)
    mixed.to(torch.float32)
    assert mixed.unet.dtype == torch.float32


def test_a_change_of_dtype_warns_of_nothing(tiny_model):
    pipe = MagicVideoPipeline.from_pretrained(tiny_model)
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger = logging.getLogger("diffusers.models.modeling_utils")
    logger.addHandler(handler)
    try:
        pipe.to(torch.bfloat16)
    finally:
        logger.removeHandler(handler)
    assert pipe.unet.dtype == torch.bfloat16
    assert told == []


def test_a_model_is_not_spread_over_devices(tiny_model):
    with pytest.raises(UserError, match="The device is 'balanced'; it must be one device"):
        MagicVideoPipeline.from_pretrained(tiny_model, device_map="balanced")


def test_variants_and_shards_are_written_and_read(pipe, tmp_path):
    expected = pipe("a cat", seed=3, output_type="pt", **KEYS).frames
    pipe.save_pretrained(tmp_path / "model", variant="fp16", max_shard_size="40KB")
    unet = {path.name for path in (tmp_path / "model/unet").iterdir()}
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in unet
    assert sum(name.endswith(".safetensors") for name in unet) > 1
    assert all(".fp16" in name for name in unet if "safetensors" in name)
    loaded = MagicVideoPipeline.from_pretrained(tmp_path / "model", variant="fp16")
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(
        loaded("a cat", seed=3, output_type="pt", **KEYS).frames, expected, atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="load the model files of the `variant=bf16`"):
        MagicVideoPipeline.from_pretrained(tmp_path / "model", variant="bf16")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_diffusion_pipeline_loads_the_folder_by_its_declaration(tiny_model, pipe):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(tiny_model)
    loaded = DiffusionPipeline.from_pretrained(tiny_model, trust_remote_code=True)
    assert type(loaded) is MagicVideoPipeline
    loaded.set_progress_bar_config(disable=True)
    made = loaded("a cat", seed=3, output_type="pt", **KEYS).frames
    torch.testing.assert_close(
        made, pipe("a cat", seed=3, output_type="pt", **KEYS).frames, atol=1e-5, rtol=0
    )


def test_a_replaced_network_changes_the_model_hash(pipe):
    assert pipe.model_hash is not None
    pipe.unet = type(pipe.unet).from_config(pipe.unet.config)
    assert pipe.model_hash is None


def test_from_pipe_shares_the_components(pipe):
    other = MagicVideoPipeline(**pipe.components, **pipe.parameters)
    assert other.unet is pipe.unet
    assert other.config.generation_defaults == pipe.config.generation_defaults


# ---------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("method", "device"),
    [
        ("enable_model_cpu_offload", "cpu"),
        # accelerate moves single layers to an accelerator only
        pytest.param(
            "enable_sequential_cpu_offload",
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_offloading_does_not_change_the_video(pipe, method, device):
    pytest.importorskip("accelerate")
    settings = {"seed": 3, "num_inference_steps": 1, "interpolation_steps": 1, "upscaler_steps": 1}
    expected = pipe("a cat", image=Image.new("RGB", (9, 31), "red"), output_type="pt", **settings)
    getattr(pipe, method)(device=device)
    for _ in range(2):
        made = pipe("a cat", image=Image.new("RGB", (9, 31), "red"), output_type="pt", **settings)
        torch.testing.assert_close(made.frames, expected.frames, atol=1e-3, rtol=0)


def test_vae_slicing_decodes_frame_by_frame(pipe):
    expected = pipe("a cat", seed=3, output_type="pt", **KEYS).frames
    shapes = []
    pipe.vae.decoder_linear.register_forward_pre_hook(lambda _, given: shapes.append(len(given[0])))
    pipe.enable_vae_slicing()
    made = pipe("a cat", seed=3, output_type="pt", **KEYS).frames
    assert shapes == [1] * FRAMES
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    pipe.disable_vae_slicing()
    pipe("a cat", seed=3, **KEYS)
    assert shapes[FRAMES:] == [FRAMES]


# ---------------------------------------------------------------------------- the page


def test_the_page_names_every_argument_of_the_call():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs/diffusers.md").read_text(encoding="utf-8")
    for name in inspect.signature(MagicVideoPipeline.__call__).parameters:
        assert name == "self" or f"`{name}`" in page, name


def test_the_index_declares_the_pipeline_and_its_library(tiny_model):
    index = json.loads((tiny_model / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "MagicVideoPipeline"]
    assert index["unet"] == ["magicvideo", "VideoUNet"]
    assert "import MagicVideoPipeline" in (tiny_model / "pipeline.py").read_text()
