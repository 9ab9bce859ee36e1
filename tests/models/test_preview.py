"""The linear map from latents to small frames."""

import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch.nn import functional as F

from magicvideo.errors import UserError
from magicvideo.models.autoencoder import PatchAutoencoder, decode_latents
from magicvideo.models.preview import PREVIEW_FILE, LatentPreview

CHANNELS, PATCH = 5, 8


def autoencoder():
    """An autoencoder whose convolutions are zero, so its decoder is linear."""
    return PatchAutoencoder(
        latent_channels=CHANNELS,
        patch_size=PATCH,
        widths=(8, 8),
        encoder_layers=(1, 1),
        decoder_layers=(1, 1),
        norm_num_groups=4,
    ).eval()


def test_the_map_of_a_linear_decoder_is_that_decoder_at_half_the_size():
    torch.manual_seed(3)
    vae = autoencoder()
    with torch.no_grad():
        vae.decoder_linear.weight.mul_(0.05)  # so that no pixel is clamped
    preview = LatentPreview.fit_to_decoder(vae)
    assert preview.side == 4
    latents = torch.randn(2, 3, CHANNELS, 2, 7)
    shown = preview(latents)
    assert shown.shape == (2, 3, 3, 8, 28)
    frames = decode_latents(vae, latents)
    small = F.avg_pool2d(rearrange(frames, "b f c h w -> (b f) c h w"), 2)
    torch.testing.assert_close(
        rearrange(shown, "b f c h w -> (b f) c h w"), small, atol=2e-3, rtol=0
    )


def test_a_map_fitted_to_real_frames_is_better_than_one_fitted_to_random_latents():
    torch.manual_seed(4)
    frames = F.interpolate(torch.rand(24, 3, 4, 4) * 2 - 1, size=(32, 32), mode="bicubic")
    frames = frames.clamp(-1, 1)
    vae = autoencoder()
    vae.init_from_pca(frames)
    clips = frames[None]
    small = F.interpolate(frames, scale_factor=0.5, mode="area")

    def error(preview):
        code = vae.encode(frames).latent_dist.mean * vae.config.scaling_factor
        return (preview(code[None])[0] - small).square().mean().item()

    with torch.no_grad():
        fitted, drawn = LatentPreview.fit_to_decoder(vae, clips), LatentPreview.fit_to_decoder(vae)
        assert error(fitted) < error(drawn) * 1.01
        assert error(fitted) < 0.2 * small.var().item()


def test_the_preview_map_is_saved_with_the_autoencoder(tmp_path):
    preview = LatentPreview(torch.randn(48, CHANNELS), torch.randn(48))
    assert LatentPreview.load(tmp_path, CHANNELS) is None
    preview.save(tmp_path)
    again = LatentPreview.load(tmp_path, CHANNELS)
    latents = torch.randn(1, 1, CHANNELS, 2, 2)
    assert torch.equal(again(latents), preview(latents))
    with pytest.raises(UserError, match="does not fit latents of 7 channels"):
        LatentPreview.load(tmp_path, 7)


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(48, CHANNELS)},
        {"weight": torch.zeros(48, CHANNELS), "bias": torch.full((48,), torch.nan)},
        {"weight": torch.zeros(40, CHANNELS), "bias": torch.zeros(40)},
        {"weight": torch.zeros(48), "bias": torch.zeros(48)},
        {"weight": torch.zeros(48, CHANNELS), "bias": torch.zeros(())},
    ],
)
def test_damaged_files_are_refused(tmp_path, tensors):
    save_file(tensors, tmp_path / PREVIEW_FILE)
    with pytest.raises(UserError, match="get a new copy"):
        LatentPreview.load(tmp_path, CHANNELS)
