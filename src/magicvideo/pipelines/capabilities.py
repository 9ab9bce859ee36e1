"""Capabilities of a loaded model, and complete requests that respect them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch

from magicvideo.diffusion.sampling import FLOW_MAP
from magicvideo.errors import UserError
from magicvideo.pipelines.request import (
    DEFAULT_CHUNKS,
    MAX_FRAMES,
    ChunkSizes,
    FirstFrame,
    GenerationSettings,
    ImageCondition,
    LoraRef,
    Request,
)

_PLEASANT_SIDE = 256  # pixels; smaller frames are enlarged in files by default
_MOST_LCM_STEPS = 50  # diffusers' scheduler selects its steps from this number


@dataclass(frozen=True, kw_only=True)
class ModelCapabilities:
    """Capabilities and defaults of a loaded model.

    Attributes:
        hash: Hash of its folder, or None for a model that was never saved.
        device: Device type.
        height: Height of the key frames in training, in pixels.
        width: Width of the key frames in training, in pixels.
        vae_scale_factor: Pixels per side of one latent position.
        max_frames: Maximal number of key frames sampled together. It limits the length of a video
            if the model was trained without given frames.
        max_steps: Maximal number of diffusion steps.
        defaults: Default settings.
        scheduler_options: Configuration of the default scheduler.
        stages: Stages that it has networks for.
        num_inserted: Number of new frames between two key frames.
        upscale_factor: Factor of the super-resolution.
        min_tile_size: Minimal side of an upscaler tile, in pixels of the small frames.
        loras: LoRAs merged into its weights, in order.
        max_given_frames: Maximal number of given first frames in training.
        has_motion: Whether its denoiser is conditioned on a motion score.
        is_flow_map: Whether its denoiser is a distilled flow map, which includes guidance and
            needs the scheduler `flow_map`.
    """

    hash: str | None
    device: str
    height: int
    width: int
    vae_scale_factor: int
    max_frames: int
    max_steps: int
    defaults: GenerationSettings
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...]
    num_inserted: int
    upscale_factor: int
    min_tile_size: int
    loras: tuple[LoraRef, ...] = ()
    is_flow_map: bool = False
    max_given_frames: int = 0
    has_motion: bool = False

    @property
    def default_overlap(self) -> int:
        """Return the default number of key frames shared by consecutive windows."""
        return max(1, min(self.max_given_frames, self.max_frames // 4))

    def default(self, name: str) -> Any:  # noqa: ANN401 - of the setting's type
        """Return the model's default of a generation setting."""
        return getattr(self.defaults, name)

    def build_requests(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: GenerationSettings,
        image_condition: ImageCondition | None,
        first_frame: FirstFrame | None = None,
    ) -> list[Request]:
        """Build one complete request per prompt.

        Raises:
            UserError: If the model does not support a value.
        """
        if not prompts:
            raise UserError("No prompt was given; describe what the video should show.")
        return [
            self.build_request(prompt, seed, settings, image_condition, first_frame=first_frame)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def build_request(
        self,
        prompt: str,
        seed: int,
        settings: GenerationSettings,
        image_condition: ImageCondition | None,
        unrecorded: tuple[str, ...] = (),
        first_frame: FirstFrame | None = None,
    ) -> Request:
        """Build one complete request.

        Args:
            prompt: Text.
            seed: Seed of the noise.
            settings: The caller's settings.
            image_condition: An image, in addition to the text or instead of it. With a first frame
                it only replaces an empty text.
            unrecorded: Names of inputs that the request does not store.
            first_frame: The image that the video starts from.

        Raises:
            UserError: If the model does not support a value.
        """
        chosen = {**self.defaults.chosen(), **settings.chosen()}
        stages = chosen.setdefault("stages", self.stages)
        height, width = self.video_size(settings)
        chosen |= {"height": height, "width": width}
        if chosen.setdefault("num_frames", self.max_frames) > self.max_frames:
            chosen.setdefault("overlap", self.default_overlap)
        if first_frame is not None and prompt.strip():
            image_condition = None
        chosen.setdefault("output_scale", max(1, _PLEASANT_SIDE // min(height, width)))
        chosen.setdefault("negative_prompt", "")
        request = Request(
            **chosen,
            prompt=prompt,
            image_condition=image_condition,
            seed=seed,
            num_inserted=self.num_inserted if "interpolation" in stages else 0,
            scheduler_options=self.scheduler_options if settings.scheduler is None else {},
            model=self.hash,
            device=self.device,
            threads=torch.get_num_threads(),
            version=version("magicvideo"),
            loras=self.loras,
            unrecorded=unrecorded,
            first_frame=first_frame,
        )
        self.validate(request)
        return request

    def video_size(self, settings: GenerationSettings) -> tuple[int, int]:
        """Return height and width of the finished video for some settings."""
        chosen = {**self.defaults.chosen(), **settings.chosen()}
        height, width = self.default_size(chosen.get("stages", self.stages))
        return chosen.get("height", height), chosen.get("width", width)

    def default_size(self, stages: Sequence[str]) -> tuple[int, int]:
        """Return the default height and width of videos.

        Args:
            stages: Stages of the generation.
        """
        factor = self.upscale_factor if "upscaler" in stages else 1
        return factor * self.height, factor * self.width

    def with_length(
        self, settings: GenerationSettings, seconds: float, *, is_added: bool = False
    ) -> GenerationSettings:
        """Return settings for a video of a given length, rounded to the nearest key frame.

        Args:
            settings: The caller's other settings.
            seconds: The length.
            is_added: Whether the frames extend a video, so that a gap precedes each key frame.

        Raises:
            UserError: If the number of frames is also given, or the length is out of range.
        """
        if settings.num_frames is not None:
            raise UserError(
                "Both a number of frames and a length in seconds were given; give only one of them."
            )
        fps = settings.fps or float(self.default("fps"))
        stages = settings.stages or self.defaults.stages or self.stages
        inserted = self.num_inserted if "interpolation" in stages else 0
        longest = (MAX_FRAMES - 1 + 1 / (inserted + 1)) / fps
        if not (math.isfinite(seconds) and 0 < seconds <= longest):
            raise UserError(
                f"The length is {seconds:g} seconds; it must be a number above 0, up to "
                f"{longest:.0f} at {fps:g} key frames per second."
            )
        if is_added:
            return replace(settings, num_frames=max(1, round(seconds * fps)))
        # n key frames last (n - 1) / fps, and as long as one frame of the finished video
        frames = round(seconds * fps - 1 / (inserted + 1)) + 1
        return replace(settings, num_frames=max(2 if inserted else 1, frames))

    def latent_size(self, request: Request) -> tuple[int, int]:
        """Return height and width of the latents of a request's key frames.

        Raises:
            UserError: If the model does not support this size.
        """
        return self.latent_size_of(request.height, request.width, request.stages)

    def latent_size_of(self, height: int, width: int, stages: Sequence[str]) -> tuple[int, int]:
        """Return height and width of the latents of a video of this size with these stages.

        Raises:
            UserError: If the model does not support this size.
        """
        unit = self.vae_scale_factor
        if "upscaler" in stages:
            unit *= self.upscale_factor
        for name, value in (("height", height), ("width", width)):
            if value % unit:
                near = max(unit, round(value / unit) * unit)
                raise UserError(
                    f"The {name} is {value}; with these stages it must be a multiple of {unit}, "
                    f"such as {near}."
                )
        return height // unit, width // unit

    def is_long(self, request: Request) -> bool:
        """Return whether a video needs several windows."""
        return request.num_frames > self.max_frames

    def num_windows(self, request: Request) -> int:
        """Return the number of windows, which are sampled one after the other."""
        if not self.is_long(request):
            return 1
        beyond = request.num_frames - self.max_frames
        return 1 + -(-beyond // (self.max_frames - (request.overlap or 1)))

    def validate(self, request: Request) -> None:
        """Check that the model can fulfil a request.

        Raises:
            UserError: If it has too many frames or steps, an unsupported size or another model.
        """
        self._check_continuation(request)
        if request.motion is not None and not self.has_motion:
            raise UserError(
                f"The motion is {request.motion:g}; this model was trained without a motion score, "
                "so omit the motion."
            )
        most = max(request.num_inference_steps, request.interpolation_steps, request.upscaler_steps)
        if most > self.max_steps:
            raise UserError(
                f"The number of steps is {most}; this model supports at most {self.max_steps}."
            )
        latent_steps = max(request.num_inference_steps, request.interpolation_steps)
        if request.scheduler == "lcm" and latent_steps > _MOST_LCM_STEPS:
            raise UserError(
                f"The number of steps is {latent_steps}; the scheduler lcm supports at most "
                f"{_MOST_LCM_STEPS}."
            )
        self._check_flow_map(request)
        if absent := [name for name in request.stages if name not in self.stages]:
            raise UserError(
                f"This model has no stage {absent[0]}; its stages are {', '.join(self.stages)}."
            )
        if "interpolation" in request.stages and request.num_frames < 2:
            raise UserError(
                "Interpolation needs at least two key frames; increase the number of frames or use "
                "--stages keyframes."
            )
        if request.model != self.hash:
            raise UserError(
                f"The video was made with model {request.model}, but the loaded model is "
                f"{self.hash}; name the right folder with --model."
            )
        self.latent_size(request)

    def _check_continuation(self, request: Request) -> None:
        """Refuse long videos and first frames if the model was trained without given frames.

        Raises:
            UserError: If the request needs them.
        """
        if request.first_frame is not None and not self.max_given_frames:
            raise UserError(
                "The video starts from an image, but this model was trained without given frames; "
                "choose another model."
            )
        if not self.is_long(request):
            if request.overlap is not None:
                raise UserError(
                    f"The overlap is {request.overlap}; it only applies to videos of more than "
                    f"{self.max_frames} key frames, so omit it."
                )
            return
        if not self.max_given_frames:
            raise UserError(
                f"The number of frames is {request.num_frames}; this model supports at most "
                f"{self.max_frames}, because it was trained without given frames."
            )
        most = min(self.max_given_frames, self.max_frames - 1)
        if request.overlap is None or request.overlap > most:
            raise UserError(
                f"The overlap is {request.overlap}; it must be an integer from 1 to {most}, the "
                "number of given frames in training."
            )

    def _check_flow_map(self, request: Request) -> None:
        """Check scheduler and guidance of a request against the kind of denoiser.

        Raises:
            UserError: If the scheduler does not fit the denoiser, or guidance is requested of a
                distilled denoiser.
        """
        if (request.scheduler == FLOW_MAP) != self.is_flow_map:
            reason = (
                f"this model is distilled and needs {FLOW_MAP}"
                if self.is_flow_map
                else "it needs a distilled model"
            )
            raise UserError(f"The scheduler is {request.scheduler}; {reason}. Omit the scheduler.")
        if self.is_flow_map and request.guidance_scale != 1:
            raise UserError(
                f"The guidance scale is {request.guidance_scale:g}; this distilled "
                "model already includes guidance. Omit the scale, or use the model that it was "
                "distilled from."
            )

    def check_loras(self, request: Request) -> None:
        """Check that the loaded LoRAs are those of a request.

        Raises:
            UserError: If files, scales or order differ.
        """
        wanted, there = (
            [(ref.sha256, ref.scale) for ref in loras] for loras in (request.loras, self.loras)
        )
        if wanted != there:  # file names may differ
            raise UserError(
                f"The video was made with {_describe(request.loras)}, but the model has "
                f"{_describe(self.loras)}; load the same files at the same scales, in this order."
            )

    def check_chunks(self, request: Request, chunks: ChunkSizes) -> None:
        """Check chunk sizes: each must have an effect and be possible.

        Raises:
            UserError: If one is for a stage that the request lacks, or a tile size is impossible.
        """
        tile, least = chunks.upscaler_tile, self.min_tile_size
        longest = self._upscaled_side(request)
        if "upscaler" not in request.stages:
            if replace(chunks, decoder_frames=DEFAULT_CHUNKS.decoder_frames) != DEFAULT_CHUNKS:
                raise UserError(
                    "The video has no stage upscaler; omit --upscaler-frames and --upscaler-tile."
                )
        elif tile != DEFAULT_CHUNKS.upscaler_tile and not least <= tile < longest:
            if least >= longest:
                raise UserError(
                    f"The tile is {tile}, but this upscaler needs tiles of {least} pixels or more, "
                    f"and the frames have only {longest}; omit --upscaler-tile."
                )
            raise UserError(
                f"The tile is {tile}; it must be an integer from {least} to {longest - 1}."
            )

    def reduce_memory(self, request: Request, chunks: ChunkSizes) -> ChunkSizes:
        """Return smaller chunk sizes, or the same if they cannot be reduced."""
        if "upscaler" not in request.stages:
            return replace(chunks, decoder_frames=1)
        single = replace(chunks, decoder_frames=1, upscaler_frames=1)
        if single != chunks:
            return single
        seen = min(chunks.upscaler_tile, self._upscaled_side(request))
        tile = max(self.min_tile_size, seen // 2)
        return replace(chunks, upscaler_tile=tile) if tile < seen else chunks

    def _upscaled_side(self, request: Request) -> int:
        """Return the longest side of the upscaler's input frames."""
        return max(request.height, request.width) // self.upscale_factor


def _describe(loras: tuple[LoraRef, ...]) -> str:
    shown = (f"{ref.name} (SHA-256 {ref.sha256[:12]}...) at {ref.scale:g}" for ref in loras)
    return f"the LoRA {', '.join(shown)}" if loras else "no LoRA"
