"""A small stand-in for ComfyUI's `comfy_api.latest`: its schema classes, with checks."""

import sys
import types
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

import torch


@dataclass
class Socket:
    """An input or an output of a node."""

    io_type: str
    id: str | None = None
    display_name: str | None = None
    options: dict = field(default_factory=dict)

    @property
    def is_widget(self):
        return self.io_type in ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN")


def socket_type(name, allowed):
    """Make the pair of `Input` and `Output` of one type; unknown options are an error."""

    def make_input(id, **options):
        wrong = set(options) - allowed - {"tooltip", "optional", "display_name"}
        assert not wrong, f"{name}.Input has no {wrong}"
        return Socket(name, id, options.pop("display_name", None), options)

    def make_output(id=None, *, display_name=None, tooltip=None):
        return Socket(name, id, display_name, {"tooltip": tooltip})

    return types.SimpleNamespace(Input=make_input, Output=make_output, io_type=name)


@dataclass
class Schema:
    """The schema of a node."""

    node_id: str
    display_name: str
    category: str
    inputs: list
    outputs: list
    description: str = ""
    is_output_node: bool = False


class NodeOutput(tuple):
    """Values in the order of the outputs."""

    def __new__(cls, *values):
        return super().__new__(cls, values)


class ComfyNode:
    """Base of nodes."""


class ComfyExtension:
    """Base of extensions."""


@dataclass
class VideoComponents:
    """Frames of a video."""

    images: torch.Tensor
    frame_rate: Fraction
    audio: object = None
    metadata: object = None


@dataclass
class VideoFromComponents:
    """ComfyUI's VIDEO."""

    components: VideoComponents

    def get_components(self):
        return self.components


class ProgressBar:
    """Records its calls."""

    made: ClassVar[list] = []

    def __init__(self, total):
        self.total, self.values = total, []
        ProgressBar.made.append(self)

    def update_absolute(self, value, total=None):
        self.values.append((value, total))


class InterruptedByUserError(Exception):
    """The exception that ComfyUI raises if its user cancels."""


def install(monkeypatch):
    """Make the modules importable for one test; returns the switch of the cancel button."""
    switch = types.SimpleNamespace(cancel=False)
    ProgressBar.made = []

    def check():
        if switch.cancel:
            raise InterruptedByUserError

    number = {"default", "min", "max", "step", "control_after_generate"}
    io = types.SimpleNamespace(
        ComfyNode=ComfyNode,
        Schema=Schema,
        NodeOutput=NodeOutput,
        Int=socket_type("INT", number),
        Float=socket_type("FLOAT", number),
        String=socket_type("STRING", {"default", "multiline"}),
        Combo=socket_type("COMBO", {"options", "default"}),
        Image=socket_type("IMAGE", set()),
        Video=socket_type("VIDEO", set()),
        Custom=lambda name: socket_type(name, set()),
    )
    latest = types.ModuleType("comfy_api.latest")
    latest.io = io
    latest.ComfyExtension = ComfyExtension
    latest.InputImpl = types.SimpleNamespace(VideoFromComponents=VideoFromComponents)
    latest.Types = types.SimpleNamespace(VideoComponents=VideoComponents)
    management = types.ModuleType("comfy.model_management")
    management.throw_exception_if_processing_interrupted = check
    management.get_torch_device = lambda: torch.device("cpu")
    utilities = types.ModuleType("comfy.utils")
    utilities.ProgressBar = ProgressBar
    comfy = types.ModuleType("comfy")
    comfy.model_management, comfy.utils = management, utilities
    modules = {
        "comfy_api": types.ModuleType("comfy_api"),
        "comfy_api.latest": latest,
        "comfy": comfy,
        "comfy.model_management": management,
        "comfy.utils": utilities,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return switch
