"""Training of the judge: contrastive over near captions, with the skin tone as a second task."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from magicvideo.atomic_io import atomic_folder, sha256, verify_checksums
from magicvideo.data.backgrounds import COLOURS, Background
from magicvideo.data.captions import canonical_caption
from magicvideo.data.dataset import ClipDataset, composite_background
from magicvideo.data.manifest import MANIFEST
from magicvideo.errors import UserError
from magicvideo.evaluation.confidence_intervals import Estimate, proportion
from magicvideo.evaluation.judge.batches import NOT_SHOWN, JudgeBatch, JudgeBatchSampler
from magicvideo.evaluation.judge.network import Judge, JudgeConfig, count_words
from magicvideo.evaluation.metrics.text_alignment import draw_pools, true_ranks
from magicvideo.evaluation.prompt_sets import real_videos, sample_prompts
from magicvideo.evaluation.subjects import DEFAULT_TONE, Subjects, tone_of
from magicvideo.training.optim import Muon

_TONE_WEIGHT = 0.5
_FLAT_WEIGHT = 0.5
_WARM_UP = 30  # updates
_LAST_RATE = 0.02
_HIGHEST_LOG_SCALE = math.log(40)
_VOCABULARY = 3000
_SECONDS_BETWEEN_STATES = 120.0
_STATE, _PROGRESS = "state.safetensors", "progress.json"


class JudgeTraining(BaseModel):
    """How a judge is trained. The same settings and data give the same weights, bit for bit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: PositiveInt = 2600
    batch_size: PositiveInt = 48
    learning_rate: PositiveFloat = 4e-3
    """Of matrices and kernels, which Muon trains."""
    adamw_learning_rate: PositiveFloat = 2e-3
    """Of embeddings, biases, norms and the first layer, which AdamW trains."""
    weight_decay: NonNegativeFloat = 0.02
    ema_decay: float = 0.995
    """Of the averaged weights, which are the result."""
    seed: int = 4711


def judge_config(dataset: ClipDataset) -> JudgeConfig:
    """Return the configuration that fits a data set: its words and its skin tones."""
    tones = sorted({tone_of(clip) for clip in dataset.clips} - {DEFAULT_TONE})
    grounds = [Background(name) for name in COLOURS] + [Background("blue", "pink")]
    captions = [
        canonical_caption(clip, grounds[place % len(grounds)])
        for place, clip in enumerate(dataset.clips)
    ]
    return JudgeConfig(
        words=count_words([*captions, *(ground.phrase for ground in grounds), "a an"], _VOCABULARY),
        tones=(DEFAULT_TONE, *tones),
    )


def train_judge(
    dataset: ClipDataset,
    settings: JudgeTraining,
    state_folder: Path,
    report: Callable[[int, dict[str, float]], None],
) -> Judge:
    """Train a judge; continue from the state that a killed run left.

    Args:
        dataset: All clips of all splits, with captions.
        settings: How to train.
        state_folder: Holds the last state, rewritten every two minutes.
        report: Called after every step with its number and its losses.

    Returns:
        The judge with averaged weights.

    Raises:
        UserError: If the state is damaged or belongs to other settings or data.
    """
    torch.manual_seed(settings.seed)
    judge = Judge(judge_config(dataset))
    averaged = Judge(judge.config)
    averaged.load_state_dict(judge.state_dict())
    optimizer = build_optimizer(judge, settings)
    identity = settings.model_dump(mode="json") | {"data": sha256(dataset.folder / MANIFEST)}
    first = _restore(judge, averaged, optimizer, state_folder, identity)
    sampler = JudgeBatchSampler(dataset, Subjects(dataset), judge.config.tones, settings.seed)
    saved = time.monotonic()
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_scale(step, settings.steps)
        losses = judge_losses(judge, sampler.batch(step, settings.batch_size))
        optimizer.zero_grad()
        torch.autograd.backward(list(losses.values()))
        torch.nn.utils.clip_grad_norm_(judge.parameters(), max_norm=1.0)
        optimizer.step()
        # the average of the first steps forgets the random start quickly
        _average(averaged, judge, min(settings.ema_decay, (step + 1) / (step + 10)))
        report(step + 1, {name: loss.item() for name, loss in losses.items()})
        if time.monotonic() - saved > _SECONDS_BETWEEN_STATES:
            _save(judge, averaged, optimizer, state_folder, identity | {"step": step + 1})
            saved = time.monotonic()
    return averaged.eval()


