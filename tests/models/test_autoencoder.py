import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from networks import randomise

from magicvideo.models.autoencoder import (
    PatchAutoencoder,
    decode_latents,
    encode_frames,
    vae_scale_factor,
)
from magicvideo.rng import StackedGenerator

VIDEOS, FRAMES, PATCH, CHANNELS = 2, 5, 6, 4
HEIGHT, WIDTH = 2 * PATCH, 3 * PATCH


def make_patch(**changes):
    config = {
        "latent_channels": CHANNELS,
        "patch_size": PATCH,
        "widths": (6, 10),
        "encoder_layers": (1, 2),
        "decoder_layers": (2, 1),
        "norm_num_groups": 2,
        "scaling_factor": 0.7,
    }
    return PatchAutoencoder(**{**config, **changes})


def make_kl():
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 6),
        latent_channels=CHANNELS,
        norm_num_groups=2,
        scaling_factor=0.7,
    )


def pixels():
    return torch.rand(VIDEOS, FRAMES, 3, HEIGHT, WIDTH) * 2 - 1


@pytest.fixture(params=[make_patch, make_kl], ids=["patch", "kl"])
def autoencoder(request):
    return randomise(request.param())


def patches_of(frames):
    """Patches as rows, in the order of slices: frames `n c h w` -> patches, values."""
    corners = [(top, left) for top in range(0, HEIGHT, PATCH) for left in range(0, WIDTH, PATCH)]
    return np.stack(
        [
            frame[:, top : top + PATCH, left : left + PATCH].reshape(-1)
            for frame in frames.numpy().astype(np.float64)
            for top, left in corners
        ]
    )


@torch.no_grad()
def test_starts_at_the_principal_components():
    """The reconstruction equals the one by singular vectors in numpy."""
    # colours that add up leave a mean patch without a pattern, which the bias holds exactly
    half = torch.randn(7, 3, HEIGHT, WIDTH).cumsum(-1)
    colour = torch.tensor([0.4, -0.2, 0.1])[:, None, None]
    frames = torch.cat([half, -half]) + colour
    network = make_patch()
    network.init_from_pca(frames)

    patches = patches_of(frames)
    mean = patches.mean(axis=0)
    vectors = np.linalg.svd(patches - mean, full_matrices=False)[2][:CHANNELS]
    codes = (patches - mean) @ vectors.T
    expected = codes @ vectors + mean

    latents = encode_frames(network, frames[None])
    made = network.decode(latents[0] / network.config.scaling_factor).sample
    np.testing.assert_allclose(patches_of(made), expected, atol=1e-4)
    assert 0.1 < ((expected - patches) ** 2).mean() < 0.5 * patches.var()
    assert network.config.scaling_factor == pytest.approx(codes.std() ** -1, rel=1e-5)
    assert latents.square().mean().sqrt() == pytest.approx(1, rel=1e-4)


@torch.no_grad()
def test_the_pca_initialisation_is_deterministic():
    frames = pixels()
    first, second = make_patch(), make_patch()
    first.init_from_pca(frames.flatten(0, 1))
    second.init_from_pca(frames.flatten(0, 1).flip(0))
    torch.testing.assert_close(
        encode_frames(first, frames), encode_frames(second, frames), atol=1e-4, rtol=0
    )
    # of the two signs that a component may have, the one whose values add up to more than nothing
    assert first.encoder_linear.weight.sum(dim=(1, 2, 3)).min() > 0


