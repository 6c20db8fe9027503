"""open_clip's blocks give the same with gradients, where they are run in our own way."""

import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock

from adu.models.blocks import run_block


@pytest.fixture(params=[None, 0.1], ids=["plain", "layer scale"])
def block(request):
    torch.manual_seed(0)
    block = ResidualAttentionBlock(16, n_head=4, ls_init_value=request.param)
    return block.eval().requires_grad_(False)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_read", [None, 1, 3])
def test_with_gradients_it_gives_what_the_block_gives(block, masked, n_read):
    tokens_BTW = torch.randn(2, 5, 16, dtype=torch.float32, requires_grad=True)
    mask_TT = torch.full((5, 5), float("-inf")).triu(1) if masked else None
    ours = run_block(block, tokens_BTW, mask_TT, n_read)
    theirs = block(tokens_BTW, attn_mask=mask_TT)[:, :n_read]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    direction = torch.randn_like(ours)
    (ours_grad,) = torch.autograd.grad(ours, tokens_BTW, direction)
    (theirs_grad,) = torch.autograd.grad(theirs, tokens_BTW, direction)
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_read", [None, 1, 3])
def test_in_bf16_it_gives_nearly_what_the_block_gives_in_fp32(block, masked, n_read):
    """The products of attention are our own there: scale, mask, softmax and gradient are right."""
    tokens_BTW = torch.randn(2, 5, 16, requires_grad=True)
    mask_TT = torch.full((5, 5), float("-inf")).triu(1) if masked else None
    with torch.autocast("cpu", torch.bfloat16):
        ours = run_block(block, tokens_BTW, mask_TT, n_read)
    theirs = block(tokens_BTW, attn_mask=mask_TT)[:, :n_read]
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02, check_dtype=False)
    direction = torch.randn_like(theirs)
    (ours_grad,) = torch.autograd.grad(ours, tokens_BTW, direction.to(ours.dtype))
    (theirs_grad,) = torch.autograd.grad(theirs, tokens_BTW, direction)
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=0.03, atol=0.03)


def test_without_gradients_it_is_the_block_itself(block):
    tokens_BTW = torch.randn(2, 5, 16)
    with torch.no_grad():
        assert torch.equal(run_block(block, tokens_BTW), block(tokens_BTW))
        assert torch.equal(run_block(block, tokens_BTW, n_read=2), block(tokens_BTW)[:, :2])


def test_a_block_that_attends_in_another_way_is_left_alone():
    class Doubling(ResidualAttentionBlock):
        def attention(self, q_x, **_):
            return 2 * q_x

    block = Doubling(16, n_head=4).eval()
    tokens_BTW = torch.randn(2, 5, 16, requires_grad=True)
    assert torch.equal(run_block(block, tokens_BTW), block(tokens_BTW))
