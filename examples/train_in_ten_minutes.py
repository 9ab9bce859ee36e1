"""Train the key-frame stage of the emoji model on one GPU in ten minutes, from one packed file.

    python examples/train_in_ten_minutes.py pack runs/data/emoji64 runs/emoji64.pack
    python examples/train_in_ten_minutes.py train runs/emoji64.pack runs/ten-minutes \
        --base src/magicvideo/weights/emoji --minutes 10

`pack` writes all clips of a prepared folder into one small file: the records of the clips, and
their frames as lossy video with colour and alpha side by side. `train` keeps all frames on the
device and trains the text encoder and the denoiser together, first on single frames, then on
batches of frames and clips. It replaces `text_encoder`, `tokenizer` and `unet` of the base model
and copies all other components, including the image conditioner. It also runs on a CPU, more
slowly, with `--device cpu --frames 16 --clips 1`.

The schedule depends on time and not on updates, so a faster device makes more updates.
"""

import json
import math
import shutil
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated
from zipfile import ZIP_STORED, ZipFile

import av
import numpy as np
import torch
import typer
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from magicvideo.atomic_io import write_checksums
from magicvideo.data.backgrounds import Background, random_background, render_background
from magicvideo.data.captions import random_caption
from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import ClipRecord
from magicvideo.diffusion.loss import temporal_mode_weights
from magicvideo.diffusion.noise import noise_covariance
from magicvideo.models.autoencoder import encode_frames
from magicvideo.models.unet import VideoUNet
from magicvideo.models.video_vae import load_autoencoder
from magicvideo.pipelines.hints import WORDS_FILE
from magicvideo.training.optim import Muon
from magicvideo.training.tasks.clip_model import train_tokenizer, vocabulary

app = typer.Typer(add_completion=False, help=__doc__)

NOISE_CORRELATION, NOISE_DECAY, MODE_LIMIT = 0.89, 0.7, 8.0
MOTION_MEAN, MOTION_STD = -2.26, 0.73  # of the log mean change of latents over all clips
NUM_FRAMES, MAX_TOKENS, VOCABULARY = 16, 32, 3000
SNR_GAMMA = 5.0


@app.command()
def pack(
    prepared: Annotated[Path, typer.Argument(help="Folder made by `magicvideo data prepare`.")],
    output: Annotated[Path, typer.Argument(help="The packed file.")],
    step: Annotated[int, typer.Option(help="Keep one in so many frames.")] = 2,
    quality: Annotated[int, typer.Option(help="x264's constant rate factor.")] = 21,
) -> None:
    """Write all training clips of a prepared folder into one file."""
    dataset = ClipDataset(prepared, ("train",))
    size = dataset.info.size
    records = []
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "frames.mp4"
        with av.open(str(video), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(24))
            stream.width, stream.height, stream.pix_fmt = 2 * size, size, "yuv444p"
            stream.options = {"crf": str(quality), "preset": "medium", "g": "100000"}
            for record in dataset.clips:
                pixels = np.load(prepared / record.file, mmap_mode="r")[::step]
                for index, frame in enumerate(pixels):
                    alpha = frame[..., 3:] if frame.shape[-1] == 4 else np.full_like(frame, 255)
                    wide = np.concatenate([frame[..., :3], alpha[..., :1].repeat(3, -1)], axis=1)
                    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(wide), "rgb24")
                    if index == 0:  # a clip must not be predicted from the previous one
                        picture.pict_type = av.video.frame.PictureType.I
                    container.mux(stream.encode(picture))
                kept = {"frames": len(pixels), "fps": record.fps / step}
                records.append(
                    record.model_copy(update=kept).model_dump_json(exclude_defaults=True)
                )
            container.mux(stream.encode(None))
        with ZipFile(output, "w", ZIP_STORED) as archive:
            archive.write(video, "frames.mp4")
            archive.writestr("clips.jsonl", "\n".join(records))
            archive.writestr("size.json", json.dumps({"size": size}))
    typer.echo(f"{output}: {len(records)} clips, {output.stat().st_size / 2**20:.1f} MiB")


@dataclass
class Draw:
    """The samples of a batch, before their pixels are read.

    Attributes:
        rows: Indices of the frames in the packed file, `b f`.
        backgrounds: Background of each sample; None for clips without transparency.
        captions: Caption of each sample.
        fps: Frames per second of each sample.
        subjects: Index of the subject of each sample.
    """

    rows: Tensor
    backgrounds: list[Background | None]
    captions: list[str]
    fps: Tensor
    subjects: Tensor


