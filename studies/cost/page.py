"""The page with the cost of networks and convolutions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import nn

from magicvideo.models.adaptor import FrameAdaptor
from magicvideo.models.blocks import ConvType
from magicvideo.models.flops import FlopCounts, count_flops, count_parameters, profile_forward
from magicvideo.training.resolve import PRESETS
from studies.cost.networks import (
    FLOOR,
    NETWORKS,
    OURS,
    PAPER,
    Workload,
    make_inputs,
)
from studies.cost.vdm import LARGE, LARGE_128, SMALL, VdmSettings, VdmUNet

Kind: TypeAlias = Literal["2D", "2D + adaptor", "2+1D", "3D"]
_CONVOLUTIONS: Mapping[Kind, ConvType] = {
    "2D": "2d",
    "2D + adaptor": "2d",
    "2+1D": "2+1d",
    "3D": "3d",
}


@dataclass(frozen=True)
class ConvolutionCost:
    """The cost of a network with one kind of 3x3 convolution.

    Attributes:
        kind: The kind of convolution.
        kernel_parameters: Parameters of these convolutions and their adaptors.
        kernel_flops: FLOPs of the same.
        parameters: Parameters of the whole network.
        flops: FLOPs of the whole network.
    """

    kind: Kind
    kernel_parameters: int
    kernel_flops: int
    parameters: int
    flops: int


def cost_of(kind: Kind, work: Workload) -> ConvolutionCost:
    """Return the cost of our network with one kind of convolution and unchanged attention.

    The network is built on the meta device.
    """
    config = {
        **work.config,
        "frame_adaptor": kind == "2D + adaptor",
        "convolutions": _CONVOLUTIONS[kind],
    }
    network = NETWORKS[OURS].build(replace(work, config=config))
    places = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    adaptors = [module for module in network.modules() if isinstance(module, FrameAdaptor)]
    # the counter counts only matrix products and convolutions, so adaptors are added here
    adaptor_flops: list[int] = []
    for adaptor in adaptors:
        adaptor.register_forward_hook(lambda _, __, made: adaptor_flops.append(2 * made.numel()))
    inputs = make_inputs(work, "meta")
    counted = count_flops(network, lambda: NETWORKS[OURS].call(network, inputs))
    kernels = [network.get_submodule(name) for name in places]
    return ConvolutionCost(
        kind=kind,
        kernel_parameters=sum(map(count_parameters, [*kernels, *adaptors])),
        kernel_flops=sum(counted.by_module[f"VideoUNet.{name}"] for name in places)
        + sum(adaptor_flops),
        parameters=count_parameters(network),
        flops=counted.total + sum(adaptor_flops),
    )


_LARGE_256 = replace(LARGE, side=256)
# VDM's three published configurations, and hypothetical ones at the resolution of our videos
_VDM_FORMS = {
    "small, 16 x 64x64": SMALL,
    "large, 16 x 64x64": LARGE,
    "large, 9 x 128x128": LARGE_128,
    "large, scaled to 16 x 256x256, attention at 1/2, 1/4 and 1/8 of the side": replace(
        _LARGE_256, attention_sides=frozenset({128, 64, 32})
    ),
    "the same, attention only at 32": _LARGE_256,
    "the same, no attention": replace(_LARGE_256, attention_sides=frozenset()),
}
_OUR_STEPS, _VDM_STEPS = 50, 256


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value for an unstated setting."""

    least: float
    most: float

    def __str__(self) -> str:
        """Return both, or one if they are equal after rounding."""
        shown = [_significant(number) for number in (self.least, self.most)]
        return shown[0] if shown[0] == shown[1] else " to ".join(shown)


def cost_page() -> str:
    """Return the whole page; this takes one or two minutes."""
    _, ours = _network(OURS, PAPER)
    sections = (
        _introduction(),
        "## One step of the denoiser\n\nGFLOPs for 16 frames of 256x256, as latents of 16 x 4 x 32 "
        "x 32, and 77 tokens of width 768. UNetMotionModel is AnimateDiff's network, "
        "UNet3DConditionModel ModelScope's. All four have the channels and layers of Stable "
        "Diffusion 1.x. Ratios are relative to the image network with all frames as its "
        f"batch.\n\n{networks_table(PAPER)}",
        _claim_section(ours.total),
        _convolutions_section(),
    )
    return "\n\n".join(sections) + "\n"


def networks_table(work: Workload) -> str:
    """Return parameters and GFLOPs of ours and the diffusers networks, and ratios to the floor."""
    counts = {name: _network(name, work) for name in NETWORKS}
    floor = counts[FLOOR][1].total
    rows = [
        [
            name,
            f"{parameters / 1e6:,.2f}",
            *(
                f"{number / 1e9:,.2f}"
                for number in (flops.convolutions, flops.linear, flops.attention, flops.total)
            ),
            f"{flops.total / floor:.3f}",
        ]
        for name, (parameters, flops) in counts.items()
    ]
    kinds = ["convolutions", "linear layers", "attention"]
    return table(["network", "parameters (10^6)", *kinds, "GFLOPs", "ratio"], rows)


def count_vdm(settings: VdmSettings) -> tuple[Range, Range]:
    """Return parameters and FLOPs of a step of VDM with 2 and with 3 blocks per decoder level."""
    counts = [_count_vdm(replace(settings, up_blocks=blocks)) for blocks in (2, 3)]
    parameters, flops = [float(n) for n, _ in counts], [float(f.total) for _, f in counts]
    return Range(*parameters), Range(*flops)


