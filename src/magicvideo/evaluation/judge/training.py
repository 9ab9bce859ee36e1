"""Training of the judge: contrastive over near captions, with the skin tone as a second task."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from magicvideo.atomic_io import atomic_folder, sha256, verify_checksums
from magicvideo.data.backgrounds import COLOURS, Background
from magicvideo.data.batch_order import sample_rng
from magicvideo.data.captions import canonical_caption, random_caption
from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import MANIFEST
from magicvideo.errors import UserError
from magicvideo.evaluation.judge.batches import DEFAULT_TONE, JudgeBatch, JudgeBatchSampler, tone_of
from magicvideo.evaluation.judge.network import Judge, JudgeConfig
from magicvideo.evaluation.judge.tokenizer import count_words

_TONE_WEIGHT = 0.5
_WARM_UP = 0.05
_VOCABULARY = 3000
_WORDINGS = 8
_SECONDS_BETWEEN_STATES = 60.0
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_STATE, _PROGRESS = "state.safetensors", "progress.json"


class JudgeTraining(BaseModel):
    """How a judge is trained. The same settings and data give the same weights, bit for bit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: PositiveInt = 3000
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1.5e-3
    num_frames: tuple[PositiveInt, PositiveInt] = (2, 4)
    """Fewest and most frames a clip while training; judging looks at `JudgeConfig.num_frames`."""
    seed: int = 4711


def judge_config(dataset: ClipDataset) -> JudgeConfig:
    """Return the configuration that fits a data set: its words and its skin tones."""
    tones = sorted({tone_of(clip) for clip in dataset.clips} - {DEFAULT_TONE})
    behind = [Background(name) for name in COLOURS]
    captions = []
    for place, clip in enumerate(dataset.clips):
        captions += [canonical_caption(clip, behind[place % len(behind)])]
        rng = sample_rng(0, place)
        captions += [random_caption(clip, behind[0], rng) for _ in range(_WORDINGS)]
    return JudgeConfig(words=count_words(captions, _VOCABULARY), tones=(DEFAULT_TONE, *tones))


def train_judge(
    dataset: ClipDataset,
    settings: JudgeTraining,
    state_folder: Path,
    report: Callable[[int, dict[str, float]], None],
) -> Judge:
    """Train a judge, going on from the state that a killed run left.

    Args:
        dataset: All clips of all splits.
        settings: How to train.
        state_folder: Holds the last state, rewritten once a minute.
        report: Called after every step with its number and its losses.

    Raises:
        UserError: If the state is damaged or belongs to other settings or data.
    """
    torch.manual_seed(settings.seed)
    judge = Judge(judge_config(dataset))
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05, fused=True)
    identity = settings.model_dump(mode="json") | {"data": sha256(dataset.folder / MANIFEST)}
    first = _restore(judge, optimizer, state_folder, identity)
    maker = JudgeBatchSampler(dataset, judge.config.tones, settings.num_frames, settings.seed)
    saved = time.monotonic()
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        losses = judge_losses(judge, maker.batch(step, settings.batch_size))
        optimizer.zero_grad()
        torch.autograd.backward(list(losses.values()))
        torch.nn.utils.clip_grad_norm_(judge.parameters(), max_norm=1.0)
        optimizer.step()
        report(step + 1, {name: loss.item() for name, loss in losses.items()})
        if time.monotonic() - saved > _SECONDS_BETWEEN_STATES:
            _save(judge, optimizer, state_folder, identity | {"step": step + 1})
            saved = time.monotonic()
    return judge.eval()


def judge_losses(judge: Judge, batch: JudgeBatch) -> dict[str, Tensor]:
    """Return the symmetric contrastive loss and the tone loss of a batch.

    A video chooses among all captions, near ones included; a caption among the videos.
    """
    logits, tone_logits = judge(batch.frames, judge.tokenizer(batch.captions))
    logits = logits.masked_fill(batch.also_true, -math.inf)
    own = torch.arange(len(logits))
    by_video = F.cross_entropy(logits, own)
    by_caption = F.cross_entropy(logits[:, : len(logits)].mT, own)
    return {
        "contrast": (by_video + by_caption) / 2,
        "tone": _TONE_WEIGHT * F.cross_entropy(tone_logits, batch.tones),
    }


def learning_rate(step: int, settings: JudgeTraining) -> float:
    """Return the rate of a step: a linear rise over 5 % of the run, then a cosine to zero."""
    warm_up = max(1, round(_WARM_UP * settings.steps))
    rise = min(1.0, (step + 1) / warm_up)
    decay = (1 + math.cos(math.pi * step / settings.steps)) / 2
    return settings.learning_rate * rise * decay


def _save(
    judge: Judge, optimizer: torch.optim.Optimizer, folder: Path, progress: dict[str, object]
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in judge.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    with atomic_folder(folder) as partial:
        save_file({name: t.contiguous() for name, t in tensors.items()}, partial / _STATE)
        (partial / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")


def _restore(
    judge: Judge, optimizer: torch.optim.Optimizer, folder: Path, identity: dict[str, object]
) -> int:
    """Load the state that is there, if any, and return the step to go on with."""
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
    weights = {name: tensors[f"model.{name}"] for name in judge.state_dict()}
    judge.load_state_dict(weights)
    state = optimizer.state_dict()
    for number, parameter in enumerate(judge.parameters()):
        saved = {name: tensors[f"optimizer.{number}.{name}"] for name in _MOMENTS}
        # the saved tensors are contiguous, the fused optimizer wants the parameter's own layout
        state["state"][number] = {"step": saved["step"]} | {
            name: torch.empty_like(parameter).copy_(saved[name]) for name in _MOMENTS[1:]
        }
    optimizer.load_state_dict(state)
    return step
