"""Muon and AdamW against those of torch, and the iteration against an SVD."""

import copy

import pytest
import torch

from magicvideo.training.optim import Muon, orthogonalize

SHAPES = [(7, 11), (24, 5), (6, 90), (40, 3), (8, 8)]


def gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_approach_one_and_directions_stay(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices, steps=8)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    # in the basis of the SVD the result is diagonal: only singular values have changed
    rotated = left.mT @ result @ right.mT
    off_diagonal = rotated - torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-3


def test_wide_matrices_give_the_result_of_padded_square_matrices():
    """Both forms of the iteration: on the Gram matrix for wide matrices, plain for others."""
    narrow = torch.randn(1, 9, 10, generator=torch.Generator().manual_seed(2))
    wide = torch.cat([narrow, torch.zeros(1, 9, 50)], dim=2)
    torch.testing.assert_close(
        orthogonalize(wide)[:, :, :10], orthogonalize(narrow), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_matrices_are_updated_as_by_torch_muon(weight_decay):
    ours = [torch.nn.Parameter(torch.randn(s)) for s in SHAPES]
    theirs = copy.deepcopy(ours)
    optimizer = Muon([{"params": ours, "lr": 0.02, "weight_decay": weight_decay, "use_muon": True}])
    reference = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    start = [p.detach().clone() for p in ours]
    for step in range(4):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        reference.step()
    for own, other, before in zip(ours, theirs, start, strict=True):
        # torch iterates in bfloat16, whose 8 bits each iteration multiplies
        moved = (other - before).norm()
        assert (own - other).norm() < 0.05 * moved


def test_other_parameters_are_updated_as_by_torch_adamw():
    ours = [torch.nn.Parameter(torch.randn(s)) for s in [(5,), (3, 4), (2, 3, 4)]]
    theirs = copy.deepcopy(ours)
    group = {"params": ours, "lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}
    optimizer = Muon([group])
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95))
    for step in range(5):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        reference.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-5)


def test_a_kernel_is_updated_as_a_matrix_of_its_rows():
    kernel = torch.nn.Parameter(torch.randn(6, 4, 3, 2))
    matrix = torch.nn.Parameter(kernel.detach().clone().flatten(1))
    optimizer = Muon([{"params": [kernel, matrix], "lr": 0.05, "use_muon": True}])
    for step in range(3):
        gradients([kernel], step)
        assert kernel.grad is not None
        matrix.grad = kernel.grad.flatten(1).clone()
        optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_a_restored_optimizer_continues_exactly():
    parameters = [torch.nn.Parameter(torch.randn(6, 9)), torch.nn.Parameter(torch.randn(9))]

    def build(params):
        return Muon(
            [
                {"params": params[:1], "lr": 0.02, "use_muon": True},
                {"params": params[1:], "lr": 0.01, "weight_decay": 0.1},
            ]
        )

    optimizer = build(parameters)
    for step in range(3):
        gradients(parameters, step)
        optimizer.step()
    copies = copy.deepcopy(parameters)
    restored = build(copies)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        for params, each in ((parameters, optimizer), (copies, restored)):
            gradients(params, step)
            each.step()
    for own, other in zip(parameters, copies, strict=True):
        assert torch.equal(own, other)
