import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import (
    FRAMES,
    INSERTED,
    LATENT_CHANNELS,
    LATENT_SIDE,
    SHARED_NOISE,
    SIDE,
    UPSCALING,
    VIDEO_FRAMES,
    WORDS,
    frames_of,
)

from magicvideo.atomic_io import hash_folder, write_checksums
from magicvideo.diffusion.noise import initial_latent_noise
from magicvideo.diffusion.sampling import make_scheduler
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import decode_latents
from magicvideo.models.conditioning import encode_text
from magicvideo.pipelines.image_condition import embedding_of
from magicvideo.pipelines.keyframes import interpolate_latents
from magicvideo.pipelines.request import GenerationSettings
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.pipelines.upscale import upscale_frames
from magicvideo.pipelines.video import read_latents, write_latents

# diffusers' solver hands tensors to numpy in a way that numpy 2 discourages
numpy_habit = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
RED = Image.new("RGB", (9, 31), "red")


def test_a_seed_gives_the_same_video_in_any_batch(pipeline):
    together = frames_of(pipeline, ["a cat", "a dog", "woman surfing"], seed=[3, 8, 3])
    assert together.shape == (3, VIDEO_FRAMES, 3, UPSCALING * SIDE, UPSCALING * SIDE)
    for index, (prompt, seed) in enumerate([("a cat", 3), ("a dog", 8), ("woman surfing", 3)]):
        alone = frames_of(pipeline, prompt, seed=seed)[0]
        assert torch.equal(alone, together[index])


def test_prompt_seed_fps_frames_and_settings_all_matter(pipeline):
    base = frames_of(pipeline, "a cat", seed=3)
    for change in (
        {"prompt": "woman surfing"},
        {"seed": 4},
        {"fps": 23.0},
        {"guidance_scale": 1.0},
        {"guidance_stop": 0.5},
        {"negative_prompt": "a dog"},
        {"num_inference_steps": 5},
        {"interpolation_steps": 1},
        {"upscaler_steps": 1},
        {"image": RED},
    ):
        other = frames_of(pipeline, **{"prompt": "a cat", "seed": 3, **change})
        assert (other - base).abs().mean() > 1e-4, change
    assert frames_of(pipeline, "a cat", seed=3, num_frames=2).shape[1] == 2 + INSERTED


def test_the_stages_are_condition_key_frames_interpolation_and_pixels(pipeline):
    video = pipeline("a cat", seed=3, negative_prompt="a dog", guidance_scale=2.5).videos[0]
    prompts = ["a cat", "a dog"]
    tokens, negative = (
        encode_text(pipeline.text_encoder, pipeline.tokenizer, [text]) for text in prompts
    )
    scheduler = make_scheduler(pipeline.scheduler.config, "ddim")
    scheduler.set_timesteps(3)
    latents = initial_latent_noise(
        3, (FRAMES, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE), SHARED_NOISE
    )
    fps = torch.tensor([7.0])
    for timestep in scheduler.timesteps:
        toward, away = (
            pipeline.unet(latents, timestep[None], x, fps).sample for x in (tokens, negative)
        )
        guided = away + 2.5 * (toward - away)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    video_latents = interpolate_latents(
        pipeline.interpolator,
        scheduler,
        latents,
        tokens,
        fps=7.0 * (INSERTED + 1),
        seed=3,
        num_steps=2,
        noise_correlation=SHARED_NOISE,
        noise_level=30,
    )
    assert torch.equal(video_latents[:, :: INSERTED + 1], latents)
    expected = upscale_frames(
        pipeline.upscaler,
        make_scheduler(pipeline.upscaler_scheduler.config, "ddim"),
        decode_latents(pipeline.vae, video_latents),
        [3],
        num_steps=2,
        noise_level=0.1,
    )[0]
    torch.testing.assert_close(video.frames, expected, atol=1e-4, rtol=1e-4)


def test_stages_can_be_left_out(pipeline):
    alone = pipeline("a cat", seed=3, stages=("keyframes",)).videos[0]
    whole = pipeline("a cat", seed=3, stages=("keyframes", "interpolation")).videos[0]
    large = pipeline("a cat", seed=3, stages=("keyframes", "upscaler")).videos[0]
    assert large.frames.shape == (FRAMES, 3, UPSCALING * SIDE, UPSCALING * SIDE)
    assert len(alone.frames) == alone.request.video_frames == FRAMES
    assert len(whole.frames) == whole.request.video_frames == VIDEO_FRAMES
    assert (alone.request.video_fps, whole.request.video_fps) == (7.0, 21.0)
    # frames are decoded one by one here, so the keys are the same pictures, to rounding
    torch.testing.assert_close(whole.frames[:: INSERTED + 1], alone.frames, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (("interpolation",), "name keyframes first"),
        (("keyframes", "keyframes"), "in the order"),
        (("keyframes", "colour"), "Unknown stage 'colour'"),
        (("keyframes", "upscaler", "interpolation"), "in the order"),
    ],
)
def test_stages_that_cannot_be_are_refused(pipeline, stages, words):
    with pytest.raises(UserError, match=words):
        pipeline("a cat", stages=stages)


