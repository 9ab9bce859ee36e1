"""Training batches in a reproducible order, prefetched by worker processes."""

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from magicvideo.data.dataset import Batch, ClipDataset, collate, sample_systematically
from magicvideo.data.manifest import FrameSize, Split
from magicvideo.data.shards.dataset import EncodedBatch, ShardDataset, collate_encoded
from magicvideo.data.shards.index import PathOrUrl, is_shard_location
from magicvideo.errors import UserError
from magicvideo.training.recipe import ShardConfig, StageName
from magicvideo.training.signals import SIGNALS

_ORDER, _SAMPLE = 0, 1  # ids of random number streams; shards use 2 and 3


def sample_indices(
    seed: int, first: int, count: int, length: int, weights: tuple[float, ...] | None = None
) -> list[int]:
    """Return the sample indices at positions `first` to `first + count - 1` of an endless order.

    Every `length` positions are one epoch, a permutation of all samples. With `weights`, which sum
    to 1, an epoch has each sample `length * weight` times, randomly rounded up or down. The order
    is a function of seed and position, so a resumed run reads the same samples, in any process.
    """
    chosen = []
    for position in range(first, first + count):
        epoch, place = divmod(position, length)
        chosen.append(int(_epoch(seed, epoch, length, weights)[place]))
    return chosen


def sample_rng(seed: int, position: int) -> np.random.Generator:
    """Return the random number generator of the sample at a position."""
    return np.random.default_rng((seed, _SAMPLE, position))


def load_batch(
    dataset: ClipDataset,
    seed: int,
    step: int,
    batch_size: int,
    num_frames: int,
    strides: tuple[int, int] = (1, 4),
    subject_balance: float = 0.0,
) -> Batch:
    """Load the batch of a step.

    With n processes, the process of rank r loads step `step * n + r`.
    `ClipDataset.sampling_weights` documents `subject_balance`.
    """
    first = step * batch_size
    weights = dataset.sampling_weights(subject_balance) if subject_balance else None
    chosen = sample_indices(seed, first, batch_size, len(dataset), weights)
    return collate(
        [
            dataset.sample(
                index, sample_rng(seed, first + place), num_frames=num_frames, strides=strides
            )
            for place, index in enumerate(chosen)
        ]
    )


def load_encoded_batch(
    dataset: ShardDataset,
    seed: int,
    step: int,
    batch_size: int,
    num_frames: int,
    strides: tuple[int, int] = (1, 4),
    subject_balance: float = 0.0,
) -> EncodedBatch:
    """Load the batch of a step from shards; the arguments are those of `load_batch`."""
    first = step * batch_size
    chosen = dataset.sample_indices(seed, first, batch_size, subject_balance)
    return collate_encoded(
        [
            dataset.sample(
                index, sample_rng(seed, first + place), num_frames=num_frames, strides=strides
            )
            for place, index in enumerate(chosen)
        ]
    )


@lru_cache(maxsize=4)
def _epoch(
    seed: int, epoch: int, length: int, weights: tuple[float, ...] | None
) -> NDArray[np.int64]:
    rng = np.random.default_rng((seed, _ORDER, epoch))
    if weights is None:
        return rng.permutation(length)
    return sample_systematically(np.array(weights), length, rng)


AnyBatch: TypeAlias = Batch | EncodedBatch
AnyDataset: TypeAlias = ClipDataset | ShardDataset

SHARD_STAGES: tuple[StageName, ...] = (
    "image",
    "unsupervised",
    "keyframes",
    "distill",
    "interpolation",
)
"""Stages that can train on shards of latents."""
# stages conditioned on text; clips without caption are trained unconditionally
_TEXT_STAGES: tuple[StageName, ...] = ("image", "keyframes", "distill")
_MAX_WORKERS = 8
_SINGLE_FRAMES = 2  # offset of the order of single frames; 0: clips, 1: calibration
_PREVIEW_STRIDE = 4


