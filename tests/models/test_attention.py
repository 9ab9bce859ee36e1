"""The fused attention of all layers."""

import pytest
import torch

from magicvideo.models.attention import scaled_dot_product_attention


def drawn(*, dtype):
    torch.manual_seed(5)
    return [torch.randn(2, 3, rows, 8, dtype=dtype, requires_grad=True) for rows in (5, 7, 7)]


def by_hand(q, k, v, visible):
    scores = (q @ k.mT) / q.shape[-1] ** 0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(dim=-1) @ v


@pytest.mark.parametrize("masked", [False, True])
def test_is_the_softmax_of_the_paper(masked):
    q, k, v = drawn(dtype=torch.float64)
    visible = torch.ones(5, 7, dtype=torch.bool).tril(2) if masked else None
    torch.testing.assert_close(
        scaled_dot_product_attention(q, k, v, visible=visible), by_hand(q, k, v, visible)
    )


def test_half_precision_keeps_its_dtype_and_adds_no_error_beyond_the_inputs():
    q, k, v = drawn(dtype=torch.bfloat16)
    found = scaled_dot_product_attention(q, k, v)
    assert found.dtype == torch.bfloat16
    exact = by_hand(q.double(), k.double(), v.double(), None)
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=2**-8)
    found.sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.bfloat16
