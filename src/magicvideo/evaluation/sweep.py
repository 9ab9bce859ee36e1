"""Sweeps: steps and guidance scales that replace those of a protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

from magicvideo.errors import UserError
from magicvideo.evaluation.benchmark.protocol import Benchmark
from magicvideo.evaluation.protocol import Protocol
from magicvideo.pipelines.request import GenerationSettings

_AnyProtocol = TypeVar("_AnyProtocol", Protocol, Benchmark)


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One point of a sweep; None keeps the protocol's value."""

    steps: int | None = None
    guidance: float | None = None

    @property
    def name(self) -> str:
        """Return the name of its files, such as `steps-5-guidance-1.5`; `` for no change."""
        parts = (("steps", self.steps), ("guidance", self.guidance))
        # not rounded: two values never share a name
        return "-".join(
            f"{what}-{str(value).removesuffix('.0')}" for what, value in parts if value is not None
        )

    def of(self, protocol: _AnyProtocol) -> _AnyProtocol:
        """Return a protocol with these values in it."""
        values = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        changes = {name: value for name, value in values.items() if value is not None}
        if isinstance(protocol, Benchmark):
            generation = protocol.generation.model_copy(update=changes)
            return protocol.model_copy(update={"generation": generation})
        return protocol.model_copy(update=changes)

    def document(self, base: Path) -> Path:
        """Return the path of its results, beside the path without changes."""
        return base.with_stem("-".join(filter(None, (base.stem, self.name))))


def sweep_points(steps: Sequence[int], guidance: Sequence[float]) -> list[SweepPoint]:
    """Return every combination of steps and guidance; without values, one unchanged point.

    Raises:
        UserError: If a value is out of its range.
    """
    for count in steps:
        GenerationSettings(num_inference_steps=count)
    for scale in guidance:
        GenerationSettings(guidance_scale=scale)
        if scale == 0:
            raise UserError("A guidance scale of 0 ignores the prompt; take one above 0.")
    return [
        SweepPoint(steps=count, guidance=scale)
        for count, scale in product(
            dict.fromkeys(steps) or [None], dict.fromkeys(guidance) or [None]
        )
    ]


def section_name(protocol: str, settings: Sequence[SweepPoint]) -> str:
    """Return the name of the section of results; a sweep has a section of its own."""
    is_sweep = any(setting.name for setting in settings)
    return f"{protocol} by steps and guidance" if is_sweep else protocol


def sampling_label(steps: int, guidance: float) -> str:
    """Return the label of a row of a sweep."""
    return f"steps {steps}, guidance {guidance:g}"