def test_the_stages_of_a_model_follow_from_its_networks(pipeline):
    parts = {**pipeline.components, "upscaler": None, "upscaler_scheduler": None}
    defaults = {"num_inference_steps": 2, "interpolation_steps": 1}
    smaller = MagicVideoPipeline(**parts, generation_defaults=defaults)
    assert smaller.capabilities.stages == ("keyframes", "interpolation")
    assert frames_of(smaller, "a cat").shape[-1] == SIDE
    with pytest.raises(UserError, match="has no stage upscaler"):
        smaller("a cat", stages=("keyframes", "upscaler"))


def test_one_key_frame_is_not_interpolated(pipeline):
    with pytest.raises(UserError, match="at least two key frames"):
        pipeline("a cat", num_frames=1)
    assert len(frames_of(pipeline, "a cat", num_frames=1, stages=("keyframes",))[0]) == 1


def test_stored_latents_give_the_same_video(pipeline, tmp_path):
    request = pipeline.build_requests(["a cat"], [3], GenerationSettings())[0]
    write_latents(tmp_path / "a.latents", pipeline.generate_latents(request), request)
    kept, latents = read_latents(tmp_path / "a.latents")
    assert kept == request
    assert torch.equal(
        pipeline.decode_and_upscale(kept, latents).frames, pipeline.generate(request).frames
    )


@numpy_habit
def test_the_model_s_noise_schedule_carries_over_to_dpm(pipeline):
    stored = pipeline.scheduler.config
    solver = make_scheduler(stored, "dpm++")
    assert isinstance(solver, DPMSolverMultistepScheduler)
    assert solver.config.algorithm_type == "dpmsolver++"
    for name in (
        "prediction_type",
        "rescale_betas_zero_snr",
        "timestep_spacing",
        "beta_schedule",
        "num_train_timesteps",
    ):
        assert solver.config[name] == stored[name]


@numpy_habit
def test_both_schedulers_solve_the_same_equation(pipeline):
    def frames(scheduler, steps):
        return frames_of(
            pipeline,
            "a cat",
            seed=3,
            scheduler=scheduler,
            num_inference_steps=steps,
            guidance_scale=1.0,
            stages=("keyframes",),
        )

    fine = frames("ddim", 50)
    coarse = (frames("ddim", 5) - fine).abs().mean()
    assert (frames("dpm++", 25) - fine).abs().mean() < 0.5 * coarse


def test_an_image_replaces_the_text_or_is_combined_with_it(pipeline, tmp_path):
    RED.save(tmp_path / "red.png")
    alone = frames_of(pipeline, image=RED, seed=3)
    assert torch.equal(alone, frames_of(pipeline, image=tmp_path / "red.png", seed=3))
    blue = Image.new("RGB", (9, 31), "blue")
    assert (frames_of(pipeline, image=blue, seed=3) - alone).abs().mean() > 1e-4
    joined = frames_of(pipeline, "a cat", image=RED, seed=3)
    assert (joined - alone).abs().mean() > 1e-4


def test_transparent_images_are_composited_on_white(pipeline):
    clear = Image.new("RGBA", (9, 31), (255, 0, 0, 0))
    white = Image.new("RGB", (9, 31), "white")
    assert torch.equal(
        frames_of(pipeline, image=clear, seed=3), frames_of(pipeline, image=white, seed=3)
    )


def test_a_request_determines_the_video(pipeline):
    video = pipeline(image=RED, fps=13.0, num_frames=3).videos[0]
    again = pipeline.generate(video.request)
    assert torch.equal(again.frames, video.frames)
    assert video.request.image_condition.name == "picture"
    assert video.request.output_scale == 256 // (UPSCALING * SIDE)
    assert video.request.num_inference_steps == 3  # the model's own default


