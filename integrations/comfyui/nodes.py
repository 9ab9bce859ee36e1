"""Nodes in ComfyUI's V3 schema, which call `magicvideo.pipelines.staged`."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import ComfyExtension, InputImpl, Types, io

from magicvideo.pipelines.request import GenerationSettings
from magicvideo.pipelines.staged import (
    StagedLatents,
    decode_staged,
    interpolate_staged,
    load_staged_pipeline,
    sample_keyframe_latents,
    to_images,
    to_pil,
    upscale_images,
)
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.pipelines.video import read_request

_CATEGORY = "magicvideo"
_MAX_SEED = 2**63 - 1
_FREE_MOTION = -5.0
Model = io.Custom("MAGICVIDEO_MODEL")
Latents = io.Custom("MAGICVIDEO_LATENTS")


def _settings_inputs() -> list[Any]:
    """Return the inputs of every sampling node; 0 selects the model's default."""
    return [
        io.Int.Input("seed", default=0, min=0, max=_MAX_SEED, control_after_generate=True),
        io.Int.Input("steps", default=0, min=0, max=1000, tooltip="0: the model's default."),
        io.Float.Input(
            "guidance",
            default=-1.0,
            min=-1.0,
            max=100.0,
            step=0.1,
            tooltip="How closely to follow the prompt; -1: the model's default, 1: no guidance.",
        ),
        io.Int.Input("frames", default=0, min=0, max=10_000, tooltip="0: the maximum."),
        io.Float.Input(
            "fps",
            default=0.0,
            min=0.0,
            max=60.0,
            step=0.5,
            tooltip="Key frames per second; 0: the model's default.",
        ),
        io.String.Input("negative_prompt", default="", multiline=True),
        io.Float.Input(
            "motion",
            default=_FREE_MOTION,
            min=_FREE_MOTION,
            max=4.0,
            step=0.1,
            tooltip="How much moves: 0 is the mean of the training clips, 1 a standard deviation "
            "more; -5 leaves it to the model.",
        ),
    ]


def _progress() -> Callable[[str, int, int], None]:
    """Return a callback that shows steps in ComfyUI and stops if its user cancels."""
    import comfy.model_management
    import comfy.utils

    bars: dict[str, Any] = {}

    def report(stage: str, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if stage not in bars:
            bars[stage] = comfy.utils.ProgressBar(total)
        bars[stage].update_absolute(done, total)

    return report


def _video(images: torch.Tensor, fps: float) -> Any:  # noqa: ANN401 (ComfyUI's own type)
    rate = Fraction(fps).limit_denominator(1000)
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=rate))


class LoadModel(io.ComfyNode):
    """Loads a model folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's description."""
        return io.Schema(
            node_id="MagicVideoLoadModel",
            display_name="Load Model (magicvideo)",
            category=_CATEGORY,
            description="Load a model folder, by default the bundled model.",
            inputs=[
                io.String.Input("folder", default="", tooltip="Empty: the bundled model."),
                io.Combo.Input("device", options=["auto", "cpu", "cuda", "mps"], default="auto"),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, folder: str, device: str) -> io.NodeOutput:
        """Return the model."""
        if device == "auto":
            import comfy.model_management

            device = str(comfy.model_management.get_torch_device())
        path = Path(folder) if folder.strip() else None
        return io.NodeOutput(load_staged_pipeline(path, device))


class _SamplingNode(io.ComfyNode):
    """Base of the nodes with a prompt: the schema of the settings and their reader."""

    @classmethod
    def execute(
        cls,
        model: MagicVideoPipeline,
        prompt: str,
        seed: int,
        steps: int,
        guidance: float,
        frames: int,
        fps: float,
        negative_prompt: str,
        motion: float = _FREE_MOTION,
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """Return the output of the node; `image` exists only if the schema has it."""
        settings = GenerationSettings(
            negative_prompt=negative_prompt,
            num_frames=frames or None,
            fps=fps or None,
            num_inference_steps=steps or None,
            guidance_scale=None if guidance < 0 else guidance,
            motion=None if motion == _FREE_MOTION else motion,
        )
        return cls.sample(model, prompt, seed, settings, image)

    @classmethod
    def sample(
        cls,
        model: MagicVideoPipeline,
        prompt: str,
        seed: int,
        settings: GenerationSettings,
        image: torch.Tensor | None,
    ) -> io.NodeOutput:
        """Return the latents of the key frames."""
        latents = sample_keyframe_latents(model, prompt, seed, settings, image, _progress())
        return io.NodeOutput(latents)


class TextToKeyframes(_SamplingNode):
    """Samples key frames from a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's description."""
        return io.Schema(
            node_id="MagicVideoTextToKeyframes",
            display_name="Text to Key Frames (magicvideo)",
            category=_CATEGORY,
            inputs=[
                Model.Input("model"),
                io.String.Input("prompt", multiline=True),
                *_settings_inputs(),
            ],
            outputs=[Latents.Output(display_name="key_frames")],
        )


class ImageToKeyframes(_SamplingNode):
    """Samples key frames from an image and an optional prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's description."""
        return io.Schema(
            node_id="MagicVideoImageToKeyframes",
            display_name="Image to Key Frames (magicvideo)",
            category=_CATEGORY,
            inputs=[
                Model.Input("model"),
                io.Image.Input("image"),
                io.String.Input("prompt", default="", multiline=True),
                *_settings_inputs(),
            ],
            outputs=[Latents.Output(display_name="key_frames")],
        )


class Interpolate(io.ComfyNode):
    """Inserts new frames between key frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's description."""
        return io.Schema(
            node_id="MagicVideoInterpolate",
            display_name="Interpolate (magicvideo)",
            category=_CATEGORY,
            inputs=[
                Model.Input("model"),
                Latents.Input("key_frames"),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip="0: the default."),
            ],
            outputs=[Latents.Output(display_name="frames")],
        )

    @classmethod
    def execute(
        cls, model: MagicVideoPipeline, key_frames: StagedLatents, steps: int
    ) -> io.NodeOutput:
        """Return the latents of all frames."""
        return io.NodeOutput(interpolate_staged(model, key_frames, steps or None, _progress()))


class Decode(io.ComfyNode):
    """Decodes latents to images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's description."""
        return io.Schema(
            node_id="MagicVideoDecode",
            display_name="Decode (magicvideo)",
            category=_CATEGORY,
            inputs=[Model.Input("model"), Latents.Input("latents")],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Video.Output(display_name="video"),
                io.Float.Output(display_name="fps"),
            ],
        )

    @classmethod
    def execute(cls, model: MagicVideoPipeline, latents: StagedLatents) -> io.NodeOutput:
        """Return the frames, as images and as a video."""
        images = decode_staged(model, latents, _progress())
        return io.NodeOutput(images, _video(images, latents.fps), latents.fps)


