"""I3D and Inception as TorchScript files, called as the published ones want it.

A TorchScript file is a program: opening one runs what its maker put in. It can read and write no
Python objects, but it can call every operator of torch, so take one only from whom you trust, and
compare the SHA-256 that every result repeats.
"""

import warnings

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from magicvideo.errors import UserError
from magicvideo.evaluate.networks.files import Located

I3D_FEATURES, INCEPTION_FEATURES = 400, 2048
_I3D_SIDE, _I3D_FRAMES = 224, 10


class I3D:
    """I3D trained on Kinetics-400: a clip to 400 logits, before the softmax.

    The file is that of StyleGAN-V (`i3d_torchscript.pt`), whose logits are those of the first FVD.
    Frames are squashed to 224 x 224 by plain bilinear weights without antialiasing, as there.

    Raises:
        UserError: If the file is no TorchScript.
    """

    def __init__(self, located: Located, device: torch.device) -> None:
        self.located, self._device = located, device
        self._network = _load(located, device)

    @torch.inference_mode()
    def features(self, video: Float[Tensor, "f 3 h w"]) -> Float[np.ndarray, " d"]:
        """Return the logits of one clip of pixels in [-1, 1].

        Raises:
            UserError: If it has fewer than 10 frames, or the file is no such network.
        """
        if len(video) < _I3D_FRAMES:
            raise UserError(
                f"I3D needs clips of {_I3D_FRAMES} frames or more, not {len(video)}; ask for more."
            )
        side = (_I3D_SIDE, _I3D_SIDE)
        frames = F.interpolate(video.to(self._device), side, mode="bilinear", align_corners=False)
        clip = rearrange(frames, "f c h w -> 1 c f h w")
        options = {"rescale": False, "resize": False, "return_features": True}
        return _call(self._network, self.located, clip, options)[0]


class Inception:
    """Inception-v3 of FID: frames to 2048 pooled features, and to probabilities of classes.

    The file is NVIDIA's (`inception-2015-12-05.pt`), which resizes as TensorFlow's network did.

    Raises:
        UserError: If the file is no TorchScript.
    """

    def __init__(self, located: Located, device: torch.device) -> None:
        self.located, self._device = located, device
        self._network = _load(located, device)

    @torch.inference_mode()
    def features(self, frames: UInt8[Tensor, "f 3 h w"]) -> Float[np.ndarray, "f d"]:
        """Return the features of frames.

        Raises:
            UserError: If the file is no such network.
        """
        options = {"return_features": True}
        return _call(self._network, self.located, frames.to(self._device), options)

    @torch.inference_mode()
    def probabilities(self, frames: UInt8[Tensor, "f 3 h w"]) -> Float[np.ndarray, "f classes"]:
        """Return the probabilities of classes, without the bias of the last layer, as in the first.

        Raises:
            UserError: If the file is no such network.
        """
        options = {"no_output_bias": True}
        return _call(self._network, self.located, frames.to(self._device), options)


def _load(located: Located, device: torch.device) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            # torch advises against the format, and the published files have no other
            warnings.simplefilter("ignore", DeprecationWarning)
            loaded: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                str(located.path), map_location=device
            )
        return loaded.eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{located.name} is no TorchScript file ({_first_line(error)}); weights alone will not "
            "do here."
        ) from None


def _call(
    network: torch.jit.ScriptModule, located: Located, given: Tensor, options: dict[str, bool]
) -> Float[np.ndarray, "n d"]:
    try:
        found = network(given, **options)
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        raise UserError(
            f"{located.name} cannot be called with {', '.join(options)} ({_first_line(error)}); "
            "docs/evaluation.md names the files that can."
        ) from None
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise UserError(f"{located.name} gives no row of features; name another file.")
    rows: Float[np.ndarray, "n d"] = found.float().cpu().numpy()
    return rows


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