@dataclass(frozen=True)
class MixedBatch:
    """A batch of clips, and one of single frames of other clips, for joint training."""

    clips: AnyBatch
    single_frames: AnyBatch

    @property
    def clip_ids(self) -> list[str]:
        """Return the ids of all clips."""
        return [*self.clips.clip_ids, *self.single_frames.clip_ids]

    def to(self, device: torch.device) -> "MixedBatch":
        """Move both to a device."""
        return MixedBatch(self.clips.to(device), self.single_frames.to(device))

    def pin_memory(self) -> "MixedBatch":
        """Copy both to pinned memory."""
        return MixedBatch(self.clips.pin_memory(), self.single_frames.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Record that a stream uses the tensors of both."""
        self.clips.record_stream(stream)
        self.single_frames.record_stream(stream)


TrainingBatch: TypeAlias = AnyBatch | MixedBatch


@dataclass(frozen=True)
class DataSource:
    """The training data of a stage.

    Attributes:
        location: A prepared folder, or the folder or URL of shards.
        size: Height and width of the frames in pixels.
        shards: Settings for reading shards.
    """

    location: PathOrUrl
    size: FrameSize
    shards: ShardConfig

    @property
    def is_sharded(self) -> bool:
        """Return whether the data are shards of latents."""
        return isinstance(self.location, str) or is_shard_location(self.location)


def frames_folder(location: PathOrUrl, who: str) -> Path:
    """Return the prepared folder of a recipe's data.

    Args:
        location: Location of the data.
        who: Name of what needs frames, for the message.

    Raises:
        UserError: If the data are shards.
    """
    if isinstance(location, str) or is_shard_location(location):
        raise UserError(
            f"{who} needs frames, and data={location} are shards, which have none; use "
            "data=PREPARED_FOLDER."
        )
    return location


TRAINING: tuple[Split, ...] = ("train",)
HELD_OUT: tuple[Split, ...] = ("validation", "heldout")
"""Splits that are not used for training."""


def open_frames(
    data: DataSource, stage: StageName, splits: tuple[Split, ...] = TRAINING
) -> ClipDataset:
    """Open the clips of some splits for a stage that needs frames.

    The stage `clip` skips clips without captions.

    Raises:
        UserError: If the data are shards, cannot be read, or have no captions although the stage is
            conditioned on text.
    """
    folder = frames_folder(data.location, f"Stage {stage}")
    dataset = ClipDataset(folder, splits, captioned=stage == "clip")
    if stage in _TEXT_STAGES and not any(clip.has_caption for clip in dataset.clips):
        raise UserError(
            f"Stage {stage} is conditioned on text, but no training clip in {folder} has a "
            "caption; add captions and prepare again, or remove the stage."
        )
    return dataset


def open_clips(
    data: DataSource,
    stage: StageName,
    encoder_hashes: dict[str, str] | None,
    splits: tuple[Split, ...] = TRAINING,
) -> AnyDataset:
    """Open the clips of some splits for a stage of the denoiser: frames or shards.

    Args:
        data: The recipe's data.
        stage: The stage.
        encoder_hashes: Hashes of the frozen encoders that shards must have been encoded with; None:
            not checked.
        splits: Splits of the clips.

    Raises:
        UserError: If they cannot be read, or shards do not fit the stage.
    """
    if not data.is_sharded:
        return open_frames(data, stage, splits)
    dataset = ShardDataset(
        data.location, splits, window=data.shards.window, cache=data.shards.cache
    )
    for component, digest in (encoder_hashes or {}).items():
        if dataset.info.parts[component] != digest:
            raise UserError(
                f"The shards in {data.location} were encoded with another {component} than this "
                "recipe's; encode the clips again, with --model set to this run or its init_from."
            )
    return dataset


class BatchSource(TorchDataset[TrainingBatch], ABC):
    """The endless sequence of batches of one stage. A batch is a function of its position.

    A resumed run therefore reads the same batches as an uninterrupted one, and worker processes
    need no communication.

    Attributes:
        size: Height and width of the frames in pixels.
        batch_size: Samples of a batch.
        num_frames: Frames of a sample.
        frame_batch_size: Single frames next to the samples of a batch; 0: none.
    """

    size: FrameSize
    batch_size: int
    num_frames: int
    frame_batch_size: int = 0

    def get_batch(self, position: int) -> TrainingBatch:
        """Load the batch at a position.

        With n processes, the process of rank r reads positions r, n + r, 2 n + r and so on.
        """
        clips = self.get_other_batch(0, position, self.batch_size)
        if not self.frame_batch_size:
            return clips
        frames = self.get_other_batch(_SINGLE_FRAMES, position, self.frame_batch_size, 1)
        return MixedBatch(clips, frames)

    @abstractmethod
    def get_other_batch(
        self, offset: int, position: int, batch_size: int, num_frames: int | None = None
    ) -> AnyBatch:
        """Load a batch of another order and size, for previews and calibration.

        Args:
            offset: Index of the order; 0 is that of training.
            position: Position in that order.
            batch_size: Number of samples.
            num_frames: Frames per sample, by default `self.num_frames`.
        """

    @abstractmethod
    def preview_captions(self, count: int) -> tuple[list[str], float]:
        """Return captions of clips spread over the data, and a low frame rate."""

    def __getitem__(self, position: int) -> TrainingBatch:
        """Return `get_batch(position)`, for torch's `DataLoader`."""
        return self.get_batch(position)


@dataclass(frozen=True)
class DatasetBatches(BatchSource):
    """Batches of a dataset.

    Attributes:
        dataset: Clips of the training split, as frames or as encoded shards.
        seed: Seed of the order of samples and of all random choices within samples.
        batch_size: Samples of a batch.
        num_frames: Frames of a sample.
        strides: Minimal and maximal stride between frames.
        subject_balance: 0: all clips are sampled equally often; 1: all subjects are.
        frame_batch_size: Single frames next to the samples of a batch; 0: none.
    """

    dataset: AnyDataset
    seed: int
    batch_size: int
    num_frames: int = 1
    strides: tuple[int, int] = (1, 4)
    subject_balance: float = 0.0
    frame_batch_size: int = 0

    @property
    def size(self) -> FrameSize:  # type: ignore[override]
        """Return height and width of the frames in pixels."""
        return self.dataset.info.frame_size

    def get_other_batch(
        self, offset: int, position: int, batch_size: int, num_frames: int | None = None
    ) -> AnyBatch:
        """Load a batch of another order and size."""
        if num_frames is None:
            num_frames = self.num_frames
        if isinstance(self.dataset, ShardDataset):
            return load_encoded_batch(
                self.dataset,
                self.seed + offset,
                position,
                batch_size,
                num_frames,
                self.strides,
                self.subject_balance,
            )
        return load_batch(
            self.dataset,
            self.seed + offset,
            position,
            batch_size,
            num_frames,
            self.strides,
            self.subject_balance,
        )

    def preview_captions(self, count: int) -> tuple[list[str], float]:
        """Return captions of clips spread over the data, and a low frame rate."""
        if isinstance(self.dataset, ShardDataset):
            captions, fps = self.dataset.captions(count)
            return captions, fps / _PREVIEW_STRIDE
        chosen = np.linspace(0, len(self.dataset) - 1, count).astype(int)
        rng = np.random.default_rng(0)
        strides = (_PREVIEW_STRIDE, _PREVIEW_STRIDE)
        samples = [
            self.dataset.sample(int(i), rng, num_frames=1, strides=strides, caption_style="plain")
            for i in chosen
        ]
        return [sample.caption for sample in samples], min(sample.fps for sample in samples)


def default_workers(device: torch.device, world_size: int) -> int:
    """Return the default number of workers per process.

    On a CPU it is 0: updates use all cores, and reading takes a small fraction of an update.
    """
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(_MAX_WORKERS, (cores or 1) // world_size - 1))


def load_batches(
    source: TorchDataset[TrainingBatch],
    positions: Sequence[int],
    device: torch.device,
    *,
    num_workers: int,
    prefetch_factor: int = 2,
) -> Iterator[TrainingBatch]:
    """Yield the batches at some positions, moved to a device.

    For a CUDA device, batches are read into pinned memory, and the next batch is copied on a
    separate stream during the current update.

    Args:
        source: Maps a position to a batch.
        positions: Positions of the batches, in order.
        device: Target device.
        num_workers: Number of worker processes; 0 to read in this process.
        prefetch_factor: Batches prefetched by each worker.
    """
    is_cuda = device.type == "cuda"  # or ROCm
    loader: DataLoader[TrainingBatch] = DataLoader(
        source,
        sampler=positions,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        pin_memory=is_cuda,
        worker_init_fn=_ignore_signals,
        # otherwise the loader would draw seeds from torch's global generator, which updates use
        generator=torch.Generator(),
    )
    return _copy_ahead(iter(loader), device) if is_cuda else _copy(iter(loader), device)


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401 - the loader's own signature
    return batch


def _ignore_signals(worker: int) -> None:  # noqa: ARG001 - the loader passes it
    """Ignore signals in a worker; the training process saves a checkpoint and stops its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _copy(batches: Iterator[TrainingBatch], device: torch.device) -> Iterator[TrainingBatch]:
    for batch in batches:
        yield batch if device.type == "cpu" else batch.to(device)


def _copy_ahead(batches: Iterator[TrainingBatch], device: torch.device) -> Iterator[TrainingBatch]:
    copies = torch.Stream(device)
    for batch in batches:
        # kernels of the last update are still queued on the current stream; this copy runs
        # concurrently, and the next update waits for it on the device, not on the host
        with copies:
            moved = batch.to(device)
        stream = torch.accelerator.current_stream(device)
        stream.wait_stream(copies)
        moved.record_stream(stream)  # keeps its memory from being reused during the update
        yield moved
