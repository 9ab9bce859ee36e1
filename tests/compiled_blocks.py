"""A script: the video U-Net, compiled block by block, computes the same as before."""

import torch
from networks import make_inputs, make_unet

from magicvideo.training.distributed import compile_blocks


def main() -> None:
    torch.manual_seed(0)
    network, given = make_unet(), make_inputs()

    def passed():
        network.zero_grad()
        output = network(*given).sample
        output.square().mean().backward()
        return [output.detach(), *(p.grad.clone() for p in network.parameters())]

    plain, names = passed(), list(network.state_dict())
    compile_blocks(network, backend="eager")
    for before, after in zip(plain, passed(), strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert list(network.state_dict()) == names


if __name__ == "__main__":
    main()
