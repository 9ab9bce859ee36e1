"""Where the studio meets the pipeline: planning a request, and making a video in stages.

Nothing else in the studio imports a network. The server plans with a pipeline that has no weights
in memory; a worker has one with all of them.
"""

import hashlib
import io
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from magicvideo.errors import UserError
from magicvideo.media.video_io import to_uint8, write_pixels
from magicvideo.pipelines.capabilities import ModelCapabilities
from magicvideo.pipelines.extend import ContinuedVideo, plan_extension
from magicvideo.pipelines.hints import prompt_hints
from magicvideo.pipelines.model_folder import BUNDLED_MODEL_DIR
from magicvideo.pipelines.request import (
    DEFAULT_CHUNKS,
    GenerationSettings,
    ImageCondition,
    Request,
    request_from_json,
    resolve_seeds,
)
from magicvideo.pipelines.text_to_video import CallInputs, MagicVideoPipeline
from magicvideo.pipelines.video import read_latents, read_request, write_latents
from magicvideo.shapes import Frames, Latents
from magicvideo.studio.files import FileStore
from magicvideo.studio.parameters import VideoParameters
from magicvideo.studio.uploads import Beginning, file_suffix

_PREVIEW_STRIDE = 4  # of the key frames that are shown while they are sampled
_LONGEST_SECONDS = 20.0  # of models that continue frames: a job holds all frames in memory
_LONGEST_EXTENDED = 60.0  # with what it continues
_SLOWEST_KEYS = 3.0  # key frames per second; the network has seen nothing slower
_SHEET_FRAMES, _SHEET_COLUMNS, _SHEET_SIDE = 16, 4, 160
_PREVIEW_SIDE = 256
_MAX_SCALE = 8  # times the size that a model makes
_EXTENSION = ("extend",)  # what decides an extended video beside its request
# seconds of one step until a worker has measured its own; only their ratios matter
_TYPICAL = {
    "key frames": 0.3,
    "interpolation": 1.0,
    "decoding": 0.02,
    "super-resolution": 0.15,
    "writing": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked request.

    Attributes:
        request: Complete but for the picture, which the worker adds.
        seconds: Length of the video.
        size: Width and height, such as `256x256`.
        fingerprint: SHA-256 of all that decides the bytes of the file.
        warnings: Sentences for the client.
    """

    request: Request
    seconds: float
    size: str
    fingerprint: str
    warnings: tuple[str, ...]


@runtime_checkable
class Watcher(Protocol):
    """Follows the making of a video; whatever it raises ends the work."""

    def report(self, stage: str, done: int, total: int) -> None:
        """Take note of the steps done in a stage."""

    def show(self, frames: Frames) -> None:
        """Show what a stage has made, pixels in [-1, 1]."""

    def show_step(self, make_frames: Callable[[], Frames]) -> None:
        """Show what a step expects at its end, if there is time to encode it."""


@dataclass(frozen=True)
class Made:
    """A finished video, as files."""

    video: Path
    thumbnail: bytes
    spritesheet: bytes
    request: Request


class Engine:
    """One model.

    Args:
        model: Model folder, or None for the shipped model.
        device: Where its networks are; None loads none of them, which is enough for planning.
        loras: Folder of the LoRA files that requests may name.
        threads: CPU threads, which decide the last bits of a video.

    Raises:
        UserError: If the folder is not a complete model.
    """

    def __init__(
        self,
        model: Path | None = None,
        *,
        device: str | None = None,
        loras: Path | None = None,
        threads: int | None = None,
    ) -> None:
        self.name = (model or BUNDLED_MODEL_DIR).resolve().name
        self._threads = threads
        if threads is not None and device is not None:
            torch.set_num_threads(threads)
        if device is None:
            self._pipeline = MagicVideoPipeline.from_pretrained(model, offload_device="cpu")
        else:
            self._pipeline = MagicVideoPipeline.from_pretrained(model).to(device)
        self._loras, self._merged = loras, [("", 0.0)][:0]
        self._lock = threading.RLock()
        self._step_seconds = dict(_TYPICAL)

    @property
    def capabilities(self) -> ModelCapabilities:
        """Return what the model can do, and does by default."""
        return self._pipeline.capabilities

    @property
    def takes_pictures(self) -> bool:
        """Tell whether a video can begin with a picture, or be conditioned on one."""
        return self._pipeline.image_encoder is not None or self.extends_videos

    @property
    def extends_videos(self) -> bool:
        """Tell whether the model has learned to continue given frames."""
        return self.capabilities.max_given_frames > 0

    def seconds_of(self, frames: int | None = None, fps: float | None = None) -> float:
        """Return the length of a video of all stages; None is the most frames, the usual rate."""
        model = self.capabilities
        rate = float(fps or model.default("fps"))
        return _seconds(frames or model.max_frames, rate, model.num_inserted)

    @property
    def longest_seconds(self) -> float:
        """Return the length of the longest video."""
        longest = self.seconds_of(fps=_SLOWEST_KEYS)
        return max(longest, _LONGEST_SECONDS) if self.capabilities.max_given_frames else longest

    def read(self, text: str) -> Request:
        """Return the request in a job's record.

        Raises:
            UserError: If the text is not a request.
        """
        request = request_from_json(text)
        if request is None:
            raise UserError("The record of the video holds no request.")
        return request

    def lora_names(self) -> list[str]:
        """Return the names of the LoRA files that requests may use."""
        if self._loras is None:
            return []
        return sorted(path.stem for path in self._loras.glob("*.safetensors"))

    # -- planning ---------------------------------------------------------------------------------

    def plan(
        self, parameters: VideoParameters, beginning: Beginning | None = None, device: str = "cpu"
    ) -> Plan:
        """Check parameters against the model and complete them.

        Args:
            parameters: What was asked for, with a seed.
            beginning: What the video begins with.
            device: Kind of device of the workers.

        Raises:
            UserError: If the model cannot do it.
        """
        clip = None if beginning is None else beginning.clip
        if beginning is not None and clip is None and not self.takes_pictures:
            raise UserError("This model takes no picture; leave input_reference out.")
        with self._with_loras(parameters.loras()):
            model = self.capabilities
            settings = _settings(parameters, model, is_extension=clip is not None)
            placeholder: ImageCondition | None = None
            unrecorded: tuple[str, ...] = ()
            own_frames = 0
            if clip is not None:
                extension = plan_extension(model, clip, settings, parameters.seconds)
                settings, unrecorded = extension.settings, _EXTENSION
                # the given key frames and what lies between them are in the video already
                own_frames = clip.num_frames - (extension.num_given - 1) * extension.stride - 1
            elif beginning is not None:
                placeholder = ImageCondition(name="picture", embedding="")
            seed, prompt = resolve_seeds(parameters.seed, 1)[0], parameters.prompt
            request = model.build_request(prompt, seed, settings, placeholder, unrecorded)
        seconds = (own_frames + request.video_frames) / request.video_fps
        if clip is not None:
            _check_extended(seconds, seconds - clip.num_frames / clip.fps)
        threads = self._threads or torch.get_num_threads()
        request = replace(request, device=device, threads=threads)
        identity = None if beginning is None else beginning.sha256
        facts = asdict(request) | {"image_condition": identity, "format": parameters.format}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        texts = dict.fromkeys([parameters.prompt, parameters.negative_prompt or ""])
        hints = [
            hint
            for text in texts
            for hint in prompt_hints(text, self._pipeline.tokenizer, self._pipeline.words)
        ]
        return Plan(
            request=request,
            seconds=seconds,
            size=f"{request.width * request.output_scale}x{request.height * request.output_scale}",
            fingerprint=digest,
            warnings=tuple(hints),
        )

    # -- making -----------------------------------------------------------------------------------

    def make(
        self,
        job_id: str,
        parameters: VideoParameters,
        beginning: Beginning | None,
        files: FileStore,
        scratch: Path,
        watcher: Watcher,
    ) -> Made:
        """Make one video, from the newest latents that an earlier attempt kept.

        Args:
            job_id: Names the files.
            parameters: Complete, with a seed.
            beginning: What the video begins with.
            files: Where latents are kept between stages.
            scratch: Local folder for the finished file.
            watcher: Told of every step, and of frames as soon as there are any.

        Raises:
            UserError: If the request cannot be fulfilled.
        """
        with self._with_loras(parameters.loras()), torch.no_grad():
            pipeline = self._pipeline
            request, continued = self._begin(parameters, beginning)
            inputs = _shown_steps(watcher, continued)
            latents = self._latents(job_id, request, inputs, files, scratch, watcher)
            frames = pipeline.decode(latents, watcher.report)
            watcher.show(frames)
            if continued is not None:
                # given frames were decoded, too, since a video decoder remembers earlier ones
                given = (continued.keys.shape[1] - 1) * (request.num_inserted + 1) + 1
                frames = frames[:, given:]
            if "upscaler" in request.stages:
                frames = pipeline.upscale(request, frames, watcher.report, DEFAULT_CHUNKS)
        watcher.report("writing", 0, 1)
        video = scratch / f"{job_id}.{parameters.format}"
        pixels = to_uint8(frames[0].cpu(), request.output_scale)
        if continued is not None:
            own = [to_uint8(frame[None], request.output_scale) for frame in continued.frames()]
            pixels = np.concatenate([*own, pixels])
        write_pixels(pixels, request.video_fps, request.to_json(), video, overwrite=True)
        watcher.report("writing", 1, 1)
        return Made(video, _thumbnail(pixels), _spritesheet(pixels), request)

    def forget(self, job_id: str, files: FileStore, scratch: Path) -> None:
        """Remove what `make` kept of a job."""
        files.remove([_kept(job_id, stage) for stage in ("keyframes", "interpolation")])
        for path in scratch.glob(f"{job_id}*"):
            path.unlink(missing_ok=True)

    def expected_seconds(self, request: Request) -> dict[str, tuple[int, float]]:
        """Return, by stage, the number of steps and the seconds of one, as measured last."""
        windows = self.capabilities.num_windows(request)
        steps = {"key frames": windows * request.num_inference_steps}
        if "interpolation" in request.stages:
            steps["interpolation"] = windows * request.interpolation_steps
        steps["decoding"] = request.video_frames
        if "upscaler" in request.stages:
            steps["super-resolution"] = request.upscaler_steps * -(
                -request.video_frames // DEFAULT_CHUNKS.upscaler_frames
            )
        steps["writing"] = 1
        return {stage: (count, self._step_seconds[stage]) for stage, count in steps.items()}

    def learn_seconds(self, stage: str, steps: int, seconds: float) -> None:
        """Note how long a stage took, for the estimates of later jobs."""
        if steps and stage in self._step_seconds:
            self._step_seconds[stage] = seconds / steps

    def _begin(
        self, parameters: VideoParameters, beginning: Beginning | None
    ) -> tuple[Request, ContinuedVideo | None]:
        """Return the complete request, and the video that it continues, if any."""
        pipeline, (seed,) = self._pipeline, resolve_seeds(parameters.seed, 1)
        if beginning is None or beginning.clip is None:
            settings = _settings(parameters, self.capabilities)
            picture = None if beginning is None else beginning.path
            (request,) = pipeline.build_requests([parameters.prompt], [seed], settings, picture)
            return request, None
        settings = _settings(parameters, self.capabilities, is_extension=True)
        settings, continued = pipeline.continue_video(beginning.path, settings, parameters.seconds)
        request = self.capabilities.build_request(
            parameters.prompt, seed, settings, None, _EXTENSION
        )
        return request, continued

    def _latents(
        self,
        job_id: str,
        request: Request,
        inputs: CallInputs,
        files: FileStore,
        scratch: Path,
        watcher: Watcher,
    ) -> Latents:
        pipeline = self._pipeline
        if "interpolation" in request.stages:
            kept = _read_kept(job_id, "interpolation", request, files, scratch)
            if kept is not None:
                return kept.to(pipeline.device)
        tokens, negative = pipeline.encode_condition(request)
        keys = _read_kept(job_id, "keyframes", request, files, scratch)
        if keys is None:
            keys = pipeline.sample_keyframes(request, tokens, negative, watcher.report, inputs)
            _keep(job_id, "keyframes", keys, request, files, scratch)
        keys = keys.to(pipeline.device)
        watcher.show(pipeline.decode(keys))
        if "interpolation" not in request.stages:
            return keys
        latents = pipeline.interpolate(request, keys, tokens, watcher.report)
        _keep(job_id, "interpolation", latents, request, files, scratch)
        return latents

    @contextmanager
    def _with_loras(self, wanted: list[tuple[str, float]]) -> Iterator[None]:
        """Have exactly the wanted LoRAs in the model; they stay until others are wanted."""
        with self._lock:
            if wanted != self._merged:
                self._pipeline.unload_lora_weights()
                self._merged = []
                for name, scale in wanted:
                    self._pipeline.load_lora_weights(self._lora_path(name), scale=scale)
                self._merged = wanted
            yield

    def _lora_path(self, name: str) -> Path:
        if self._loras is None or name not in self.lora_names():
            known = ", ".join(self.lora_names()) or "none"
            raise UserError(f"There is no LoRA {name!r} on this server; there is: {known}.")
        return self._loras / f"{name}.safetensors"


def read_recipe(content: bytes) -> dict[str, str | int | float]:
    """Return the settings in a file that magicvideo wrote, as parameters of a request.

    Args:
        content: The uploaded file.

    Raises:
        UserError: If it says nothing about how it was made.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{file_suffix(content)}"
        path.write_bytes(content)
        try:
            return parameters_of(read_request(path))
        except UserError as error:
            raise UserError(str(error).replace(str(path), "The file")) from None


def parameters_of(request: Request) -> dict[str, str | int | float]:
    """Return a request as the parameters that ask for it again."""
    motion = {} if request.motion is None else {"motion": request.motion}
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "frames": request.num_frames,
        "fps": request.fps,
        "steps": request.num_inference_steps,
        "guidance": request.guidance_scale,
        "guidance_stop": request.guidance_stop,
        "scheduler": request.scheduler,
        "stages": ",".join(request.stages),
        "interpolation_steps": request.interpolation_steps,
        "upscaler_steps": request.upscaler_steps,
        **motion,
    }


