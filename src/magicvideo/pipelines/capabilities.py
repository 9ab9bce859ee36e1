"""What a loaded model can do, and complete requests within it."""

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

_PLEASANT_SIDE = 256  # pixels: files enlarge smaller frames by default
_MOST_LCM_STEPS = 50  # diffusers' scheduler picks its steps among that many


@dataclass(frozen=True, kw_only=True)
class ModelCapabilities:
    """What a loaded model can do, and does by default.

    Attributes:
        hash: Of its folder, or None for a model that was never saved.
        device: Kind of device that it is on.
        height: Pixels of the key frames that it was trained on.
        width: Likewise.
        vae_scale_factor: Pixels a side of one position of the latents.
        max_frames: The most key frames that are sampled together; without given frames in training,
            the most of a video.
        max_steps: The most diffusion steps.
        defaults: Settings where a caller gives none.
        scheduler_options: Configuration of the default scheduler beside its name.
        stages: What it has networks for.
        num_inserted: New frames between two key frames.
        upscale_factor: Of the super-resolution.
        min_tile_size: Shortest side of what the upscaler can see, in pixels of the small frames.
        loras: What is merged into its weights, in order.
        max_given_frames: The most first frames that its denoiser has learned to continue.
        has_motion: Whether its denoiser is conditioned on a motion score.
        is_flow_map: Whether its denoiser is distilled: guided already, and for one scheduler alone.
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
        """Return how many key frames each part of a long video takes over by default."""
        return max(1, min(self.max_given_frames, self.max_frames // 4))

    def default(self, name: str) -> Any:  # noqa: ANN401 - of the setting's type
        """Return the model's default of a generation setting, by the setting's name."""
        return getattr(self.defaults, name)

    def build_requests(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: GenerationSettings,
        image_condition: ImageCondition | None,
        first_frame: FirstFrame | None = None,
    ) -> list[Request]:
        """Return one complete request for each prompt.

        Raises:
            UserError: If a value is out of the model's range.
        """
        if not prompts:
            raise UserError("There is no prompt; say what the video should show.")
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
        """Return one complete request.

        Args:
            prompt: Text.
            seed: Of the noise.
            settings: What the caller chose.
            image_condition: An image beside the text or in its place. Beside a first frame, it
                takes the place of an empty text alone.
            unrecorded: Names of inputs that the request does not hold.
            first_frame: The picture that the video begins with.

        Raises:
            UserError: If a value is out of the model's range.
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
        """Return height and width of the finished video that settings ask for."""
        chosen = {**self.defaults.chosen(), **settings.chosen()}
        height, width = self.default_size(chosen.get("stages", self.stages))
        return chosen.get("height", height), chosen.get("width", width)

    def default_size(self, stages: Sequence[str]) -> tuple[int, int]:
        """Return height and width of videos where a caller gives none.

        Args:
            stages: The stages that make them.
        """
        factor = self.upscale_factor if "upscaler" in stages else 1
        return factor * self.height, factor * self.width

    def with_length(
        self, settings: GenerationSettings, seconds: float, *, is_added: bool = False
    ) -> GenerationSettings:
        """Return settings for a video of a length in seconds, to the nearest key frame.

        Args:
            settings: What else the caller chose.
            seconds: The length.
            is_added: Whether the new frames follow others, so that each key frame has a gap.

        Raises:
            UserError: If they name a number of frames, too, or the length is out of range.
        """
        if settings.num_frames is not None:
            raise UserError(
                "Both the number of frames and the seconds tell the length; give one of them."
            )
        fps = settings.fps or float(self.default("fps"))
        stages = settings.stages or self.defaults.stages or self.stages
        inserted = self.num_inserted if "interpolation" in stages else 0
        longest = (MAX_FRAMES - 1 + 1 / (inserted + 1)) / fps
        if not (math.isfinite(seconds) and 0 < seconds <= longest):
            raise UserError(
                f"The length is {seconds:g} seconds; it must be a number above 0, up to "
                f"{longest:.0f} at {fps:g} key frames a second."
            )
        if is_added:
            return replace(settings, num_frames=max(1, round(seconds * fps)))
        # n key frames last (n - 1) / fps, and as long as one frame of the finished video
        frames = round(seconds * fps - 1 / (inserted + 1)) + 1
        return replace(settings, num_frames=max(2 if inserted else 1, frames))

    def latent_size(self, request: Request) -> tuple[int, int]:
        """Return height and width of the latents of a request's key frames.

        Raises:
            UserError: If the model makes no videos of this size.
        """
        return self.latent_size_of(request.height, request.width, request.stages)

    def latent_size_of(self, height: int, width: int, stages: Sequence[str]) -> tuple[int, int]:
        """Return height and width of the latents of a video of this size, by these stages.

        Raises:
            UserError: If the model makes no videos of this size.
        """
        unit = self.vae_scale_factor
        if "upscaler" in stages:
            unit *= self.upscale_factor
        for name, value in (("height", height), ("width", width)):
            if value % unit:
                near = max(unit, round(value / unit) * unit)
                raise UserError(
                    f"The {name} is {value}; with these stages the model makes multiples of "
                    f"{unit}, such as {near}."
                )
        return height // unit, width // unit

    def is_long(self, request: Request) -> bool:
        """Return whether a video is made in several windows."""
        return request.num_frames > self.max_frames

    def num_windows(self, request: Request) -> int:
        """Return how many times key frames are sampled, one after the other."""
        if not self.is_long(request):
            return 1
        beyond = request.num_frames - self.max_frames
        return 1 + -(-beyond // (self.max_frames - (request.overlap or 1)))

    def validate(self, request: Request) -> None:
        """Refuse a request that the model cannot fulfil.

        Raises:
            UserError: If it wants too many frames or steps, another size or another model.
        """
        self._check_continuation(request)
        if request.motion is not None and not self.has_motion:
            raise UserError(
                f"The motion is {request.motion:g}; this model was trained without a motion score, "
                "so leave the motion out."
            )
        most = max(request.num_inference_steps, request.interpolation_steps, request.upscaler_steps)
        if most > self.max_steps:
            raise UserError(
                f"The number of steps is {most}; this model knows at most {self.max_steps}."
            )
        latent_steps = max(request.num_inference_steps, request.interpolation_steps)
        if request.scheduler == "lcm" and latent_steps > _MOST_LCM_STEPS:
            raise UserError(
                f"The number of steps is {latent_steps}; the scheduler lcm takes at most "
                f"{_MOST_LCM_STEPS}."
            )
        self._check_flow_map(request)
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
        self.latent_size(request)

    def _check_continuation(self, request: Request) -> None:
        """Refuse long videos and first frames of models that have not learned to continue frames.

        Raises:
            UserError: If the request is for one.
        """
        if request.first_frame is not None and not self.max_given_frames:
            raise UserError(
                "The video begins with a given picture, and this model was trained without given "
                "frames; choose another model."
            )
        if not self.is_long(request):
            if request.overlap is not None:
                raise UserError(
                    f"The overlap is {request.overlap}; it is for videos of more than "
                    f"{self.max_frames} key frames, so leave it out."
                )
            return
        if not self.max_given_frames:
            raise UserError(
                f"The number of frames is {request.num_frames}; this model makes at most "
                f"{self.max_frames}, since it was trained without given frames to continue."
            )
        most = min(self.max_given_frames, self.max_frames - 1)
        if request.overlap is None or request.overlap > most:
            raise UserError(
                f"The overlap is {request.overlap}; it must be an integer from 1 to {most}, as "
                "many frames as this model has learned to continue."
            )

    def _check_flow_map(self, request: Request) -> None:
        """Refuse what does not fit a distilled denoiser, or what only one can do.

        Raises:
            UserError: If the scheduler is not the one of the denoiser, or guidance is asked of a
                denoiser that has it already.
        """
        if (request.scheduler == FLOW_MAP) != self.is_flow_map:
            reason = (
                f"this model is distilled and takes {FLOW_MAP} alone"
                if self.is_flow_map
                else "it is for distilled models, which this one is not"
            )
            raise UserError(
                f"The scheduler is {request.scheduler}; {reason}. Leave the scheduler out."
            )
        if self.is_flow_map and request.guidance_scale != 1:
            raise UserError(
                f"The guidance scale is {request.guidance_scale:g}; guidance is distilled into "
                "this model, which takes none. Leave the scale out, or take the model that it was "
                "distilled from."
            )

    def check_loras(self, request: Request) -> None:
        """Refuse a request for other LoRAs than the model has.

        Raises:
            UserError: If one is missing, too many, another, at another scale or in another place.
        """
        wanted, there = (
            [(ref.sha256, ref.scale) for ref in loras] for loras in (request.loras, self.loras)
        )
        if wanted != there:  # a file may have another name than it had
            raise UserError(
                f"The video was made with {_describe(request.loras)}, and the model has "
                f"{_describe(self.loras)}; load the same files at the same scales, in this order."
            )

    def check_chunks(self, request: Request, chunks: ChunkSizes) -> None:
        """Refuse a chunk size that would change nothing in a video.

        Raises:
            UserError: If it is for a stage that the video has not, or for tiles that cannot be.
        """
        tile, least = chunks.upscaler_tile, self.min_tile_size
        longest = self._upscaled_side(request)
        if "upscaler" not in request.stages:
            if replace(chunks, decoder_frames=DEFAULT_CHUNKS.decoder_frames) != DEFAULT_CHUNKS:
                raise UserError(
                    "The video has no stage upscaler; leave --upscaler-frames and --upscaler-tile "
                    "out."
                )
        elif tile != DEFAULT_CHUNKS.upscaler_tile and not least <= tile < longest:
            if least >= longest:
                raise UserError(
                    f"The tile is {tile}, and this upscaler sees {least} pixels or more, which "
                    f"frames of {longest} have not; leave --upscaler-tile out."
                )
            raise UserError(
                f"The tile is {tile}; it must be an integer from {least} to {longest - 1}."
            )

    def reduce_memory(self, request: Request, chunks: ChunkSizes) -> ChunkSizes:
        """Return sizes by which a video takes less memory, or the same if there are none."""
        if "upscaler" not in request.stages:
            return replace(chunks, decoder_frames=1)
        single = replace(chunks, decoder_frames=1, upscaler_frames=1)
        if single != chunks:
            return single
        seen = min(chunks.upscaler_tile, self._upscaled_side(request))
        tile = max(self.min_tile_size, seen // 2)
        return replace(chunks, upscaler_tile=tile) if tile < seen else chunks

    def _upscaled_side(self, request: Request) -> int:
        """Return the longest side of the frames that the upscaler sees."""
        return max(request.height, request.width) // self.upscale_factor


def _describe(loras: tuple[LoraRef, ...]) -> str:
    shown = (f"{ref.name} (SHA-256 {ref.sha256[:12]}...) at {ref.scale:g}" for ref in loras)
    return f"the LoRA {', '.join(shown)}" if loras else "no LoRA"
