"""Every stage in the real loop: a run stopped by a signal ends like an uninterrupted one."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import STAGES, report_to, task_of, tiny_values

from magicvideo.atomic_io import lock_output
from magicvideo.data.manifest import read_manifest, write_manifest
from magicvideo.data.prepare import FrameSettings, prepare
from magicvideo.data.sources import folder
from magicvideo.errors import UserError
from magicvideo.models.video_vae import VideoPatchAutoencoder
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.training.components import stage_output
from magicvideo.training.export import _max_given_frames, export
from magicvideo.training.recipe import Recipe
from magicvideo.training.run import resolve_stage, train
from magicvideo.training.trainer import Interrupted, Trainer


def weights_of(folder):
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def log_of(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries]


@pytest.mark.parametrize("name", STAGES)
def test_a_run_stopped_by_sigterm_ends_like_an_uninterrupted_run(name, trained, recipe):
    for before in STAGES[: STAGES.index(name)]:
        shutil.copytree(trained.output / before, recipe.output / before)

    def stop_at_step_2(line):
        if line.startswith(f"{name} 2/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        train(recipe, name, report_to(stop_at_step_2))
    assert stopped.value.exit_code == 143
    with (recipe.output / name / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 99.0}\n{"step": 4, "lo')  # a kill after the checkpoint
    said = []
    train(recipe, name, report_to(said.append))
    assert f"{name}: resumes from step 2 of 4" in said
    assert log_of(recipe.output / name) == log_of(trained.output / name)
    expected, found = (weights_of(r.output / name / "output") for r in (trained, recipe))
    assert list(expected) == list(found)
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key


def test_every_stage_changed_what_it_trains(trained):
    for name in STAGES:
        fresh = task_of(trained, name).network.state_dict()
        newest = sorted((trained.output / name / "checkpoints").glob("step-*"))[-1]
        after = load_file(newest / "network.safetensors")
        # frozen weights are in no checkpoint
        same = {k for k, tensor in fresh.items() if torch.equal(tensor, after.get(k, tensor))}
        if name == "image":
            assert same == {k for k in fresh if "fps_embedding" in k or "image_conditioner" in k}
        elif name == "video_vae":
            assert same == {key for key in fresh if key.startswith("encoder")}
        else:
            assert not {k for k in same if "position_ids" not in k}


def test_a_finished_stage_is_skipped_and_more_steps_continue_it(trained, recipe):
    shutil.copytree(trained.output / "autoencoder", recipe.output / "autoencoder")
    litter = recipe.output / "autoencoder" / "samples" / ".partial-step-0123abcd.png"
    litter.parent.mkdir(exist_ok=True)
    litter.touch()  # of a killed run
    said = []
    train(recipe, "autoencoder", report_to(said.append))
    assert not litter.exists()
    assert said == [f"autoencoder: already finished, {recipe.output}/autoencoder/output"]
    longer = recipe.model_copy(
        update={"autoencoder": recipe.autoencoder.model_copy(update={"steps": 6})}
    )
    train(longer, "autoencoder", report_to(said.append))
    assert "autoencoder: resumes from step 4 of 6" in said
    assert "samples per update instead of" not in " ".join(said)
    assert [entry["step"] for entry in log_of(recipe.output / "autoencoder")] == [1, 2, 3, 4, 5, 6]


def test_another_number_of_samples_per_update_is_reported(trained, recipe):
    shutil.copytree(trained.output / "autoencoder", recipe.output / "autoencoder")
    shutil.rmtree(recipe.output / "autoencoder" / "output")
    other = recipe.autoencoder.model_copy(update={"steps": 5, "batch_size": 2})
    said = []
    train(recipe.model_copy(update={"autoencoder": other}), "autoencoder", report_to(said.append))
    assert "2 samples per update instead of 3" in " ".join(said)


def test_previews_are_written_at_the_steps_of_the_recipe(trained):
    drawn = {
        name: sorted(p.name for p in (trained.output / name / "samples").glob("*"))
        for name in ("image", "keyframes", "interpolation", "video_vae")
    }
    assert drawn == {
        "image": ["step-00000002.png", "step-00000004.png"],
        "keyframes": ["step-00000003.png"],
        "interpolation": ["step-00000003.png"],
        "video_vae": ["step-00000003.png"],
    }


def test_a_stage_needs_those_before_it(recipe):
    with pytest.raises(UserError, match="Stage autoencoder is not finished"):
        train(recipe, "image", report_to(print))


def test_a_damaged_output_is_named(trained, recipe):
    shutil.copytree(trained.output / "autoencoder", recipe.output / "autoencoder")
    file = recipe.output / "autoencoder/output/vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors is damaged"):
        stage_output(recipe.output, "autoencoder")


def test_an_unknown_stage_is_answered_with_the_nearest(recipe):
    assert resolve_stage(recipe, None) is None
    assert resolve_stage(recipe, "clip") == "clip"
    with pytest.raises(UserError, match="no stage 'keyframe'; did you mean keyframes"):
        resolve_stage(recipe, "keyframe")


def test_a_non_finite_loss_stops_training_before_the_weights_change(recipe):
    task = task_of(recipe, "autoencoder")
    stage = Trainer(
        "autoencoder", recipe.autoencoder, recipe.output / "autoencoder", 5, report_to(print)
    )
    with torch.no_grad():
        task.network.decoder_linear.weight[0, 0, 0, 0] = float("nan")
    before = {key: value.clone() for key, value in task.network.state_dict().items()}
    with pytest.raises(UserError, match=r"loss of step 0 is nan \(clips .+\); the step was"):
        stage.train(task)
    for key, value in task.network.state_dict().items():
        assert torch.equal(value.nan_to_num(7), before[key].nan_to_num(7)), key


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_export_accounts_for_every_tensor(trained, tmp_path, precision):
    export(trained.output, tmp_path / "model", precision)
    exported = weights_of(tmp_path / "model")
    expected = {}
    for name in ("video_vae", "clip", "keyframes", "interpolation"):
        expected |= weights_of(trained.output / name / "output")
    assert list(exported) == sorted(expected, key=list(exported).index)
    for key, tensor in expected.items():
        wanted = tensor.half() if precision == "fp16" else tensor
        assert torch.equal(exported[key], wanted), key
    steps = json.loads((tmp_path / "model" / "training.json").read_text())["steps"]
    assert steps == dict.fromkeys(STAGES, 4)
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["generation_defaults"]["fps"] == trained.defaults.fps
    assert index["max_given_frames"] == 0  # none are given in this recipe
    for config in (tmp_path / "model").rglob("config.json"):
        assert "_name_or_path" not in json.loads(config.read_text()), config  # a folder of training


def test_the_export_says_how_many_frames_the_denoiser_continues(trained):
    stage = trained.keyframes.model_copy(update={"given_frames_prob": 0.5, "max_given_frames": 3})
    learned = trained.model_copy(update={"keyframes": stage})
    assert _max_given_frames(learned, {}) == 3
    many = stage.model_copy(update={"max_given_frames": 99})
    assert _max_given_frames(trained.model_copy(update={"keyframes": many}), {}) == (
        trained.unet.num_frames - 1
    )


def test_an_exported_model_generates_a_video(trained, tmp_path):
    export(trained.output, tmp_path / "model", "fp16")
    pipeline = MagicVideoPipeline.from_pretrained(tmp_path / "model")
    video = pipeline("a red square", seed=1, num_inference_steps=2).videos[0]
    assert video.frames.shape == (4 + 3 * 2, 3, 24, 24)
    assert video.frames.isfinite().all()
    assert video.request.video_fps == trained.defaults.fps * 3
    assert isinstance(pipeline.vae, VideoPatchAutoencoder)


def test_export_replaces_nothing_and_needs_all_stages(trained, recipe, tmp_path):
    with pytest.raises(UserError, match="exists; remove it"):
        export(trained.output, tmp_path, "fp16")
    with pytest.raises(UserError, match="is not a training run"):
        export(recipe.output, tmp_path / "model", "fp16")
    recipe.output.mkdir()
    shutil.copy(trained.output / "recipe.json", recipe.output)
    with pytest.raises(UserError, match="Stage autoencoder is not finished"):
        export(recipe.output, tmp_path / "model", "fp16")
    assert not (tmp_path / "model").exists()


def changed(recipe, **values):
    stage = recipe.autoencoder.model_copy(update=values)
    return recipe.model_copy(update={"autoencoder": stage})


def test_a_finished_stage_refuses_other_settings_and_data_by_name(trained, recipe, tmp_path):
    shutil.copytree(trained.output / "autoencoder", recipe.output / "autoencoder")
    with pytest.raises(UserError) as raised:
        train(changed(recipe, learning_rate=2e-3, kl_weight=0.5), "autoencoder")
    sentence = str(raised.value)
    assert "autoencoder.learning_rate was 0.001 and is 0.002" in sentence
    assert "autoencoder.kl_weight was 0.001 and is 0.5" in sentence
    assert f"output={recipe.output}-2" in sentence
    train(changed(recipe, log_every=7, checkpoint_minutes=1.0), "autoencoder")  # how it was run
    with pytest.raises(UserError, match="seed was 5 and is 6"):
        train(recipe.model_copy(update={"seed": 6}), "autoencoder")
    fewer = shutil.copytree(recipe.data, tmp_path / "fewer")
    write_manifest(fewer, read_manifest(fewer)[:-1])
    with pytest.raises(UserError, match=r"others than before \(they were 7 clips and are 6\)"):
        train(recipe.model_copy(update={"data": fewer}), "autoencoder")
    shutil.rmtree(fewer)  # a stage that is done needs its data no more
    said = []
    gone = recipe.model_copy(update={"data": fewer, "size": 24})
    train(gone, "autoencoder", report_to(said.append))
    assert said == [f"autoencoder: already finished, {recipe.output}/autoencoder/output"]


def test_clips_updates_and_epochs_are_reported_before_training(recipe):
    said = []
    train(recipe, "autoencoder", report_to(said.append))
    assert said[0] == "autoencoder: 7 clips, 4 updates of 3 samples, 1.71 epochs"


def test_a_size_that_does_not_fit_is_refused(recipe):
    model = recipe.autoencoder.model.model_copy(update={"patch_size": 16})
    with pytest.raises(
        UserError, match="needs multiples of 16 pixels; prepare the data with --size 32"
    ):
        train(changed(recipe, model=model), "autoencoder")


def test_two_runs_do_not_train_into_one_folder(recipe):
    recipe.output.mkdir(parents=True, exist_ok=True)
    (recipe.output / ".partial-of-the-first").mkdir()
    expected = rf"{recipe.output.name} is being written by process {os.getpid()} on "
    with lock_output(recipe.output), pytest.raises(UserError, match=expected):
        train(recipe, "autoencoder")
    assert (recipe.output / ".partial-of-the-first").exists()


def test_frames_need_not_be_square(shapes, tmp_path):
    """Every stage trains on them, and the model makes videos of their size by default."""
    size = FrameSettings(height=16, width=24)
    prepare(folder.scan(shapes), tmp_path / "data", size)
    values = tiny_values(tmp_path / "data", tmp_path / "run")
    for name in STAGES:
        values[name] = {**values[name], "steps": 1, "preview_every": 1}
    recipe = Recipe.model_validate(values)
    train(recipe)
    export(recipe.output, tmp_path / "model", "fp32")
    pipeline = MagicVideoPipeline.from_pretrained(tmp_path / "model")
    factor = 24 // pipeline.unet.config.sample_size[1]
    assert list(pipeline.unet.config.sample_size) == [16 // factor, 24 // factor]
    assert pipeline.image_encoder.config.image_size == 16
    video = pipeline("a red square", seed=1, num_inference_steps=1).videos[0]
    assert video.frames.shape[-2:] == (16, 24)
    assert (video.request.height, video.request.width) == (16, 24)


def test_a_size_that_is_not_that_of_the_data_is_refused(recipe):
    wider = recipe.model_copy(update={"size": "32x24"})
    with pytest.raises(UserError, match="have size 24, but the recipe has size=32x24"):
        train(wider)
