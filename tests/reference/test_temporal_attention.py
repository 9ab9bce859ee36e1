import pytest
import torch
from networks import randomise

from magicvideo.models.temporal_attention import DirectedTemporalAttention

VIDEOS, FRAMES, CHANNELS, HEADS, HEIGHT, WIDTH = 2, 5, 6, 2, 3, 7


def make(mode):
    attention = randomise(DirectedTemporalAttention(CHANNELS, HEADS, mode))
    return attention, torch.randn(VIDEOS * FRAMES, CHANNELS, HEIGHT, WIDTH)


def by_position(x):
    """Yield the sequences `b f c` of a feature map with their positions."""
    videos = x.view(VIDEOS, FRAMES, CHANNELS, HEIGHT, WIDTH)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            yield (row, column), videos[..., row, column]


@pytest.mark.parametrize("mode", ["directed", "bidirectional"])
def test_matches_torch_at_every_position(mode):
    attention, x = make(mode)
    reference = torch.nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)
    reference.in_proj_weight.data.copy_(attention.to_qkv.weight)
    reference.in_proj_bias.data.zero_()
    reference.out_proj.load_state_dict(attention.to_out.state_dict())
    later = torch.ones(FRAMES, FRAMES, dtype=torch.bool).triu(1) if mode == "directed" else None
    tracks = dict(by_position(x))
    for position, update in by_position(attention(x, FRAMES).contiguous()):
        track = attention.norm(tracks[position])
        expected, _ = reference(track, track, track, attn_mask=later)
        torch.testing.assert_close(update, expected)


def test_post_softmax_mask_equals_the_reported_formula():
    attention, x = make("post_softmax_mask")
    tracks, width = dict(by_position(x)), CHANNELS // HEADS
    for position, update in by_position(attention(x, FRAMES).contiguous()):
        projected = attention.to_qkv(attention.norm(tracks[position]))
        q, k, v = projected.view(VIDEOS, FRAMES, 3, HEADS, width).unbind(dim=2)
        weights = (torch.einsum("bfnd,bgnd->bnfg", q, k) / width**0.5).softmax(dim=-1)
        weights = weights * torch.ones(FRAMES, FRAMES).tril()
        mixed = torch.einsum("bnfg,bgnd->bfnd", weights, v).reshape(VIDEOS, FRAMES, CHANNELS)
        torch.testing.assert_close(update, attention.to_out(mixed))