def build_optimizer(judge: Judge, settings: JudgeTraining) -> Muon:
    """Return Muon for the matrices and kernels inside the networks, AdamW for the rest."""
    inner: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in judge.named_parameters():
        is_outer = any(part in name for part in ("embedding", "positions", "stem"))
        (rest if parameter.ndim < 2 or is_outer else inner).append(parameter)
    common = {"weight_decay": settings.weight_decay}
    groups = [
        {"params": inner, "lr": settings.learning_rate, "use_muon": True, **common},
        {"params": rest, "lr": settings.adamw_learning_rate, "use_muon": False, **common},
    ]
    for group in groups:
        group["initial_lr"] = group["lr"]
    return Muon(groups)


def judge_losses(judge: Judge, batch: JudgeBatch) -> dict[str, Tensor]:
    """Return the losses of a batch.

    - `contrast`: a video chooses among all captions, near ones included, and a caption among the
      videos; cross entropy, the mean of both directions.
    - `tone`: cross entropy of the tone head, where the tone is shown.
    - `flat`: what the choice of an unrecognisable video among the captions of its background lacks
      of the uniform one, in nats.
    """
    logits, tone_logits = judge(batch.frames, judge.tokenizer(batch.captions))
    own, seen = torch.arange(len(logits)), batch.recognisable
    losses: dict[str, Tensor] = {}
    if seen.any():
        choice = logits.masked_fill(batch.undecided, -math.inf)
        by_video = F.cross_entropy(choice[seen], own[seen])
        by_caption = F.cross_entropy(choice[:, : len(own)].mT[seen], own[seen])
        losses["contrast"] = (by_video + by_caption) / 2
    if (batch.tones != NOT_SHOWN).any():
        tone = F.cross_entropy(tone_logits, batch.tones, ignore_index=NOT_SHOWN)
        losses["tone"] = _TONE_WEIGHT * tone
    if not seen.all():
        chosen, allowed = logits[~seen], batch.on_background[~seen]
        count = allowed.sum(dim=1)
        mean = chosen.masked_fill(~allowed, 0).sum(dim=1) / count
        total = chosen.masked_fill(~allowed, -math.inf).logsumexp(dim=1)
        losses["flat"] = _FLAT_WEIGHT * (total - mean - count.log()).mean()
    return losses


def lr_scale(step: int, steps: int) -> float:
    """Return the factor of the learning rates: a rise, then a linear fall over the second half."""
    fall = 2 * (1 - step / steps)
    return min(1.0, (step + 1) / _WARM_UP, _LAST_RATE + fall)


@torch.no_grad()
def _average(averaged: Judge, judge: Judge, decay: float) -> None:
    for mean, parameter in zip(averaged.parameters(), judge.parameters(), strict=True):
        mean.lerp_(parameter, 1 - decay)


def _save(
    judge: Judge,
    averaged: Judge,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    progress: dict[str, object],
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in judge.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in averaged.state_dict().items()}
    for number, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in entries.items()}
    with atomic_folder(folder) as partial:
        save_file({name: t.contiguous() for name, t in tensors.items()}, partial / _STATE)
        (partial / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")


def _restore(
    judge: Judge,
    averaged: Judge,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    identity: dict[str, object],
) -> int:
    """Load the state that is there, if any, and return the step to continue with."""
    if not folder.exists():
        return 0
    verify_checksums(folder)
    progress = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
    step = int(progress.pop("step"))
    if progress != identity:
        raise UserError(
            f"{folder} is the state of a run with other settings or data; delete it to start anew."
        )
    tensors = load_file(folder / _STATE)
    for prefix, network in (("model.", judge), ("ema.", averaged)):
        network.load_state_dict({name: tensors[prefix + name] for name in network.state_dict()})
    state = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".")
            like = parameters[int(number)]
            # saved tensors are contiguous, convolutions and their moments are channels-last
            is_moment = tensor.shape == like.shape
            kept = torch.empty_like(like).copy_(tensor) if is_moment else tensor
            state["state"].setdefault(int(number), {})[name] = kept
    optimizer.load_state_dict(state)
    return step


_SUBJECTS, _POOL, _FRAMES, _STRIDE, _SEED = 200, 100, 16, 4, 2
_BACKGROUND = "blue"
_BLUR = 17 / 64  # of a frame's side, the width of a box
_LUMA = (0.299, 0.587, 0.114)  # BT.601