@torch.no_grad()
def test_latents_are_the_scaled_mode_of_the_posterior(autoencoder):
    frames = pixels()
    latents = encode_frames(autoencoder, frames)
    for video in range(VIDEOS):
        mode = autoencoder.encode(frames[video]).latent_dist.mode()
        torch.testing.assert_close(latents[video], mode * 0.7, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_generator_samples_the_posterior(autoencoder):
    frames = pixels()
    first, again, other = (
        encode_frames(autoencoder, frames, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3


@torch.no_grad()
def test_the_noise_is_relative_to_the_scale_of_the_latents():
    network = randomise(make_patch(noise_std=0.3, scaling_factor=0.02))
    frames = torch.rand(3, 7, 3, 8 * PATCH, 9 * PATCH)
    noise = encode_frames(network, frames, torch.Generator().manual_seed(0))
    noise = noise - encode_frames(network, frames)
    assert noise.std() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("chunk", [1, 3, 16])
@torch.no_grad()
def test_frames_are_decoded_one_by_one_or_together(autoencoder, chunk):
    latents = encode_frames(autoencoder, pixels()) * 0.3
    frames = decode_latents(autoencoder, latents, chunk)
    assert frames.abs().max() <= 1
    for video in range(VIDEOS):
        alone = autoencoder.decode(latents[video] / 0.7).sample.clamp(-1, 1)
        torch.testing.assert_close(frames[video], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pixels_are_clamped(autoencoder):
    latents = encode_frames(autoencoder, pixels()) * 100
    frames = decode_latents(autoencoder, latents)
    assert frames.min() == -1
    assert frames.max() == 1


@torch.no_grad()
def test_the_factor_is_the_ratio_of_the_sides(autoencoder):
    latents = encode_frames(autoencoder, pixels())
    factor = vae_scale_factor(autoencoder)
    sides = (HEIGHT // factor, WIDTH // factor)
    assert latents.shape == (VIDEOS, FRAMES, CHANNELS, *sides)
    assert decode_latents(autoencoder, latents).shape == (VIDEOS, FRAMES, 3, HEIGHT, WIDTH)


@torch.no_grad()
@pytest.mark.parametrize("in_half", [True, False])
def test_latents_and_frames_stay_in_float32_where_the_network_works_in_bfloat16(
    autoencoder, in_half
):
    frames = pixels()
    exact = encode_frames(autoencoder, frames)
    network = autoencoder.to(torch.bfloat16) if in_half else autoencoder
    with torch.autocast("cpu", torch.bfloat16, enabled=not in_half):
        latents = encode_frames(network, frames)
        made = decode_latents(network, latents)
    assert latents.dtype == made.dtype == torch.float32
    assert 0 < (latents - exact).abs().mean() < 0.02 * exact.abs().mean()


@torch.no_grad()
def test_the_convolutions_correct_the_linear_code():
    """Encoder and decoder: linear part plus convolutions, which see the code at unit scale."""
    network, x = randomise(make_patch()), pixels()[0]
    code = network.encode(x).latent_dist.mode()
    torch.testing.assert_close(code, network.encoder_linear(x) + network.encoder(x))
    expected = network.decoder_linear(code) + network.decoder(code * 0.7)
    torch.testing.assert_close(network.decode(code).sample, expected)


def test_training_starts_at_the_linear_code_and_moves_the_convolutions():
    network, frames = make_patch(), pixels()[0]
    network.init_from_pca(frames)
    code = network.encode(frames).latent_dist.mode()
    torch.testing.assert_close(code, network.encoder_linear(frames))
    torch.testing.assert_close(network.decode(code).sample, network.decoder_linear(code))
    made, mean = network(frames, StackedGenerator([torch.Generator().manual_seed(0)]))
    assert torch.equal(mean, code)
    (made - frames).square().mean().backward()
    assert network.encoder[-1].weight.grad.abs().max() > 0
    assert network.decoder[-2].weight.grad.abs().max() > 0


@torch.no_grad()
def test_the_forward_pass_decodes_a_sample():
    network, frames = randomise(make_patch(noise_std=0.5)), pixels()[0]
    made, mean = network(frames, StackedGenerator([torch.Generator().manual_seed(3)]))
    code = network.encode(frames).latent_dist.sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(made, network.decode(code).sample)
    assert (code - mean).abs().max() > 0.1


def test_comes_back_from_a_folder_with_its_scale(tmp_path):
    network, frames = make_patch(), pixels()
    network.init_from_pca(frames.flatten(0, 1))
    network.save_pretrained(tmp_path)
    again = PatchAutoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(encode_frames(again, frames), encode_frames(network, frames))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 7}, "patch_size=7 is odd"),
        ({"noise_std": 0.0}, "noise_std=0.0 must be above zero"),
    ],
)
def test_errors_name_the_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        make_patch(**changes)