def preview_bytes(frames: Frames) -> bytes:
    """Return frames as a small animated WebP, quick to make rather than small."""
    pixels = to_uint8(frames[0].cpu())
    side = max(pixels.shape[1:3])
    scale = max(1, _PREVIEW_SIDE // side)
    size = (pixels.shape[2] * scale, pixels.shape[1] * scale)
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in pixels]
    holder = io.BytesIO()
    duration = round(2500 / len(pictures))
    pictures[0].save(
        holder,
        format="WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=duration,
        loop=0,
        quality=70,
        method=0,
    )
    return holder.getvalue()


def _shown_steps(watcher: Watcher, continued: ContinuedVideo | None) -> CallInputs:
    """Return what lets a watcher see some expected key frames after each of their steps."""

    def after_step(
        pipeline: MagicVideoPipeline, _: int, __: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        some = tensors["pred_original_sample"][:, ::_PREVIEW_STRIDE]
        watcher.show_step(lambda: pipeline.preview(some))
        return {}

    return CallInputs(
        callback=after_step, callback_tensors=("pred_original_sample",), extend=continued
    )


def _check_extended(seconds: float, added: float) -> None:
    """Refuse a video that is too long for one job, which holds all frames in memory."""
    if added > _LONGEST_SECONDS + 0.5:  # to the nearest key frame
        raise UserError(
            f"{added:.1f} seconds would be added; at most {_LONGEST_SECONDS:g} can be added at a "
            "time."
        )
    if seconds > _LONGEST_EXTENDED:
        raise UserError(
            f"The video would be {seconds:.1f} seconds long; it may be extended to "
            f"{_LONGEST_EXTENDED:g}."
        )


def _settings(
    parameters: VideoParameters, model: ModelCapabilities, *, is_extension: bool = False
) -> GenerationSettings:
    """Return the pipeline's settings; `seconds` and `size` become frames, rate and enlargement.

    The seconds of an extension are left to the pipeline, which has the frame rate of the video.
    """
    stages = None if parameters.stages is None else tuple(parameters.stages.split(","))
    frames, fps = parameters.frames, parameters.fps
    if not is_extension:
        frames, fps = _frames_and_rate(parameters, model, stages or model.stages)
    return GenerationSettings(
        negative_prompt=parameters.negative_prompt or "",
        num_frames=frames,
        fps=fps,
        motion=parameters.motion,
        num_inference_steps=parameters.steps,
        guidance_scale=parameters.guidance,
        guidance_stop=parameters.guidance_stop,
        scheduler=parameters.scheduler,
        output_scale=_output_scale(parameters.size, model, stages or model.stages),
        stages=stages,
        interpolation_steps=parameters.interpolation_steps,
        upscaler_steps=parameters.upscaler_steps,
    )


def _frames_and_rate(
    parameters: VideoParameters, model: ModelCapabilities, stages: tuple[str, ...]
) -> tuple[int | None, float | None]:
    if parameters.seconds is None:
        return parameters.frames, parameters.fps
    if parameters.frames is not None:
        raise UserError("seconds and frames both tell the length; give one of them.")
    inserted = model.num_inserted if "interpolation" in stages else 0
    fps = parameters.fps or model.default("fps")
    frames = round(parameters.seconds * fps - 1 / (inserted + 1)) + 1
    frames = max(2 if inserted else 1, frames)
    if model.max_given_frames and parameters.seconds <= _LONGEST_SECONDS:
        return frames, parameters.fps
    if frames > model.max_frames and parameters.fps is None:
        # the rate makes up for the key frames that the model does not have
        frames = model.max_frames
        fps = _seconds(frames, 1.0, inserted) / parameters.seconds
    if frames > model.max_frames or (parameters.fps is None and fps < _SLOWEST_KEYS):
        longest = _seconds(model.max_frames, parameters.fps or _SLOWEST_KEYS, inserted)
        longest = max(longest, _LONGEST_SECONDS) if model.max_given_frames else longest
        raise UserError(
            f"seconds is {parameters.seconds:g}; this model makes at most {longest:.1f} seconds"
            f"{f' at {fps:g} key frames per second' if parameters.fps else ''}."
        )
    return frames, fps


def _seconds(frames: int, fps: float, inserted: int) -> float:
    """Return the length of a video of key frames, with new frames between them."""
    return ((frames - 1) * (inserted + 1) + 1) / (fps * (inserted + 1))


def _output_scale(
    size: str | None, model: ModelCapabilities, stages: tuple[str, ...]
) -> int | None:
    if size is None:
        return None
    usual_height, usual_width = model.default_size(stages)
    possible = {f"{usual_width * by}x{usual_height * by}": by for by in range(1, _MAX_SCALE + 1)}
    if size not in possible:
        allowed = ", ".join(name for name, by in possible.items() if by in (1, 2, 4, 8))
        raise UserError(f"size is {size}; this model makes videos of {allowed}.")
    return possible[size]


def _kept(job_id: str, stage: str) -> str:
    return f"{job_id}-{stage}.safetensors"


def _keep(
    job_id: str, stage: str, latents: Latents, request: Request, files: FileStore, scratch: Path
) -> None:
    path = scratch / _kept(job_id, stage)
    write_latents(path, latents, request)
    files.put(path.name, path)
    path.unlink()


def _read_kept(
    job_id: str, stage: str, request: Request, files: FileStore, scratch: Path
) -> Latents | None:
    """Return the latents of an earlier attempt, if they are whole and of the same request."""
    name = _kept(job_id, stage)
    if not files.exists(name):
        return None
    path = files.fetch(name, scratch / name)
    try:
        kept, latents = read_latents(path)
    except UserError:
        return None
    finally:
        path.unlink(missing_ok=True)
    return latents if kept == request else None


def _thumbnail(pixels: np.ndarray) -> bytes:
    holder = io.BytesIO()
    Image.fromarray(pixels[len(pixels) // 3]).save(holder, format="WEBP", quality=85)
    return holder.getvalue()


def _spritesheet(pixels: np.ndarray) -> bytes:
    """Return evenly spaced frames, row by row, as one JPEG."""
    chosen = np.linspace(0, len(pixels) - 1, min(_SHEET_FRAMES, len(pixels))).round().astype(int)
    columns = min(_SHEET_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * _SHEET_SIDE, rows * _SHEET_SIDE), "white")
    for place, index in enumerate(chosen):
        picture = Image.fromarray(pixels[index])
        picture.thumbnail((_SHEET_SIDE, _SHEET_SIDE))
        row, column = divmod(place, columns)
        sheet.paste(picture, (column * _SHEET_SIDE, row * _SHEET_SIDE))
    holder = io.BytesIO()
    sheet.save(holder, format="JPEG", quality=85)
    return holder.getvalue()
