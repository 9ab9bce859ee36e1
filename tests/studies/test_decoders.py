import pytest
import torch

from magicvideo.data.dataset import ClipDataset
from magicvideo.errors import UserError
from magicvideo.evaluation.metrics.image_quality import psnr
from magicvideo.evaluation.prompt_sets import real_videos, sample_prompts
from magicvideo.models.autoencoder import PatchAutoencoder, decode_latents, encode_frames
from magicvideo.models.video_vae import inflate_autoencoder
from studies.__main__ import run
from studies.decoders import compare_decoders

COUNT, FRAMES, STRIDE, NOISE = 3, 5, 2, 0.1


@pytest.fixture
def image(every_clip):
    """The best linear code of the clips."""
    autoencoder = PatchAutoencoder(
        latent_channels=40, patch_size=4, widths=(8, 12), norm_num_groups=4
    ).eval()
    prompts = sample_prompts(every_clip, len(every_clip), seed=1)
    autoencoder.init_from_pca(torch.cat(list(real_videos(every_clip, prompts, 2, 1))))
    return autoencoder


@pytest.fixture
def heldout(emoji):
    return ClipDataset(emoji, ("heldout",))


def compare(first, second, dataset, **changes):
    settings = {"num_frames": FRAMES, "stride": STRIDE, "noise": NOISE, "seed": 4}
    done = []
    found = compare_decoders(
        first, second, dataset, COUNT, **{**settings, **changes}, on_clip=done.append
    )
    assert done == [1, 2, 3]
    return {row.name: row for row in found}


def test_an_untrained_video_decoder_equals_the_frame_decoder(image, heldout):
    found = compare(image, inflate_autoencoder(image, 2, FRAMES), heldout)
    assert list(found) == ["flicker", "temporal error", "psnr"]
    for row in found.values():
        assert row.gain.value == pytest.approx(0 if row.name == "psnr" else 1, abs=1e-4)
        assert row.gain.count == COUNT
        assert row.first > 0


@torch.no_grad()
def test_a_decoder_that_fades_scores_by_its_factor(image, heldout):
    """Half of all colours: half of the changes, and an error that the clips' own values give."""
    faded = inflate_autoencoder(image, 2, FRAMES).eval()
    for part in (faded.decoder_linear.weight, faded.decoder_linear.bias):
        part.mul_(0.5)
    found = compare(image, faded, heldout, noise=0.0)
    clips = list(real_videos(heldout, sample_prompts(heldout, COUNT, 4), FRAMES, STRIDE))
    real = torch.stack(clips)
    made = decode_latents(faded, encode_frames(image, real))
    assert found["psnr"].second == pytest.approx(psnr(made, real).mean().item(), rel=1e-4)
    assert found["psnr"].gain.value == pytest.approx(found["psnr"].second - found["psnr"].first)
    moved = (made.diff(dim=1) - real.diff(dim=1)).abs().mean().item()
    assert found["temporal error"].second == pytest.approx(moved, rel=1e-4)
    # linear codes do not flicker by themselves far from what moves; with noise they do, by half
    noisy = compare(image, faded, heldout, noise=0.02)["flicker"]
    assert noisy.gain.value == pytest.approx(0.5, abs=0.05)
    assert noisy.first > 2 * found["flicker"].first


def test_the_noise_is_the_same_for_both_decoders_and_every_run(image, heldout):
    first, again = (compare(image, image, heldout) for _ in range(2))
    assert first == again
    assert [row.gain.value for row in first.values()] == [1, 1, 0]
    assert compare(image, image, heldout, seed=5) != first


def test_other_encoders_are_refused(image, heldout):
    other = PatchAutoencoder(
        latent_channels=40, patch_size=4, widths=(8, 12), norm_num_groups=4
    ).eval()
    with pytest.raises(UserError, match="encode the same clip differently"):
        compare(image, other, heldout)


def test_the_command_fills_its_section(image, emoji, tmp_path, capsys):
    image.save_pretrained(tmp_path / "image")
    inflate_autoencoder(image, 2, FRAMES).save_pretrained(tmp_path / "video")
    folders = [str(tmp_path / name) for name in ("image", "video")]
    page = tmp_path / "results.md"
    options = ["--data", str(emoji), "--clips", "3", "--frames", "4", "--output", str(page)]
    assert run(["decoders", *folders, *options, "--noise", "0.1"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(page)]
    assert "noise 0.1: 3 of 3" in said.err
    text = page.read_text(encoding="utf-8")
    assert "`python -m studies decoders image video --data data --clips 3" in text
    rows = [line for line in text.splitlines() if line.startswith("| 0.1 |")]
    assert [row.split(" | ")[1] for row in rows] == [
        "flicker, levels",
        "temporal error, levels",
        "PSNR, dB",
    ]
    assert all(row.endswith("| ratio 1.000 [1.000, 1.000] | 3 |") for row in rows[:2])
    assert "| difference " in rows[2]
    assert run(["decoders", *folders, *options]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("\n| 0 |") == text.count("\n| 0.1 |") == 3
    assert text.count("## Decoders") == 1
