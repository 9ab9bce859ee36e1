import numpy as np
import pytest
import torch
from tiny_model import INSERTED, make_tiny_pipeline

from magicvideo.atomic_io import hash_folder
from magicvideo.diffusion.sampling import pair_keyframes
from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.distribution import fit_gaussian, frechet_distance
from magicvideo.evaluation.prompt_sets import from_uint8, real_videos, sample_prompts, to_uint8
from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from studies.__main__ import run
from studies.interpolation.evaluation import (
    ESTIMATE,
    LATENT_BLEND,
    NEAREST,
    PIXEL_BLEND,
    REAL,
    UPPER_BOUND,
    network_label,
    run_all_methods,
    score_interpolation,
)
from studies.interpolation.report import methods_table, paired_tables

STEPS = (1, 3)
METHODS = (*map(network_label, STEPS), ESTIMATE, LATENT_BLEND, PIXEL_BLEND, NEAREST, UPPER_BOUND)


@pytest.fixture(scope="module")
def pipeline():
    return make_tiny_pipeline()


def score(pipeline, judge, dataset):
    done = []
    scores = score_interpolation(
        pipeline, judge, dataset, 2, num_keys=3, steps=STEPS, seed=1, on_clip=done.append
    )
    assert done == [1, 2]
    return {row.name: row for row in scores}


def test_every_method_is_scored_and_an_untrained_network_interpolates_linearly(
    pipeline, judge, every_clip
):
    with torch.no_grad():
        pipeline.interpolator.unet.conv_out.weight.zero_()
        pipeline.interpolator.unet.conv_out.bias.zero_()
        pipeline.interpolator.unet.conv_out_adaptor.shift.zero_()
    pipeline.interpolator.register_to_config(residual_scale=1e-9)
    scores = score(pipeline, judge, every_clip)
    assert tuple(scores) == (*METHODS, REAL)
    blended = scores[LATENT_BLEND]
    for name in (*map(network_label, STEPS), ESTIMATE):
        assert scores[name].psnr.value == pytest.approx(blended.psnr.value, abs=0.2)
    for name in METHODS:
        row = scores[name]
        assert np.isfinite([row.psnr.value, row.ssim.value, row.of_gaps, row.of_clips]).all()
        assert row.psnr.low <= row.psnr.value <= row.psnr.high
        gains = row.samples.compared_to(blended.samples)
        assert gains.psnr.value == pytest.approx(row.psnr.value - blended.psnr.value, abs=1e-4)
        assert gains.ssim.value == pytest.approx(row.ssim.value - blended.ssim.value, abs=1e-6)
        assert gains.frechet.value == pytest.approx(row.of_gaps / blended.of_gaps)
        assert row.psnr.count == row.pulse.count == gains.ssim.count == 2
    # the nearest key frame changes halfway between keys, never at one
    assert scores[NEAREST].pulse.value == 0
    assert scores[REAL].psnr is None
    assert scores[REAL].of_gaps == pytest.approx(0, abs=1e-9)
    assert scores[REAL].of_clips == pytest.approx(0, abs=1e-9)
    lines = methods_table(list(scores.values())).splitlines()
    assert len(lines) == 2 + len(scores)
    assert lines[-1].startswith("| real clips | 2 |  |  | 0.00000 | 0.00000 | ")
    against_blend, against_estimate = paired_tables(list(scores.values()), STEPS)
    names = [line.split(" | ")[0] for line in against_blend.splitlines()[2:]]
    assert names == [f"| {name}" for name in METHODS if name != LATENT_BLEND]
    names = [line.split(" | ")[0] for line in against_estimate.splitlines()]
    assert names == [
        "| compared with estimate alone",
        "| ---",
        *(f"| {network_label(step)}" for step in STEPS),
    ]


@pytest.mark.parametrize("level", [0, 30])
def test_the_estimate_alone_is_one_pass_without_diffusion(every_clip, level, monkeypatch):
    pipeline = make_tiny_pipeline()
    pipeline.register_to_config(interpolation_noise_level=level)
    (prompt,) = sample_prompts(every_clip, 1, 1)
    (real,) = real_videos(every_clip, [prompt], 3 + 2 * INSERTED, 1)
    estimate, passed = pipeline.interpolator.estimate, []

    def noted(*given):
        passed.append(given)
        return estimate(*given)

    monkeypatch.setattr(pipeline.interpolator, "estimate", noted)
    with torch.no_grad():
        found = run_all_methods(pipeline, real[None], prompt, 6.0, [])[ESTIMATE]
        latents = encode_frames(pipeline.vae, real[None])
        ((pairs, seen, levels),) = passed
        new, _ = estimate(pairs, seen, levels)
        expected = decode_latents(pipeline.vae, new)
        keys = latents[:, :: INSERTED + 1]
        decoded = decode_latents(pipeline.vae, keys)
    assert levels.tolist() == [level, level]
    assert torch.equal(pairs, pair_keyframes(keys))
    assert torch.equal(pairs, seen) == (level == 0)
    assert torch.allclose(found[0, [1, 2]], expected[0], atol=1e-5)
    assert torch.allclose(found[0, [4, 5]], expected[1], atol=1e-5)
    assert torch.allclose(found[:, :: INSERTED + 1], decoded, atol=1e-5)


