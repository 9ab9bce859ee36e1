import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from networks import randomise

from magicvideo.models.attention import SpatialTransformer

# diffusers warns of an import that it makes itself
pytestmark = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput`:FutureWarning")

VIDEOS, FRAMES, CHANNELS, HEADS, TOKENS, WIDTH_OF_TOKENS = 2, 3, 12, 4, 5, 7


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("linear", [False, True])
def test_equals_diffusers_frame_by_frame(linear, order):
    reference = randomise(
        Transformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=CHANNELS // HEADS,
            in_channels=CHANNELS,
            norm_num_groups=6,
            cross_attention_dim=WIDTH_OF_TOKENS,
            use_linear_projection=linear,
        )
    )
    ours = SpatialTransformer(
        CHANNELS, HEADS, WIDTH_OF_TOKENS, num_groups=6, linear_projection=linear
    )
    ours.load_state_dict(reference.state_dict())
    ours.to(memory_format=order)
    x = torch.randn(VIDEOS * FRAMES, CHANNELS, 9, 8)
    tokens = torch.randn(VIDEOS, TOKENS, WIDTH_OF_TOKENS)
    expected = reference(x, tokens.repeat_interleave(FRAMES, dim=0)).sample
    assert (expected - x).std() > 0.1
    given = x.contiguous(memory_format=order)
    torch.testing.assert_close(ours(given, tokens, FRAMES), expected, atol=1e-5, rtol=1e-5)
