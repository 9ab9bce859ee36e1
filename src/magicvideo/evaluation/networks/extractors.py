"""Feature extractors of FVD, FID and IS, and the files that their weights come from.

A TorchScript file is a program: loading one runs the code in it. It cannot read or write Python
objects, but it can call every operator of torch. Use files from sources that you trust only, and
compare the SHA-256 that every result repeats.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from magicvideo.atomic_io import hash_files, sha256
from magicvideo.errors import UserError
from magicvideo.evaluation.networks.i3d import KineticsI3d
from magicvideo.evaluation.networks.inception import SIDE, FidInception
from magicvideo.pipelines.model_folder import check_keys, read_safetensors_header

HUB = "hub:"
"""What a name must begin with before anything is downloaded."""
CLIP_WEIGHTS = "model.safetensors"
# the configuration and the tokenizer decide what the weights give
_CLIP_FILES = ["*.json", "*.txt", CLIP_WEIGHTS]


@dataclass(frozen=True, kw_only=True)
class ResolvedFile:
    """A network's file or folder on this machine.

    Attributes:
        path: Where it is.
        name: What it is called in results: its own name, or its hub id.
        sha256: Of the file, or of the sums of all files of a folder that its network is read from.
    """

    path: Path
    name: str
    sha256: str


def locate_file(given: str, what: str) -> ResolvedFile:
    """Return the file of a network.

    Args:
        given: A path, or `hub:OWNER/REPOSITORY/FILE`, with `@REVISION` at its end if wanted.
        what: What it should be, for messages.

    Raises:
        UserError: If the file does not exist or the hub does not give it.
    """
    if given.startswith(HUB):
        path = _from_hub(given)
        return ResolvedFile(path=path, name=given, sha256=sha256(path))
    path = Path(given)
    if not path.is_file():
        raise UserError(
            f"{given} is not a file; name the file of {what}, or {HUB}OWNER/REPOSITORY/FILE to "
            "download one."
        )
    return ResolvedFile(path=path, name=path.name, sha256=sha256(path))


def locate_folder(given: str, what: str) -> ResolvedFile:
    """Return the folder of a network in transformers' format, with its weights in safetensors.

    Args:
        given: A path, or `hub:OWNER/REPOSITORY`, with `@REVISION` at its end if wanted.
        what: What it should be, for messages.

    Raises:
        UserError: If the folder does not exist, has no safetensors, or the hub does not give it.
    """
    path = _from_hub(given) if given.startswith(HUB) else Path(given)
    if not (path / CLIP_WEIGHTS).is_file():
        raise UserError(
            f"{given} has no {CLIP_WEIGHTS}; name a folder of {what} in transformers' format, or "
            f"{HUB}OWNER/REPOSITORY to download one."
        )
    name = given if given.startswith(HUB) else path.resolve().name
    return ResolvedFile(path=path, name=name, sha256=hash_files(path, _CLIP_FILES))


def _from_hub(given: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    place, _, revision = given.removeprefix(HUB).partition("@")
    owner, _, rest = place.partition("/")
    repository, _, file = rest.partition("/")
    if not owner or not repository:
        raise UserError(
            f"{given} is not a Hub id; write {HUB}OWNER/REPOSITORY, and /FILE for a file."
        )
    identity, wanted = f"{owner}/{repository}", revision or None
    try:
        if file:
            return Path(hf_hub_download(identity, file, revision=wanted))
        return Path(snapshot_download(identity, revision=wanted, allow_patterns=_CLIP_FILES))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{given} cannot be had from the hub ({reason}); give a path.") from None


SUFFIX = ".safetensors"

_COUNTER = ".num_batches_tracked"  # of training; published files have it or not

Network = TypeVar("Network", bound=nn.Module)
Entry = TypeVar("Entry")


def load_weights(network: Network, located: ResolvedFile) -> Network:
    """Fill a network from a safetensors file, every tensor of both accounted for.

    Args:
        network: Of the architecture that the file should hold; it may be on the meta device.
        located: The file. Half precision becomes single.

    Raises:
        UserError: If the file is not a safetensors file, or a tensor is missing, unknown or of
            another shape.
    """
    stored = _without_counters(read_safetensors_header(located.path))
    expected = _without_counters(network.state_dict())
    check_keys(located.path, stored, {name: tuple(x.shape) for name, x in expected.items()})
    tensors = {name: x.float() for name, x in load_file(located.path).items() if name in expected}
    network.to_empty(device="cpu").load_state_dict(tensors, strict=False)
    return network.eval().requires_grad_(False)


def _without_counters(tensors: dict[str, Entry]) -> dict[str, Entry]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}


def load_script(located: ResolvedFile) -> torch.jit.ScriptModule:
    """Return the program of a file, on the CPU.

    Raises:
        UserError: If the file is not TorchScript.
    """
    try:
        with warnings.catch_warnings():
            # torch advises against the format, and the published files have no other
            warnings.simplefilter("ignore", DeprecationWarning)
            loaded: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                str(located.path), map_location="cpu"
            )
        return loaded.eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{located.name} is not a TorchScript file ({_first_line(error)}), and not named "
            ".safetensors; docs/evaluation.md names the files that can be read."
        ) from None


def call_script(
    script: nn.Module, located: ResolvedFile, given: Tensor, options: dict[str, bool]
) -> Float[Tensor, "n d"]:
    """Return the output of a program: one row for each entry.

    Raises:
        UserError: If it takes no such options, or gives something else.
    """
    try:
        found = script(given, **options)
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        raise UserError(
            f"{located.name} cannot be called with {', '.join(options)} ({_first_line(error)}); "
            "docs/evaluation.md names the files that can."
        ) from None
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise UserError(f"{located.name} gives no row of features; name another file.")
    return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


I3D_FEATURES, INCEPTION_FEATURES = 400, 2048
_I3D_SIDE, _I3D_FRAMES = 224, 10


class _Extractor:
    """A network out of a file; the suffix `.safetensors` distinguishes weights from a program.

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
            UserError: If it has fewer than 10 frames, or the file is not such a network.
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
            UserError: If the file is not such a network.
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