def test_the_pulse_of_real_clips_is_that_of_their_own_changes(pipeline, judge, every_clip):
    found = score(pipeline, judge, every_clip)[REAL].pulse.value
    clips = list(real_videos(every_clip, sample_prompts(every_clip, 2, 1), 3 + 2 * INSERTED, 1))
    changes = torch.stack(clips).diff(dim=1).abs().mean(dim=(0, 2, 3, 4)).tolist()
    # frames 0, 3 and 6 are the keys
    at_keys = [changes[place] for place in (0, 2, 3, 5)]
    elsewhere = [changes[place] for place in (1, 4)]
    assert found == pytest.approx(np.mean(at_keys) / np.mean(elsewhere), rel=1e-5)


def test_the_distance_of_gaps_uses_the_frames_between_key_frames_in_order(
    pipeline, judge, every_clip
):
    found = score(pipeline, judge, every_clip)[PIXEL_BLEND].of_gaps
    prompts = sample_prompts(every_clip, 2, 1)
    made, real = [], []
    for prompt, clip in zip(
        prompts, real_videos(every_clip, prompts, 3 + 2 * INSERTED, 1), strict=True
    ):
        with torch.no_grad():
            filled = run_all_methods(pipeline, clip[None], prompt, 6.0, [])[PIXEL_BLEND][0]
        for video, rows in ((from_uint8(to_uint8(filled)), made), (clip, real)):
            for key in (0, 1 + INSERTED):
                frames = [video[None, key + place, None] for place in range(INSERTED + 2)]
                rows.append(torch.stack([judge.embed_videos(frame)[0] for frame in frames], dim=-1))

    first, second = (
        fit_gaussian(torch.stack(rows).flatten(1).double().numpy()) for rows in (made, real)
    )
    assert found == pytest.approx(frechet_distance(first, second), rel=1e-4)


def test_the_command_fills_its_section(tiny_model, emoji, judge_folder, tmp_path, capsys):
    page = tmp_path / "results.md"
    words = {"--data": emoji, "--model": tiny_model, "--judge": judge_folder, "--output": page}
    options = [str(word) for pair in words.items() for word in pair]
    tried = [word for count in STEPS for word in ("--steps", str(count))]
    tried += ["--noise-level", "0", "--noise-level", "7", "--generated", "2"]
    assert run(["interpolation", *options, "--clips", "3", "--keys", "4", *tried]) == 0
    said = capsys.readouterr().err
    assert "interpolation: 3 of 3" in said
    assert "generated: 2 of 2" in said
    text = page.read_text(encoding="utf-8")
    assert "3 held-out clips of 10 consecutive frames" in text
    assert "those of the 6 inserted frames" in text
    assert "--steps 1 --steps 3 --generated 2 --noise-level 0 --noise-level 7 --seed 0`" in text
    assert "2 held-out captions with the model's default settings, 13 frames each" in text
    assert "decoded to 24 pixels" in text
    assert "the default is 30" in text
    names = [line.split(" | ")[0] for line in text.splitlines() if " | 2 | " in line]
    networks = [f"| interpolation network, noise level {level}" for level in (0, 7)]
    assert names == [*networks, f"| {LATENT_BLEND}", f"| {REAL}"]
    assert f"| model | {hash_folder(tiny_model)} |" in text
    assert text.count("| 3 |") == 2 * len(METHODS) + len(STEPS)


def test_generated_videos_can_be_skipped_and_too_many_are_refused_at_once(
    tiny_model, emoji, judge_folder, tmp_path, capsys
):
    page = tmp_path / "results.md"
    words = {"--data": emoji, "--model": tiny_model, "--judge": judge_folder, "--output": page}
    options = [str(word) for pair in words.items() for word in pair]
    command = ["interpolation", *options, "--clips", "2", "--keys", "2"]
    assert run([*command, "--generated", "4"]) == 2
    said = capsys.readouterr().err
    assert "asks for 4 clips" in said
    assert "interpolation: " not in said
    assert run([*command, "--generated", "0"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "| method | n |" in text
    assert "between generated key frames" not in text


def test_a_model_without_the_network_is_refused(pipeline, judge, every_clip):
    parts = {**pipeline.components, "interpolator": None}
    with pytest.raises(UserError, match="no interpolation network"):
        score(MagicVideoPipeline(**parts), judge, every_clip)