Video = Float[Tensor, "f 3 h w"]


def check_judge(judge: Judge, folder: Path) -> dict[str, Estimate]:
    """Return the judge's scores on real clips of all splits.

    Args:
        judge: Whom to check.
        folder: Prepared data.

    Returns:
        The share of clips whose own caption is first, with the clips as they are, in grey, with
        rolled colour channels, blurred, and as flat silhouettes; then the share of skin tones.
    """
    dataset = ClipDataset(folder, ("train", "validation", "heldout"), captioned=True)
    subjects = Subjects(dataset)
    rng = np.random.default_rng(_SEED)
    chosen = rng.permutation(len(subjects))[:_SUBJECTS]
    members = [subjects.clips[subject][0] for subject in chosen]
    captions = [
        canonical_caption(dataset.clips[i], _ground(dataset.clips[i].channels)) for i in members
    ]
    alike = subjects.alike[chosen][:, chosen].numpy()
    size = min(_POOL, int((~alike).sum(axis=1).min()) + 1)
    pools = draw_pools(range(len(chosen)), alike, size, _SEED)
    text = judge.embed_captions(captions).double().numpy()
    hits: dict[str, list[bool]] = {name: [] for name in _VIEWS}
    for place, index in enumerate(members):
        video, alpha = _video(dataset, index)
        for name, view in _VIEWS.items():
            feature = judge.embed_videos(view(video, alpha)[None]).double().numpy()
            hits[name].append(bool(true_ranks(feature @ text[pools[place]].T)[0] == 1))
    scores = {
        f"own caption first of {size}, {name}": proportion(np.array(found))
        for name, found in hits.items()
    }
    return scores | _tones(judge, dataset)


def scores_as_json(scores: dict[str, Estimate]) -> str:
    """Return the scores as JSON text for the judge's folder."""
    return json.dumps(scores, default=vars, indent=2) + "\n"


def _ground(channels: int) -> Background | None:
    return Background(_BACKGROUND) if channels == 4 else None


def _video(dataset: ClipDataset, index: int) -> tuple[Video, Float[Tensor, "f 1 h w"]]:
    """Return a clip on the background, and its alpha."""
    pixels = dataset.read_frames(index)
    pixels = pixels[np.minimum(np.arange(_FRAMES) * _STRIDE, len(pixels) - 1)]
    video = composite_background(pixels, _ground(pixels.shape[-1]))
    if pixels.shape[-1] == 3:
        return video, torch.ones_like(video[:, :1])
    return video, torch.from_numpy(pixels[..., 3].astype(np.float32) / 255)[:, None]


def _grey(video: Video, _: Tensor) -> Video:
    luma = torch.einsum("c,fchw->fhw", torch.tensor(_LUMA), video)
    return luma[:, None].expand_as(video)


def _rolled(video: Video, _: Tensor) -> Video:
    return video.roll(1, dims=1)


def _blurred(video: Video, _: Tensor) -> Video:
    """Average over boxes of 17 pixels in 64; edges are repeated."""
    width = 2 * round(_BLUR * video.shape[-1] / 2) + 1
    padded = F.pad(video, (width // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, kernel_size=width, stride=1)


def _flat(video: Video, alpha: Float[Tensor, "f 1 h w"]) -> Video:
    """Fill the outline with the figure's mean colour."""
    mean = (video * alpha).sum(dim=(0, 2, 3)) / alpha.sum().clamp(min=1)
    return torch.where(alpha > 0.5, mean[:, None, None], video)


_VIEWS: dict[str, Callable[[Video, Tensor], Video]] = {
    "as drawn": lambda video, _: video,
    "in grey": _grey,
    "channels rolled": _rolled,
    "blurred over 17 of 64 pixels": _blurred,
    "as a flat silhouette": _flat,
}


def _tones(judge: Judge, dataset: ClipDataset) -> dict[str, Estimate]:
    prompts = sample_prompts(dataset, min(_SUBJECTS, len(dataset)), _SEED)
    named = [prompt for prompt in prompts if prompt.tone != DEFAULT_TONE]
    if not named:
        return {}
    videos = real_videos(dataset, named, _FRAMES, _STRIDE)
    read = [judge.read_tones(video[None])[0] for video in videos]
    right = [found == prompt.tone for found, prompt in zip(read, named, strict=True)]
    return {"skin tone": proportion(np.array(right))}
