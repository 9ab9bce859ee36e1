import os
import subprocess
import sys
from pathlib import Path

import compiled_blocks
import pytest
import torch
from networks import FRAMES, SMALL, VIDEOS, make_inputs, make_unet
from torch import nn

from magicvideo.errors import UserError
from magicvideo.models.autoencoder import PatchAutoencoder
from magicvideo.models.conditioning import ConditionedDenoiser, ImageConditioner
from magicvideo.models.upscaler import Upscaler
from magicvideo.models.video_vae import VideoAutoencoderKL
from magicvideo.training.distributed import enable_activation_checkpointing, wrap_units

EMBEDDING = 9


@pytest.fixture
def denoiser():
    return ConditionedDenoiser(
        make_unet(), ImageConditioner(EMBEDDING, SMALL["cross_attention_dim"])
    )


@pytest.fixture
def given():
    latents, timesteps, tokens, fps = make_inputs()
    told = torch.tensor([True, False])
    return latents, timesteps, tokens, torch.randn(VIDEOS, EMBEDDING), told, fps


def passed(network, given):
    """The output, and the gradients of all parameters by name."""
    network.zero_grad()
    output = network(*given)
    output.square().mean().backward()
    return output.detach(), {key: p.grad.clone() for key, p in network.named_parameters()}


def saved_other_bytes(network, given):
    """Bytes that a forward pass saves: tensors other than weights, and the inputs of all layers."""
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address returns
        return tensor

    def note_input(_, args):
        note(args[0])

    layers = [m for m in network.modules() if type(m).__name__ == "ResnetBlock"]
    hooks = [layer.register_forward_pre_hook(note_input) for layer in layers]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(*given)
    for hook in hooks:
        hook.remove()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    return sum(
        tensor.untyped_storage().nbytes() for at, tensor in storages.items() if at not in weights
    )


def assert_close(first, second):
    torch.testing.assert_close(first[0], second[0], atol=1e-6, rtol=1e-5)
    assert first[1].keys() == second[1].keys()
    for key, gradient in first[1].items():
        torch.testing.assert_close(gradient, second[1][key], atol=1e-6, rtol=1e-5, msg=key)


def test_activation_checkpointing_saves_less_and_does_not_change_gradients(denoiser, given):
    plain, before = passed(denoiser, given), saved_other_bytes(denoiser, given)
    enable_activation_checkpointing(denoiser, "keyframes")
    assert_close(passed(denoiser, given), plain)
    assert saved_other_bytes(denoiser, given) < 0.4 * before


def test_activation_checkpointing_of_the_video_decoder_does_not_change_gradients():
    network = VideoAutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        temporal_heads=2,
    )
    code = torch.randn(FRAMES, 4, 5, 6)

    def gradients():
        network.zero_grad()
        network.decode(code, FRAMES).sample.square().mean().backward()
        return {k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}

    def kept():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.nbytes) or t, lambda t: t
        ):
            network.decode(code, FRAMES)
        return sum(sizes)

    plain, before = gradients(), kept()
    enable_activation_checkpointing(network, "video_vae")
    found = gradients()
    assert kept() < 0.5 * before
    assert found.keys() == plain.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-6, rtol=1e-5, msg=key)


def test_a_network_without_checkpointing_support_is_named():
    with pytest.raises(UserError, match="gradient_checkpointing: PatchAutoencoder does not"):
        enable_activation_checkpointing(PatchAutoencoder(), "autoencoder")


def test_blocks_are_levels_and_never_bare_lists(denoiser):
    unet = denoiser.unet
    assert wrap_units(denoiser) == [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    upscaler = Upscaler(widths=(4, 6), num_blocks=(1, 2))
    assert not any(isinstance(block, nn.ModuleList) for block in wrap_units(upscaler))
    assert len(wrap_units(upscaler)) == 1 + 2 + 1  # blocks going down, in the middle, going up
    assert wrap_units(PatchAutoencoder()) == []


def test_a_compiled_network_computes_the_same():
    """The graph is captured and run as it is: whether a compiler for C++ is there is its matter.

    It is captured in a process of its own, where no checks of shapes stand between.
    """
    paths = os.pathsep.join([str(Path(compiled_blocks.__file__).parent), *sys.path])
    answer = subprocess.run(
        [sys.executable, compiled_blocks.__file__],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
