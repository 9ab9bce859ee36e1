import pytest
import torch
from networks import randomise
from torch.nn import functional as F

from magicvideo.models.attention import SpatialTransformer
from magicvideo.models.blocks import (
    BlockConfig,
    BlockContext,
    Resample,
    ResnetBlock,
    SpatioTemporalTransformer,
)

VIDEOS, FRAMES, HEIGHT, WIDTH = 2, 3, 5, 7
SETTINGS = BlockConfig(
    time_embed_dim=13,
    cross_attention_dim=9,
    num_groups=2,
    linear_projection=False,
    num_frames=4,
    temporal_attention="directed",
    frame_adaptor=True,
)
GIVEN_TIME, TOKENS = torch.randn(VIDEOS, 13), torch.randn(VIDEOS, 11, 9)


def features(channels):
    return torch.randn(VIDEOS * FRAMES, channels, HEIGHT, WIDTH)


def adapt(adaptor, x):
    """Scale and shift written out, for videos folded into the batch."""
    frames = torch.arange(VIDEOS * FRAMES) % FRAMES
    return x * adaptor.scale[frames][..., None, None] + adaptor.shift[frames][..., None, None]


@pytest.mark.parametrize("out_channels", [6, 8])
@torch.no_grad()
def test_a_residual_block_equals_its_formula(out_channels):
    block, x = randomise(ResnetBlock(6, out_channels, SETTINGS)), features(6)
    assert (block.conv_shortcut is None) == (out_channels == 6)
    h = F.conv2d(F.silu(block.norm1(x)), block.conv1.weight, block.conv1.bias, padding=1)
    time = block.time_emb_proj(GIVEN_TIME).repeat_interleave(FRAMES, dim=0)
    h = adapt(block.adaptor1, h) + time[..., None, None]
    h = F.conv2d(F.silu(block.norm2(h)), block.conv2.weight, block.conv2.bias, padding=1)
    expected = adapt(block.adaptor2, h) + (block.conv_shortcut or torch.nn.Identity())(x)
    made = block(x, BlockContext(GIVEN_TIME, TOKENS, FRAMES))
    torch.testing.assert_close(made, expected)


@torch.no_grad()
def test_both_attentions_read_the_same_features_and_are_summed():
    """Figure 3b: side by side, not one after the other."""
    block, x = randomise(SpatioTemporalTransformer(8, 4, SETTINGS)), features(8)
    spatial = SpatialTransformer(8, 4, 9, num_groups=2, linear_projection=False)
    spatial.load_state_dict({name: block.state_dict()[name] for name in spatial.state_dict()})
    expected = adapt(block.adaptor, spatial(x, TOKENS, FRAMES)) + block.temporal(x, FRAMES)
    torch.testing.assert_close(block(x, BlockContext(GIVEN_TIME, TOKENS, FRAMES)), expected)


@pytest.mark.parametrize(("stride", "side"), [(1, (5, 7)), (2, (3, 4))])
@torch.no_grad()
def test_resampling_is_a_convolution_with_its_adaptor(stride, side):
    layer, x = randomise(Resample(6, SETTINGS, stride=stride)), features(6)
    expected = F.conv2d(x, layer.conv.weight, layer.conv.bias, stride=stride, padding=1)
    made = layer(x, BlockContext(GIVEN_TIME, TOKENS, FRAMES))
    assert made.shape[-2:] == side
    torch.testing.assert_close(made, adapt(layer.adaptor, expected))
