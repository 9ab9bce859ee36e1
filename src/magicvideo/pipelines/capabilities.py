"""From what a caller chooses to complete requests, within what a model can do."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TypeVar

import torch

from magicvideo.errors import UserError
from magicvideo.pipelines.chunking import DEFAULT_CHUNKS, ChunkSizes
from magicvideo.pipelines.request import GenerationSettings, ImageCondition, LoraRef, Request

T = TypeVar("T")
_PLEASANT_SIDE = 256  # pixels: files enlarge smaller frames by default


@dataclass(frozen=True, kw_only=True)
class ModelCapabilities:
    """What a loaded model can do, and does by default.

    Attributes:
        hash: Of its folder, or None for a model that was never saved.
        device: Kind of device that it is on.
        side: Pixels a side of its frames.
        max_frames: The most frames of a video.
        max_steps: The most diffusion steps.
        default_fps: Frames a second.
        default_steps: Diffusion steps.
        default_guidance_scale: Guidance.
        default_guidance_stop: Share of the steps after which it ends.
        default_scheduler: `ddim` or `dpm++`.
        stages: What it has networks for.
        num_inserted: New frames between two key frames.
        upscale_factor: Of the super-resolution.
        min_tile_size: Shortest side of what its network can see, in pixels of the small frames.
        default_interpolation_steps: Diffusion steps of the interpolation.
        default_upscaler_steps: Diffusion steps of the super-resolution.
        loras: What is merged into its weights, in order.
    """

    hash: str | None
    device: str
    side: int
    max_frames: int
    max_steps: int
    default_fps: float
    default_steps: int
    default_guidance_scale: float
    default_guidance_stop: float
    default_scheduler: str
    stages: tuple[str, ...]
    num_inserted: int
    upscale_factor: int
    min_tile_size: int
    default_interpolation_steps: int
    default_upscaler_steps: int
    loras: tuple[LoraRef, ...] = ()

    def build_requests(
        self,
        prompts: list[str],
        seeds: list[int],
        settings: GenerationSettings,
        picture: ImageCondition | None,
    ) -> list[Request]:
        """Return one complete request for each prompt.

        Raises:
            UserError: If a value is out of the model's range.
        """
        if not prompts:
            raise UserError("There is no prompt; say what the video should show.")
        stages = _or(settings.stages, self.stages)
        side = self.side * (self.upscale_factor if "upscaler" in stages else 1)
        requests = [
            Request(
                prompt=prompt,
                negative_prompt=settings.negative_prompt,
                image_condition=picture,
                seed=seed,
                num_frames=_or(settings.num_frames, self.max_frames),
                fps=float(_or(settings.fps, self.default_fps)),
                num_inference_steps=_or(settings.num_inference_steps, self.default_steps),
                guidance_scale=float(_or(settings.guidance_scale, self.default_guidance_scale)),
                guidance_stop=float(_or(settings.guidance_stop, self.default_guidance_stop)),
                scheduler=_or(settings.scheduler, self.default_scheduler),
                output_scale=_or(settings.output_scale, max(1, _PLEASANT_SIDE // side)),
                stages=stages,
                num_inserted=self.num_inserted if "interpolation" in stages else 0,
                interpolation_steps=_or(
                    settings.interpolation_steps, self.default_interpolation_steps
                ),
                upscaler_steps=_or(settings.upscaler_steps, self.default_upscaler_steps),
                model=self.hash,
                device=self.device,
                threads=torch.get_num_threads(),
                version=version("magicvideo"),
                loras=self.loras,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        for request in requests:
            self.validate(request)
        return requests

    def validate(self, request: Request) -> None:
        """Refuse a request that the model cannot fulfil.

        Raises:
            UserError: If it wants too many frames or steps, or another model.
        """
        if request.num_frames > self.max_frames:
            raise UserError(
                f"The number of frames is {request.num_frames}; this model makes at most "
                f"{self.max_frames}."
            )
        most = max(request.num_inference_steps, request.interpolation_steps, request.upscaler_steps)
        if most > self.max_steps:
            raise UserError(
                f"The number of steps is {most}; this model knows at most {self.max_steps}."
            )
        if absent := [name for name in request.stages if name not in self.stages]:
            raise UserError(
                f"This model has no stage {absent[0]}; what it has: {', '.join(self.stages)}."
            )
        if "interpolation" in request.stages and request.num_frames < 2:
            raise UserError(
                "Interpolation needs two key frames or more; ask for more frames, or for "
                "--stages keyframes."
            )
        if request.model != self.hash:
            raise UserError(
                f"The video was made by the model {request.model}, and the one loaded is "
                f"{self.hash}; name the right folder with --model."
            )

    def check_loras(self, request: Request) -> None:
        """Refuse a request for other LoRAs than the model has.

        Raises:
            UserError: If one is missing, too many, another, at another scale or in another place.
        """
        wanted, there = (
            [(use.sha256, use.scale) for use in loras] for loras in (request.loras, self.loras)
        )
        if wanted != there:  # a file may have another name than it had
            raise UserError(
                f"The video was made with {_named(request.loras)}, and the model has "
                f"{_named(self.loras)}; load the same files at the same scales, in this order."
            )

    def check_chunks(self, request: Request, bounds: ChunkSizes) -> None:
        """Refuse a bound that would hold nothing back in a video.

        Raises:
            UserError: If it is for a stage that the video has not, or for tiles that cannot be.
        """
        tile, least = bounds.upscaler_tile, self.min_tile_size
        if "upscaler" not in request.stages:
            if replace(bounds, decoder_frames=DEFAULT_CHUNKS.decoder_frames) != DEFAULT_CHUNKS:
                raise UserError(
                    "The video has no stage upscaler; leave --upscaler-frames and --upscaler-tile "
                    "out."
                )
        elif tile != DEFAULT_CHUNKS.upscaler_tile and not least <= tile < self.side:
            if least >= self.side:
                raise UserError(
                    f"The tile is {tile}, and this upscaler sees {least} pixels or more, which "
                    f"frames of {self.side} have not; leave --upscaler-tile out."
                )
            raise UserError(
                f"The tile is {tile}; it must be a whole number from {least} to {self.side - 1}."
            )

    def reduce_memory(self, request: Request, bounds: ChunkSizes) -> ChunkSizes:
        """Return bounds by which a video takes less memory, or the same if there are none."""
        if "upscaler" not in request.stages:
            return replace(bounds, decoder_frames=1)
        single = replace(bounds, decoder_frames=1, upscaler_frames=1)
        if single != bounds:
            return single
        seen = min(bounds.upscaler_tile, self.side)
        tile = max(self.min_tile_size, seen // 2)
        return replace(bounds, upscaler_tile=tile) if tile < seen else bounds


def _named(loras: tuple[LoraRef, ...]) -> str:
    shown = (f"{use.name} (SHA-256 {use.sha256[:12]}...) at {use.scale:g}" for use in loras)
    return f"the LoRA {', '.join(shown)}" if loras else "no LoRA"


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