class Upscale(io.ComfyNode):
    """Upscales decoded frames with the model's super-resolution network."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's description."""
        return io.Schema(
            node_id="MagicVideoUpscale",
            display_name="Upscale (magicvideo)",
            category=_CATEGORY,
            inputs=[
                Model.Input("model"),
                io.Image.Input("images"),
                Latents.Input("latents", tooltip="Latents of the images; they contain the seed."),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip="0: the default."),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Video.Output(display_name="video"),
            ],
        )

    @classmethod
    def execute(
        cls, model: MagicVideoPipeline, images: torch.Tensor, latents: StagedLatents, steps: int
    ) -> io.NodeOutput:
        """Return the upscaled frames, as images and as a video."""
        large = upscale_images(model, images, latents.request, steps or None, _progress())
        return io.NodeOutput(large, _video(large, latents.fps))


class Generate(_SamplingNode):
    """Runs all stages of the model, from a prompt, an image or both."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's description."""
        return io.Schema(
            node_id="MagicVideoGenerate",
            display_name="Generate Video (magicvideo)",
            category=_CATEGORY,
            inputs=[
                Model.Input("model"),
                io.String.Input("prompt", multiline=True),
                *_settings_inputs(),
                io.Image.Input("image", optional=True, tooltip="First frame or condition."),
            ],
            outputs=[
                io.Video.Output(display_name="video"),
                io.Image.Output(display_name="images"),
            ],
        )

    @classmethod
    def sample(
        cls,
        model: MagicVideoPipeline,
        prompt: str,
        seed: int,
        settings: GenerationSettings,
        image: torch.Tensor | None,
    ) -> io.NodeOutput:
        """Return the result, as a video and as images."""
        picture = None if image is None else to_pil(image)
        (request,) = model.build_requests([prompt], [seed], settings, picture)
        video = model.generate(request, _progress())
        images = to_images(video.frames[None])
        return io.NodeOutput(_video(images, request.video_fps), images)


class ReadRecipe(io.ComfyNode):
    """Reads the request that is stored in a video of magicvideo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's description."""
        return io.Schema(
            node_id="MagicVideoReadRecipe",
            display_name="Read Recipe (magicvideo)",
            category=_CATEGORY,
            inputs=[io.String.Input("file", tooltip="A video, GIF or WebP that magicvideo wrote.")],
            outputs=[
                io.String.Output(display_name="prompt"),
                io.String.Output(display_name="negative_prompt"),
                io.Int.Output(display_name="seed"),
                io.Int.Output(display_name="steps"),
                io.Float.Output(display_name="guidance"),
                io.Int.Output(display_name="frames"),
                io.Float.Output(display_name="fps"),
                io.String.Output(display_name="recipe"),
            ],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Return the settings in the file."""
        request = read_request(Path(file))
        return io.NodeOutput(
            request.prompt,
            request.negative_prompt,
            request.seed,
            request.num_inference_steps,
            request.guidance_scale,
            request.num_frames,
            request.fps,
            request.to_json(),
        )


class MagicVideoExtension(ComfyExtension):
    """The nodes of magicvideo."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node classes."""
        return [
            LoadModel,
            TextToKeyframes,
            ImageToKeyframes,
            Interpolate,
            Decode,
            Upscale,
            Generate,
            ReadRecipe,
        ]