@dataclass
class PackedClips:
    """All frames on the device, and the functions that build batches.

    Attributes:
        pixels: Premultiplied RGBA, `n 4 h w`, uint8.
        records: Record of each clip.
        starts: Index of the first frame of each clip in `pixels`.
        shares: Cumulative sampling probability of each clip; all subjects are equally likely.
        subjects: Index of the subject of each clip.
    """

    pixels: Tensor
    records: list[ClipRecord]
    starts: list[int]
    shares: NDArray[np.float64]
    subjects: list[int]

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "PackedClips":
        """Decode a packed file onto the device."""
        with ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            archive.extract("frames.mp4", folder)
            lines = archive.read("clips.jsonl").decode().splitlines()
            size = json.loads(archive.read("size.json"))["size"]
            records = [ClipRecord.model_validate_json(line) for line in lines]
            total = sum(record.frames for record in records)
            pixels = torch.empty(total, 4, size, size, dtype=torch.uint8)
            with av.open(str(Path(folder) / "frames.mp4")) as container:
                for index, frame in enumerate(container.decode(video=0)):
                    wide = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                    pixels[index, :3] = wide[:, :, :size]
                    pixels[index, 3] = wide[0, :, size:]
        bases = [record.attributes.base if record.attributes else record.id for record in records]
        numbers = {base: number for number, base in enumerate(sorted(set(bases)))}
        weights = np.array([1 / bases.count(base) for base in bases])
        starts = np.cumsum([0, *(record.frames for record in records)])[:-1].tolist()
        return cls(
            pixels.to(device),
            records,
            starts,
            np.cumsum(weights / weights.sum()),
            [numbers[base] for base in bases],
        )

    def draw(self, rng: np.random.Generator, count: int, num_frames: int) -> Draw:
        """Sample single frames, or clips with a stride of 1 or 2."""
        rows, backgrounds, captions, rates, subjects = [], [], [], [], []
        for _ in range(count):
            index = min(int(np.searchsorted(self.shares, rng.random())), len(self.records) - 1)
            record = self.records[index]
            stride = int(rng.integers(1, 3)) if num_frames > 1 else 2
            start = int(rng.integers(record.frames))
            steps = start + stride * np.arange(num_frames)
            if not record.loops:
                steps = np.clip(steps - max(0, steps[-1] - record.frames + 1), 0, record.frames - 1)
            background = random_background(rng) if record.channels == 4 else None
            rows.append(self.starts[index] + steps % record.frames)
            backgrounds.append(background)
            captions.append(random_caption(record, background, rng))
            rates.append(record.fps / stride)
            subjects.append(self.subjects[index])
        return Draw(
            torch.from_numpy(np.stack(rows)),
            backgrounds,
            captions,
            torch.tensor(rates),
            torch.tensor(subjects),
        )

    def composite(self, drawn: Draw) -> Tensor:
        """Return frames on their backgrounds in [-1, 1], `b f 3 h w`."""
        size, device = self.pixels.shape[-1], self.pixels.device
        picked = self.pixels[drawn.rows.to(device)].float()
        painted = torch.stack(
            [
                torch.zeros(3, size, size)
                if background is None
                else torch.from_numpy(
                    np.broadcast_to(render_background(background, size, size), (size, size, 3))
                    .transpose(2, 0, 1)
                    .copy()
                )
                for background in drawn.backgrounds
            ]
        ).to(device)
        clear = (255 - picked[:, :, 3:]) / 255
        return (picked[:, :, :3] + painted[:, None] * clear) / 127.5 - 1


