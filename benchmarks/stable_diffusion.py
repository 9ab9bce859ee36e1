"""Inflate a model of the full size of Stable Diffusion 1.5, compare it and run it.

The weights are random, from diffusers. The benchmark shows that every tensor is mapped and that the
sizes fit. Each step runs in a new process, so that its peak memory is separate.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel

from magicvideo import MagicVideoPipeline
from magicvideo.convert.extract_unet import export_image_model
from magicvideo.convert.stable_diffusion import inflate_stable_diffusion
from magicvideo.pipelines.component_loading import load_component
from magicvideo.training.tasks.clip_model import train_tokenizer
from studies.cost.networks import PAPER

IMAGE, VIDEO, BACK = "image", "video", "back"
FRAMES, SIDE, STEPS, TOKENS, WIDTH = 3, 32, 2, 77, 768
AUTOENCODER = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
}


def make(folder: Path) -> str:
    """Write a folder in diffusers' format with random weights, one network after the other."""
    torch.manual_seed(0)
    source = folder / IMAGE
    config = {name: value for name, value in PAPER.config.items() if name != "num_frames"}
    UNet2DConditionModel(**config).save_pretrained(source / "unet")
    AutoencoderKL(**AUTOENCODER).save_pretrained(source / "vae")
    text = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12
    )
    CLIPTextModel(text).save_pretrained(source / "text_encoder")
    checker = CLIPConfig(vision_config=VISION, projection_dim=WIDTH)
    StableDiffusionSafetyChecker(checker).save_pretrained(source / "safety_checker")
    train_tokenizer(["a cat", "a red dog"], 520, TOKENS).save_pretrained(source / "tokenizer")
    PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True
    ).save_pretrained(source / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", **CLASSES}
    (source / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return f"{_gigabytes(source):.1f} GB"


def inflate(folder: Path) -> str:
    """Create the video model."""
    accounts = inflate_stable_diffusion(
        folder / IMAGE, folder / VIDEO, num_frames=FRAMES, size=8 * SIDE
    )
    rows = [f"{a.component} {a.copied}+{a.new}-{a.refused}" for a in accounts]
    return f"{_gigabytes(folder / VIDEO):.1f} GB; copied+new-refused: {', '.join(rows)}"


@torch.no_grad()
def compare(folder: Path) -> str:
    """Compare the two U-Nets frame by frame."""
    latents, timestep, tokens = _inputs()
    image = UNet2DConditionModel.from_pretrained(folder / IMAGE / "unet").eval()
    expected = torch.cat([image(x[None], timestep, tokens).sample for x in latents])
    count = sum(parameter.numel() for parameter in image.parameters())
    del image
    video = load_component(folder / VIDEO, "unet", "VideoUNet", torch.float32)
    made = video(latents[None], timestep, tokens, torch.tensor([8.0])).sample[0]
    error = float((made - expected).abs().max())
    if error > 1e-4:
        raise SystemExit(f"the networks differ by {error}")
    new = sum(parameter.numel() for parameter in video.parameters()) - count
    return (
        f"{count:,} parameters and {new:,} new; largest difference {error:.1e}, "
        f"deviation {expected.std():.2f}"
    )


def generate(folder: Path) -> str:
    """Generate a video from the model folder."""
    pipeline = MagicVideoPipeline.from_pretrained(folder / VIDEO)
    output = pipeline("a red dog", seed=1, num_inference_steps=STEPS)
    assert not isinstance(output, tuple)
    frames = output.videos[0].frames
    if not frames.isfinite().all():
        raise SystemExit("the frames are not finite")
    return f"{STEPS} steps with guidance, frames {list(frames.shape)}"


@torch.no_grad()
def back(folder: Path) -> str:
    """Extract the image network and compare it with the original."""
    export_image_model(folder / VIDEO, folder / BACK, half=False)
    latents, timestep, tokens = _inputs()
    answers = []
    for place in (folder / IMAGE / "unet", folder / BACK):
        network = UNet2DConditionModel.from_pretrained(place).eval()
        answers.append(network(latents[:1], timestep, tokens).sample)
        del network
    return f"largest difference {float((answers[0] - answers[1]).abs().max()):.1e}"


PARTS: dict[str, Callable[[Path], str]] = {
    step.__name__: step for step in (make, inflate, compare, generate, back)
}


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(FRAMES, 4, SIDE, SIDE, generator=generator)
    tokens = torch.randn(1, TOKENS, WIDTH, generator=generator)
    return latents, torch.tensor([501]), tokens


def _gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def _measure(name: str, folder: Path) -> None:
    start = time.monotonic()
    said = PARTS[name](folder)
    seconds, usage = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF)
    busy, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9  # KiB on Linux
    print(f"| {name} | {seconds:.0f} | {busy:.0f} | {peak:.1f} | {said} |", flush=True)


def main() -> None:
    """Run all or some steps in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty folder with 16 GB of free space")
    parser.add_argument("--steps", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    print("| step | wall time, s | CPU, s | peak memory, GB | result |")
    print("|---|---|---|---|---|", flush=True)
    for name in arguments.steps:
        process = get_context("fork").Process(target=_measure, args=(name, arguments.folder))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{name} failed")


if __name__ == "__main__":
    main()
