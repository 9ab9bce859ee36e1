"""The video decoders against diffusers' decoder, and against the formula with torch's attention."""

import pytest
import torch
from diffusers import AutoencoderKL
from networks import randomise

from magicvideo.models.video_vae import inflate_autoencoder

FRAMES, CHANNELS, HEADS, HEIGHT, WIDTH = 5, 3, 2, 4, 7


@pytest.mark.parametrize("convolved", [True, False])
@pytest.mark.parametrize("attends", [True, False])
@torch.no_grad()
def test_equals_the_decoder_of_diffusers(convolved, attends):
    image = randomise(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(4, 8, 12),
            layers_per_block=2,
            latent_channels=CHANNELS,
            norm_num_groups=2,
            use_post_quant_conv=convolved,
            mid_block_add_attention=attends,
        )
    )
    # double precision, where equal means equal
    video = inflate_autoencoder(image, HEADS, FRAMES).double()
    image.double()
    code = torch.randn(FRAMES, CHANNELS, HEIGHT, WIDTH, dtype=torch.double)
    expected = image.decode(code).sample
    torch.testing.assert_close(video.decode(code, FRAMES).sample, expected, atol=1e-13, rtol=0)
    assert expected.std() > 0.1

    # and with layers that are not silent: the same, where diffusers' blocks are told to add them
    for layer in (video.temporal_mid, video.temporal_up):
        randomise(layer)
    places = (image.decoder.mid_block, image.decoder.up_blocks[0])
    for place, layer in zip(places, (video.temporal_mid, video.temporal_up), strict=True):
        place.register_forward_hook(lambda _, __, x, layer=layer: x + by_torch(layer, x))
    made = video.decode(code, FRAMES).sample
    torch.testing.assert_close(made, image.decode(code).sample, atol=1e-13, rtol=0)
    assert (made - expected).abs().max() > 0.01


def by_torch(layer, x):
    """Directed attention of one video, by torch's own module."""
    frames, channels, height, width = x.shape
    attention = torch.nn.MultiheadAttention(channels, layer.num_heads, batch_first=True).double()
    attention.in_proj_weight.copy_(layer.to_qkv.weight)
    attention.in_proj_bias.zero_()
    attention.out_proj.load_state_dict(layer.to_out.state_dict())
    tracks = layer.norm(x.permute(2, 3, 0, 1).reshape(height * width, frames, channels))
    later = torch.ones(frames, frames, dtype=torch.bool).triu(1)
    mixed, _ = attention(tracks, tracks, tracks, attn_mask=later)
    return mixed.view(height, width, frames, channels).permute(2, 3, 0, 1)