class Trainer:
    """Text encoder and denoiser, trained together for a given time.

    Args:
        clips: The data.
        base: Model folder to start from.
        device: Where to train.
        widths: Channels of the U-Net's levels; None keeps the base's network and its weights.
        learning_rate: Of Muon; AdamW's parameters have 0.4 of it.
    """

    def __init__(
        self,
        clips: PackedClips,
        base: Path,
        device: torch.device,
        widths: tuple[int, ...] | None,
        learning_rate: float,
    ) -> None:
        self.clips, self.device, self.base = clips, device, base
        self.vae = load_autoencoder(base / "vae").to(device).eval().requires_grad_(False)
        captions = self._draw_captions()
        self.tokenizer = train_tokenizer(captions, VOCABULARY, MAX_TOKENS)
        self.words = vocabulary(captions)
        stored = json.loads((base / "unet" / "config.json").read_text(encoding="utf-8"))
        config = {key: value for key, value in stored.items() if not key.startswith("_")}
        config["motion_condition"] = True
        if widths is not None:
            config["block_out_channels"] = widths
        unet = VideoUNet(**config)
        if widths is None:
            weights = VideoUNet.from_pretrained(base / "unet").state_dict()
            unet.load_state_dict(weights, strict=False)
        self.unet = unet.to(device, memory_format=torch.channels_last)
        width = config["cross_attention_dim"]
        self.text = CLIPTextModel(self._text_config(width)).to(device)
        self.head = nn.Linear(width, max(clips.subjects) + 1).to(device)
        self.optimizer = Muon(self._groups(learning_rate))
        self.trained = {"unet": self.unet, "text": self.text}
        self.averages = {
            (part, name): parameter.detach().clone()
            for part, network in self.trained.items()
            for name, parameter in network.named_parameters()
        }
        scheduler = json.loads((base / "scheduler" / "scheduler_config.json").read_text())
        self.alphas = DDIMScheduler.from_config(scheduler).alphas_cumprod.to(device)
        covariance = noise_covariance(NUM_FRAMES, NOISE_CORRELATION, NOISE_DECAY)
        self.mode_weights = temporal_mode_weights(covariance, MODE_LIMIT).to(device)
        self.cholesky = torch.linalg.cholesky(covariance).float().to(device)

    def update(self, draws: list[Draw], rate: float) -> dict[str, float]:
        """Run one update on sampled batches, with scaled learning rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        errors: dict[str, Tensor] = {}
        for drawn in draws:
            with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda"):
                loss, error = self._loss(drawn)
            loss.backward()
            errors["frames" if drawn.rows.shape[1] == 1 else "clips"] = error
        nn.utils.clip_grad_norm_([*self.unet.parameters(), *self.text.parameters()], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: error.item() for name, error in errors.items()}

    def average(self, decay: float) -> None:
        """Update the EMA weights."""
        current = [
            parameter.detach()
            for network in self.trained.values()
            for parameter in network.parameters()
        ]
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - decay)

    def save(self, output: Path) -> None:
        """Write a model folder: the base with the EMA U-Net, text encoder and tokenizer."""
        shutil.copytree(self.base, output)
        with torch.no_grad():
            for (part, name), average in self.averages.items():
                self.trained[part].get_parameter(name).copy_(average)
        shutil.rmtree(output / "tokenizer")
        self.tokenizer.save_pretrained(output / "tokenizer")
        self.text.save_pretrained(output / "text_encoder")
        self.unet.save_pretrained(output / "unet")
        (output / WORDS_FILE).write_text("\n".join(self.words) + "\n", encoding="utf-8")
        index_file = output / "model_index.json"
        index = json.loads(index_file.read_text(encoding="utf-8"))
        index |= {"noise_correlation": NOISE_CORRELATION, "noise_decay": NOISE_DECAY}
        index_file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        write_checksums(output)

    def _loss(self, drawn: Draw) -> tuple[Tensor, Tensor]:
        """Return the loss, and the unweighted squared error of the velocity."""
        count, num_frames = drawn.rows.shape
        device = self.device
        with torch.no_grad():
            latents = encode_frames(self.vae, self.clips.composite(drawn)).float()
        dropped = torch.rand(count) < 0.1
        texts = ["" if drop else text for drop, text in zip(dropped, drawn.captions, strict=True)]
        batch = self.tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).to(device)
        tokens = self.text(batch.input_ids).last_hidden_state
        # the text encoder must distinguish subjects; the denoiser alone teaches this slowly
        kept = batch.attention_mask[..., None]
        pooled = (tokens * kept).sum(dim=1) / kept.sum(dim=1)
        told = (~dropped).to(device)
        subject = F.cross_entropy(self.head(pooled)[told], drawn.subjects.to(device)[told])
        step = torch.randint(1000, (count,), device=device)
        noise = torch.randn(latents.shape, device=device)
        given = torch.zeros(count, num_frames, dtype=torch.bool, device=device)
        motion = None
        if num_frames > 1:
            noise = torch.einsum("fg,bgchw->bfchw", self.cholesky, noise)
            given = self._given_frames(count, num_frames)
            change = (latents[:, 1:] - latents[:, :-1]).abs().mean(dim=(1, 2, 3, 4))
            motion = (change.clamp_min(1e-3).log() - MOTION_MEAN) / MOTION_STD
            motion = motion.masked_fill(torch.rand(count, device=device) < 0.3, math.nan)
        kept_signal = torch.where(given, 1.0, self.alphas[step, None])[:, :, None, None, None]
        alpha, sigma = kept_signal.sqrt(), (1 - kept_signal).sqrt()
        prediction = self.unet(
            alpha * latents + sigma * noise,
            step[:, None].masked_fill(given, 0),
            tokens,
            drawn.fps.to(device),
            motion=motion,
        ).sample.float()
        error = (prediction - (alpha * noise - sigma * latents)) * ~given[:, :, None, None, None]
        weighted = error
        if num_frames > 1:
            weighted = torch.einsum("fg,bgchw->bfchw", self.mode_weights, error)
        # min(SNR + 1, gamma) / (SNR + 1), as diffusion.loss explains; 1 / (SNR + 1) is sigma^2
        weight = (SNR_GAMMA * (1 - self.alphas[step])).clamp(max=1)
        loss = ((error * weighted).mean(dim=(1, 2, 3, 4)) * weight).mean() + 0.03 * subject
        return loss, error.detach().square().mean()

    def _given_frames(self, count: int, num_frames: int) -> Tensor:
        """Return the mask of given frames: in 3 of 10 clips the first one, or the first few."""
        lengths = torch.where(torch.rand(count) < 0.5, 1, torch.randint(1, 9, (count,)))
        lengths = torch.where(torch.rand(count) < 0.3, lengths, 0)
        return (torch.arange(num_frames) < lengths[:, None]).to(self.device)

    def _groups(self, learning_rate: float) -> list[dict[str, object]]:
        matrices, others = [], []
        edges = ("conv_in", "conv_out", "time_embedding", "fps_embedding", "motion_embedding")
        for name, parameter in self.unet.named_parameters():
            is_matrix = parameter.ndim >= 2 and "adaptor" not in name
            (matrices if is_matrix and not name.startswith(edges) else others).append(parameter)
        texts = [*self.text.parameters(), *self.head.parameters()]
        groups: list[dict[str, object]] = [
            {"params": matrices, "lr": learning_rate, "use_muon": True},
            {"params": others, "lr": 0.4 * learning_rate},
            {"params": texts, "lr": 5e-4, "weight_decay": 0.01},
        ]
        return [{**group, "initial_lr": group["lr"]} for group in groups]

    def _draw_captions(self) -> list[str]:
        rng = np.random.default_rng(0)
        return [
            random_caption(record, random_background(rng), rng)
            for record in self.clips.records
            for _ in range(12)
        ]

    def _text_config(self, width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )


@app.command()
def train(
    packed: Annotated[Path, typer.Argument(help="File made by `pack`.")],
    output: Annotated[Path, typer.Argument(help="The model folder to write.")],
    base: Annotated[Path, typer.Option(help="Model folder to start from.")],
    minutes: Annotated[float, typer.Option(help="Time of training, decoding not counted.")] = 10,
    frames: Annotated[int, typer.Option(help="Single frames of a batch.")] = 512,
    clips: Annotated[int, typer.Option(help="Clips of a batch, in the second part.")] = 48,
    image_part: Annotated[float, typer.Option(help="Fraction of time on frames alone.")] = 0.5,
    widths: Annotated[str, typer.Option(help="Channels of a new U-Net, such as 128,160.")] = "",
    learning_rate: Annotated[float, typer.Option()] = 2e-3,
    device: Annotated[str, typer.Option()] = "cuda",
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train for a number of minutes and write a model folder."""
    if output.exists():
        raise typer.BadParameter(f"{output} exists; name a new folder.")
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    data = PackedClips.load(packed, torch.device(device))
    levels = tuple(int(width) for width in widths.split(",")) if widths else None
    trainer = Trainer(data, base, torch.device(device), levels, learning_rate)

    def draw(step: int, with_clips: bool) -> list[Draw]:
        rng = np.random.default_rng((seed, step))
        if not with_clips:
            return [data.draw(rng, frames, 1)]
        return [data.draw(rng, frames // 4, 1), data.draw(rng, clips, NUM_FRAMES)]

    started, step, reported = time.monotonic(), 0, -1
    waiting: list[Future[list[object]]] = []
    has_clips = False
    with ThreadPoolExecutor(4) as pool:  # sample batches while the device computes
        while (part := (time.monotonic() - started) / (60 * minutes)) < 1:
            if not waiting or has_clips != (part >= image_part):
                has_clips = part >= image_part
                waiting = [pool.submit(draw, step + ahead, has_clips) for ahead in range(8)]
            draws = waiting.pop(0).result()
            waiting.append(pool.submit(draw, step + 8, has_clips))
            # each phase decays over its second half, the first one not to zero
            inside = (part - image_part) / (1 - image_part) if has_clips else part / image_part
            rate = min(1.0, (step + 1) / 50, 2 * (1 - inside) + (0.0 if has_clips else 0.3))
            values = trainer.update(draws, rate)
            trainer.average(min(0.999, (1 + step) / (10 + step)))
            step += 1
            if int(part * 100) != reported:
                reported = int(part * 100)
                shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
                typer.echo(f"{reported} %  update {step}  {shown}  rate {rate:.2f}")
    trainer.save(output)
    typer.echo(f"{output}: {step} updates")


if __name__ == "__main__":
    app()