def _count_vdm(settings: VdmSettings) -> tuple[int, FlopCounts]:
    shape = (1, 3, settings.frames, settings.side, settings.side)
    return profile_forward(
        lambda: VdmUNet(settings), lambda network: network(torch.empty(shape), torch.empty(1))
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _introduction() -> str:
    return (
        "# Cost\n\nWritten by `python -m studies cost`. All numbers are counted, none is measured: "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, the same counter for all "
        "networks, on the meta device, where attention is counted as well. A multiply-add is 2 "
        "FLOPs. Norms, activations and adaptors are not counted in the first table; the last table "
        "adds the adaptors. Attention is counted in full, without the saving of the directed mask."
    )


def _network(name: str, work: Workload) -> tuple[int, FlopCounts]:
    network = NETWORKS[name]
    return profile_forward(
        lambda: network.build(work), lambda built: network.call(built, make_inputs(work, "meta"))
    )


def _claim_section(ours: int) -> str:
    counts = {label: count_vdm(form) for label, form in _VDM_FORMS.items()}
    rows = [
        [
            label,
            str(Range(parameters.least / 1e6, parameters.most / 1e6)),
            str(Range(flops.least / 1e12, flops.most / 1e12)),
            str(Range(flops.least / ours, flops.most / ours)),
        ]
        for label, (parameters, flops) in counts.items()
    ]
    header = ["VDM", "parameters (10^6)", "TFLOPs per step", "relative to ours"]
    measured = counts["large, 16 x 64x64"][1]
    return "\n\n".join(
        (
            '## The paper\'s "64 times"',
            'The paper says "around 64x fewer computations" than Video Diffusion Models (VDM, Ho '
            "et al., 2204.03458). Its derivation is not known to us. Three quantities can be "
            "counted.",
            f"**Area.** {_area_text()}",
            f"**Both networks.** Ours has {ours / 1e12:.2f} TFLOPs per step. For VDM, sizes were "
            "published but no code; the network here is built from these sizes, only for counting. "
            "The number of residual blocks per decoder level is not stated. Two numbers are for 2 "
            "and for 3 blocks.",
            table(header, rows),
            "At VDM's own size, 64x64 pixels, the ratio is "
            f"{Range(measured.least / ours, measured.most / ours)}. It approaches 64 only for a "
            "hypothetical VDM network at 256x256; VDM itself generates small frames and upscales "
            "them. So 64 is the saving of a convolution by area, not the ratio of two published "
            "models.",
            _video_text(ours, measured),
        )
    )


def _area_text() -> str:
    pixels, latents = (_convolution_flops(side) for side in (256, 32))
    return (
        "The cost of a convolution is proportional to the number of positions. A convolution from "
        f"320 to 320 channels has {pixels / 1e9:,.1f} GFLOPs on a frame of 256x256 pixels and "
        f"{latents / 1e9:,.2f} on its latents of 32x32, a ratio of {pixels / latents:.0f}. This is "
        "8 x 8, the square of the autoencoder's scale factor. It holds for convolutions and linear "
        "layers of equal networks on pixels and on latents; for self-attention over positions the "
        "ratio is the square, 4,096."
    )


def _convolution_flops(side: int) -> int:
    channels = 320
    return profile_forward(
        lambda: nn.Conv2d(channels, channels, 3, padding=1),
        lambda network: network(torch.empty(1, channels, side, side)),
    )[1].total


def _video_text(ours: int, vdm: Range) -> str:
    with torch.device("meta"), torch.no_grad():
        vae = AutoencoderKL.from_config(PRESETS["stable-diffusion-1"]["vae"])
        decoder = count_flops(vae, lambda: vae.decode(torch.empty(16, 4, 32, 32)))
    whole = _OUR_STEPS * ours + decoder.total
    theirs = Range(_VDM_STEPS * vdm.least, _VDM_STEPS * vdm.most)
    ratio = Range(theirs.least / whole, theirs.most / whole)
    return (
        f"**A whole video.** With {_OUR_STEPS} steps, ours takes {whole / 1e12:,.0f} TFLOPs, of "
        f"which decoding the 16 frames takes {decoder.total / 1e12:.2f}. VDM at its own 64x64 with "
        f"its {_VDM_STEPS} steps takes {Range(theirs.least / 1e12, theirs.most / 1e12)}: {ratio} "
        "times ours, for a sixteenth of the pixels. Both are counted without guidance, which "
        "doubles every step, and without interpolation and super-resolution. The number of steps "
        "is a choice of the sampler: VDM's network could be sampled with fewer."
    )


def _convolutions_section() -> str:
    with torch.device("meta"), torch.no_grad():
        costs = [cost_of(kind, PAPER) for kind in get_args(Kind)]
    first = costs[0]
    rows = [
        [
            cost.kind,
            f"{cost.kernel_parameters / 1e6:,.2f}",
            f"{cost.kernel_flops / 1e9:,.2f}",
            f"{cost.kernel_flops / first.kernel_flops:.3f}",
            f"{cost.parameters / 1e6:,.2f}",
            f"{cost.flops / 1e9:,.2f}",
            f"{cost.flops / first.flops:.3f}",
        ]
        for cost in costs
    ]
    header = ["convolutions", "parameters (10^6)", "GFLOPs", "ratio"]
    header += ["whole network (10^6)", "GFLOPs", "ratio"]
    return (
        "## Adaptors and temporal convolutions\n\nOur denoiser with another kind of convolution in "
        "place of every 3x3 convolution, for the same input. The first columns count only these "
        "convolutions and their adaptors; the last columns count the whole network. 2+1D is the 2D "
        "convolution followed by a convolution over 3 frames, 3D has a kernel of 3x3x3. For "
        "adaptors, one multiplication and one addition per value are "
        f"counted.\n\n{table(header, rows)}"
    )


def _significant(number: float) -> str:
    """Return three significant digits, or all integer digits if there are more."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"
