"""I3D and Inception out of a file: the published TorchScript, or their weights as safetensors."""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from magicvideo.errors import UserError
from magicvideo.evaluation.networks.files import ResolvedFile
from magicvideo.evaluation.networks.i3d import KineticsI3d
from magicvideo.evaluation.networks.inception import SIDE, FidInception
from magicvideo.evaluation.networks.torchscript import call_script, load_script
from magicvideo.evaluation.networks.weights import SUFFIX, load_weights

I3D_FEATURES, INCEPTION_FEATURES = 400, 2048
_I3D_SIDE, _I3D_FRAMES = 224, 10


class _Extractor:
    """A network out of a file; the suffix `.safetensors` tells weights from a program.

    Raises:
        UserError: If the file holds no such network.
    """

    def __init__(self, located: ResolvedFile, device: torch.device, own: type[nn.Module]) -> None:
        self.located, self._device = located, device
        network: nn.Module
        if located.path.suffix == SUFFIX:
            with torch.device("meta"):
                network = own()
            load_weights(network, located)
        else:
            network = load_script(located)
        self._network = network.to(device)

    def _call(self, given: Tensor, options: dict[str, bool]) -> Float[Tensor, "n d"]:
        """Call a program."""
        return call_script(self._network, self.located, given, options)


class I3D(_Extractor):
    """I3D trained on Kinetics-400: a clip to 400 logits, before the softmax.

    The program is that of StyleGAN-V (`i3d_torchscript.pt`), whose logits are those of the first
    FVD. Frames are squashed to 224 x 224 by plain bilinear weights without antialiasing, as there.

    Attributes:
        layer: What the features are, as results say it.
        resizing: How frames are brought to the network's size, as results say it.
    """

    feature_layer = "logits before the softmax"
    resizing = f"all of a frame to {_I3D_SIDE} x {_I3D_SIDE}, bilinear, no antialiasing, in floats"

    def __init__(self, located: ResolvedFile, device: torch.device) -> None:
        super().__init__(located, device, KineticsI3d)

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
        if isinstance(self._network, KineticsI3d):
            return _as_rows(self._network(clip))[0]
        options = {"rescale": False, "resize": False, "return_features": True}
        return _as_rows(self._call(clip, options))[0]


class Inception(_Extractor):
    """Inception-v3 of FID: frames to 2048 pooled features, and to probabilities of classes.

    The program is NVIDIA's (`inception-2015-12-05.pt`). Both it and the network of ours resize as
    TensorFlow's did.

    Attributes:
        layer: What the features are, as results say it.
    """

    feature_layer = "pooled features"

    def __init__(self, located: ResolvedFile, device: torch.device) -> None:
        super().__init__(located, device, FidInception)

    @property
    def resizing(self) -> str:
        """How frames are brought to the network's size, as results say it."""
        if isinstance(self._network, FidInception):
            return f"all of a frame to {SIDE} x {SIDE}, bilinear as TensorFlow 1, in floats"
        return "by the program itself"

    @torch.inference_mode()
    def extract(
        self, frames: UInt8[Tensor, "f 3 h w"]
    ) -> tuple[Float[np.ndarray, "f d"], Float[np.ndarray, "f classes"]]:
        """Return the features of frames, and the probabilities of classes.

        These are without the bias of the last layer, as in the first Inception Score.

        Raises:
            UserError: If the file is no such network.
        """
        given = frames.to(self._device)
        if isinstance(self._network, FidInception):
            features, probabilities = self._network(given)
        else:
            features = self._call(given, {"return_features": True})
            probabilities = self._call(given, {"no_output_bias": True})
        return _as_rows(features), _as_rows(probabilities)


def _as_rows(found: Float[Tensor, "n d"]) -> Float[np.ndarray, "n d"]:
    rows: Float[np.ndarray, "n d"] = found.float().cpu().numpy()
    return rows
