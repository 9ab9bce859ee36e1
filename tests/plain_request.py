"""A request with default values, which tests change as needed."""

from magicvideo.pipelines.request import Request

PLAIN = Request(
    prompt="a cat",
    negative_prompt="",
    image_condition=None,
    seed=1,
    num_frames=5,
    fps=7.0,
    num_inference_steps=3,
    guidance_scale=2.0,
    guidance_stop=1.0,
    height=24,
    width=24,
    scheduler="ddim",
    output_scale=8,
    stages=("keyframes",),
    num_inserted=0,
    interpolation_steps=2,
    upscaler_steps=1,
    model=None,
    device="cpu",
    threads=1,
    version="0.1.0",
)
