"""The legend of axis letters, held to in every signature, and the aliases of the common tensors.

b  videos in a batch          f  frames of a video        n  frames of all videos, "(b f)"
c  channels                   h  height                   w  width
l  tokens of a condition      d  width of a token         p  positions of a frame, "(h w)"
g  gaps between key frames    k  new frames in a gap

`Frames` are pixels in [-1, 1]; their sides have long names, since those of latents differ.
`Latents` are what the denoiser sees: the autoencoder's code times its scaling factor, so that their
standard deviation is about 1. Inside a network frames are folded into the batch, which in this axis
order is a view.
"""

from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

Frames: TypeAlias = Float[Tensor, "b f rgb height width"]
Latents: TypeAlias = Float[Tensor, "b f c h w"]
Tokens: TypeAlias = Float[Tensor, "b l d"]
FoldedFrames: TypeAlias = Float[Tensor, "n c h w"]