@pytest.mark.parametrize("offload_device", [None, "cpu"])
def test_default_dtype_and_autocast_of_the_caller_have_no_effect(
    pipeline, tiny_model, offload_device
):
    options = {"num_frames": 2, "num_inference_steps": 2, "seed": 3, "output_type": "pt"}
    expected = pipeline("a fox", **options).frames
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            model = MagicVideoPipeline.from_pretrained(tiny_model, offload_device=offload_device)
            found = model("a fox", **options).frames
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(default)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_progress_reports_every_step(pipeline):
    told = []
    pipeline("a cat", seed=3, progress=lambda *event: told.append(event))
    assert told == [
        *(("key frames", done, 3) for done in range(4)),
        *(("interpolation", done, 2) for done in range(3)),
        ("decoding", 0, VIDEO_FRAMES),
        ("decoding", VIDEO_FRAMES, VIDEO_FRAMES),
        *(("super-resolution", done, 8) for done in range(9)),
    ]


def test_hints_are_logged(pipeline, caplog):
    pipeline("a zebra", seed=3)
    assert '"zebra" is not in the training captions' in caplog.text


def test_a_saved_model_loads_unchanged(pipeline, tmp_path):
    before = frames_of(pipeline, "a cat", seed=3)
    other = MagicVideoPipeline(
        **pipeline.components,
        generation_defaults=pipeline.config.generation_defaults,
        interpolation_noise_level=30,
        upscaler_noise_level=0.1,
        noise_correlation=SHARED_NOISE,
    )
    other.words = pipeline.words
    other.save_pretrained(tmp_path / "model")
    loaded = MagicVideoPipeline.from_pretrained(tmp_path / "model")
    assert loaded.model_hash == other.model_hash == hash_folder(tmp_path / "model")
    assert loaded.words == frozenset(WORDS)
    assert loaded.config.generation_defaults["num_inference_steps"] == 3
    assert torch.equal(frames_of(loaded, "a cat", seed=3), before)


def test_saving_never_replaces_a_folder_that_is_not_a_model(pipeline, tmp_path):
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(UserError, match="exists and is not a model folder"):
        pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "diary.txt").read_text() == "dear diary"


def test_half_precision_files_load_as_single_precision(pipeline, tiny_model, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(tiny_model, folder)
    for file in folder.rglob("*.safetensors"):
        save_file({k: v.half() for k, v in load_file(file).items()}, file, {"format": "pt"})
    write_checksums(folder)
    loaded = MagicVideoPipeline.from_pretrained(folder)
    for name in ("vae", "text_encoder", "image_encoder", "image_conditioner", "unet"):
        assert {p.dtype for p in getattr(loaded, name).parameters()} == {torch.float32}
    difference = frames_of(loaded, "a cat", seed=3) - frames_of(pipeline, "a cat", seed=3)
    assert 0 < difference.abs().mean() < 0.02


def test_networks_in_bfloat16_leave_latents_and_frames_in_float32(pipeline, tiny_model):
    half = MagicVideoPipeline.from_pretrained(tiny_model, torch_dtype=torch.bfloat16)
    for name in ("vae", "text_encoder", "image_encoder", "image_conditioner", "unet"):
        assert {p.dtype for p in getattr(half, name).parameters()} == {torch.bfloat16}
    settings = GenerationSettings(num_inference_steps=2, scheduler="ddim")
    (request,) = half.build_requests(["a cat"], [3], settings, RED)
    (exact,) = pipeline.build_requests(["a cat"], [3], settings, RED)
    embedding = embedding_of(request.image_condition)
    np.testing.assert_allclose(embedding, embedding_of(exact.image_condition), atol=0.02)
    np.testing.assert_allclose(np.square(embedding).sum(), 1, rtol=1e-6)
    latents = half.generate_latents(request)
    assert latents.dtype == torch.float32
    assert 0 < (latents - pipeline.generate_latents(exact)).abs().mean() < 0.05
    frames = half.decode_and_upscale(request, latents).frames
    assert frames.dtype == torch.float32
    assert 0 < (frames - pipeline.decode_and_upscale(exact, latents).frames).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"num_frames": FRAMES + 1},
            f"frames is {FRAMES + 1}; this model supports at most {FRAMES}",
        ),
        ({"scheduler": "heun"}, "Unknown scheduler 'heun'"),
        ({"prompt": []}, "No prompt"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": ["a cat", " "]}, "prompt is empty"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 videos"),
        ({"image": "none.png"}, "picture none.png does not exist"),
    ],
)
def test_unsupported_requests_are_refused(pipeline, change, sentence):
    with pytest.raises(UserError, match=sentence):
        pipeline(**{"prompt": "a cat", **change})


def test_a_request_for_another_model_names_both(pipeline, request_of):
    with pytest.raises(
        UserError, match=f"{'ab' * 32}, but the loaded model is {pipeline.model_hash}"
    ):
        pipeline.generate(request_of())


def test_the_index_names_only_known_classes(tiny_model):
    index = json.loads((tiny_model / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "MagicVideoPipeline"]
    assert index["unet"][1] == "VideoUNet"
