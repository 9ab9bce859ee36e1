"""Batches of worker processes equal those of the training process, in the same order."""

import os

import pytest
import torch

from magicvideo.data.dataset import Batch, ClipDataset
from magicvideo.training.loader import BatchSource, DatasetBatches, default_workers, load_batches

CPU = torch.device("cpu")
# tests may run on one core
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def source(prepared):
    return DatasetBatches(ClipDataset(prepared), seed=3, batch_size=2, num_frames=3)


class Processes(BatchSource):
    """Returns the process id as its batch."""

    size, batch_size, num_frames = 1, 1, 1

    def get_other_batch(self, *_):
        one = torch.ones(1)
        return Batch(one.view(1, 1, 1, 1, 1).expand(1, 1, 3, 1, 1), one, [""], [str(os.getpid())])

    def preview_captions(self, count):
        return [""] * count, 1.0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_depends_only_on_its_position(source, workers):
    positions = range(1, 12, 2)  # of the second of two processes
    state = torch.get_rng_state()
    found = list(load_batches(source, positions, CPU, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), state)  # the updates' random numbers are untouched
    assert len(found) == len(positions)
    for position, batch in zip(positions, found, strict=True):
        expected = source.get_batch(position)
        assert torch.equal(batch.frames, expected.frames)
        assert (batch.captions, batch.clip_ids) == (expected.captions, expected.clip_ids)


def test_a_resumed_run_reads_the_same_batches_as_an_uninterrupted_run(source):
    whole = list(load_batches(source, range(8), CPU, num_workers=1))
    rest = list(load_batches(source, range(5, 8), CPU, num_workers=2))
    for before, after in zip(whole[5:], rest, strict=True):
        assert torch.equal(before.frames, after.frames)


def test_workers_are_separate_processes():
    def pids(workers):
        batches = load_batches(Processes(), range(8), CPU, num_workers=workers)
        return {batch.clip_ids[0] for batch in batches}

    own = str(os.getpid())
    assert len(pids(2) - {own}) == 2
    assert pids(0) == {own}


def test_evaluation_batches_differ_from_training_batches(source):
    first, other = source.get_batch(0), source.get_other_batch(1, 0, 2)
    assert not torch.equal(first.frames, other.frames)
    assert source.get_other_batch(0, 0, 2).clip_ids == first.clip_ids
    assert len(source.get_other_batch(2, 0, 5).captions) == 5


def test_a_cpu_computes_with_all_cores_and_a_gpu_has_its_batches_read():
    assert default_workers(CPU, 1) == 0
    assert 1 <= default_workers(torch.device("cuda"), 1) <= 8
