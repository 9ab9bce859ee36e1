"""Extract the image network of a video network, as diffusers' `UNet2DConditionModel`."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from magicvideo.atomic_io import atomic_folder
from magicvideo.convert.stable_diffusion import SHARED_UNET_CONFIG
from magicvideo.errors import UserError
from magicvideo.models.adaptor import FrameAdaptor
from magicvideo.models.blocks import SpatioTemporalTransformer
from magicvideo.models.inflate import is_temporal_key
from magicvideo.models.unet import VideoUNet
from magicvideo.pipelines.component_loading import load_component
from magicvideo.pipelines.model_folder import verify_model_folder
from magicvideo.pipelines.request import USUAL_DEFAULTS, GenerationSettings

# the convolution before each adaptor, by name of the adaptor
_CONVOLUTIONS = {
    "adaptor1": "conv1",
    "adaptor2": "conv2",
    "adaptor": "conv",
    "conv_in_adaptor": "conv_in",
    "conv_out_adaptor": "conv_out",
}


@dataclass(frozen=True)
class ExtractionReport:
    """Treatment of the layers that only the video network has.

    Attributes:
        folded: Number of adaptors folded into the preceding convolution, exactly.
        scaled_residuals: Adaptors of spatial transformers whose scale is not 1. They also scale a
            residual connection, which an image network cannot represent.
        largest: Maximal distance of such a scale from 1.
        left_out: Number of omitted temporal attention layers.
    """

    folded: int
    scaled_residuals: int
    largest: float
    left_out: int


def export_image_model(model: Path, output: Path, *, half: bool) -> ExtractionReport:
    """Write the image network of a video model for diffusers.

    Args:
        model: A model folder.
        output: The folder to create.
        half: Whether to store weights in float16.

    Raises:
        UserError: If the model is damaged, the output exists, or a weight exceeds the range of
            float16.
    """
    if output.exists():
        raise UserError(f"{output} exists; remove it or choose another folder.")
    index = verify_model_folder(model)
    fps = GenerationSettings(**index.generation_defaults).over(USUAL_DEFAULTS).fps
    assert fps is not None
    unet = load_component(model, "unet", "VideoUNet", torch.float32)
    image, extraction = extract_image_unet(unet, fps)
    if half:
        image.half()
        broken = [name for name, x in image.state_dict().items() if not x.isfinite().all()]
        if broken:
            raise UserError(
                f"{broken[0]} exceeds the range of float16; export with --precision fp32."
            )
    with atomic_folder(output) as partial:
        image.save_pretrained(partial)
    return extraction


@torch.no_grad()
def extract_image_unet(
    unet: VideoUNet, fps: float
) -> tuple[UNet2DConditionModel, ExtractionReport]:
    """Extract the spatial part of a video network, for its first frame.

    It equals the video network for a single frame without temporal attention: the first frame's
    adaptors are folded into the preceding convolutions, and the embedding of the frame rate, a
    constant, into the bias of the time embedding. The scale of a spatial transformer's adaptor also
    applies to a residual connection, where it cannot be folded; it is then applied only to the
    transformer's update.

    Args:
        unet: The video network, which is not changed.
        fps: Frame rate of the folded embedding.

    Raises:
        UserError: If the network is an ablation without equivalent image network in diffusers.
    """
    if unet.config.convolutions != "2d" or not unet.config.spatial_attention:
        raise UserError(
            "This model's denoiser has convolutions along time or no attention inside a frame, "
            "which diffusers' image network does not support; use a model without them."
        )
    state = {
        name: tensor.clone()
        for name, tensor in unet.state_dict().items()
        if not is_temporal_key(name)
    }
    rate = unet.time_proj(torch.tensor([fps])).to(unet.conv_in.weight)
    state["time_embedding.linear_2.bias"] += unet.fps_embedding(rate)[0]
    folded, distances = 0, []
    for name, module in unet.named_modules():
        if not isinstance(module, FrameAdaptor):
            continue
        block, _, own = name.rpartition(".")
        place = f"{block}." if block else ""
        if isinstance(unet.get_submodule(block), SpatioTemporalTransformer):
            _fold(state, f"{place}proj_out", module.scale[0], module.shift[0])
            distances.append(float((module.scale[0] - 1).abs().max()))
        else:
            _fold(state, f"{place}{_CONVOLUTIONS[own]}", module.scale[0], module.shift[0])
            folded += 1
    config = {name: unet.config[name] for name in (*SHARED_UNET_CONFIG, "sample_size")}
    with torch.device("meta"):
        image = UNet2DConditionModel(**config)
    image.load_state_dict(state, strict=True, assign=True)
    scaled = [distance for distance in distances if distance > 0]
    return image.eval(), ExtractionReport(
        folded=folded + len(distances) - len(scaled),
        scaled_residuals=len(scaled),
        largest=max(scaled, default=0.0),
        left_out=sum(
            isinstance(module, SpatioTemporalTransformer) and module.temporal is not None
            for module in unet.modules()
        ),
    )


def _fold(
    state: dict[str, Tensor], layer: str, scale: Float[Tensor, "c"], shift: Float[Tensor, "c"]
) -> None:
    """Change a layer to compute scale * layer(x) + shift."""
    weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
    weight *= scale.reshape(-1, *[1] * (weight.ndim - 1))
    bias.mul_(scale).add_(shift)
