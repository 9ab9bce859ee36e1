import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magicvideo.data.dataset import ClipDataset
from magicvideo.training.loader import load_batch, sample_indices, sample_rng


@given(st.integers(0, 99), st.integers(1, 50), st.integers(0, 3))
def test_every_epoch_is_a_permutation(seed, length, epoch):
    assert sorted(sample_indices(seed, epoch * length, length, length)) == list(range(length))


@given(st.integers(0, 99), st.integers(1, 40), st.integers(0, 90), st.integers(0, 60))
def test_the_order_does_not_depend_on_the_first_position(seed, length, first, count):
    from_the_start = sample_indices(seed, 0, first + count, length)
    assert sample_indices(seed, first, count, length) == from_the_start[first:]


@given(st.integers(0, 99), st.integers(0, 3), st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_an_epoch_has_every_sample_as_often_as_its_weight(seed, epoch, weights):
    length = len(weights)
    shares = tuple(weight / sum(weights) for weight in weights)
    order = sample_indices(seed, epoch * length, length, length, shares)
    assert len(order) == length
    for index, share in enumerate(shares):
        assert abs(order.count(index) - length * share) < 1 + 1e-9
    middle = sample_indices(
        seed, epoch * length + length // 2, length - length // 2, length, shares
    )
    assert middle == order[length // 2 :]


def test_fractional_counts_are_rounded_differently_in_each_epoch():
    shares = (0.15, 0.85)
    seen = [sample_indices(3, 2 * epoch, 2, 2, shares).count(0) for epoch in range(400)]
    assert set(seen) == {0, 1}
    assert abs(sum(seen) / 400 - 0.3) < 0.08


def test_balanced_batches_have_every_subject_equally_often(prepared):
    dataset = ClipDataset(prepared)
    dataset.clips = [
        clip.model_copy(update={"attributes": None, "text": "rare" if not place else "common"})
        for place, clip in enumerate(dataset.clips)
    ]
    count = len(dataset)
    assert count > 3
    shares = dataset.sampling_weights(1.0)
    assert shares[0] == pytest.approx(0.5)
    assert shares[1:] == pytest.approx([0.5 / (count - 1)] * (count - 1))
    assert dataset.sampling_weights(0.0) == pytest.approx([1 / count] * count)
    ids = load_batch(dataset, 4, 0, 8 * count, 1, subject_balance=1.0).clip_ids
    assert abs(ids.count(dataset.clips[0].id) / len(ids) - 0.5) < 0.1


def test_epochs_and_seeds_differ():
    orders = [sample_indices(seed, epoch * 31, 31, 31) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9


def test_random_numbers_belong_to_a_seed_and_a_position():
    drawn = {sample_rng(seed, place).random() for seed in range(10) for place in range(10)}
    assert len(drawn) == 100
    assert sample_rng(3, 7).random() == sample_rng(3, 7).random()


def test_a_batch_depends_only_on_its_step(prepared):
    unbroken = ClipDataset(prepared)
    batches = [load_batch(unbroken, 5, step, 3, 4) for step in range(6)]
    resumed = load_batch(ClipDataset(prepared), 5, 4, 3, 4)
    assert torch.equal(batches[4].frames, resumed.frames)
    assert batches[4].captions == resumed.captions
    assert batches[4].clip_ids == resumed.clip_ids
    assert torch.equal(batches[4].fps, resumed.fps)
    assert not torch.equal(batches[4].frames, batches[5].frames)


def test_an_epoch_of_batches_shows_every_clip_once(prepared):
    dataset = ClipDataset(prepared, ("train", "heldout"))
    ids = [load_batch(dataset, 1, step, 1, 2).clip_ids[0] for step in range(len(dataset))]
    assert sorted(ids) == sorted(clip.id for clip in dataset.clips)


def test_samples_are_those_of_the_order(prepared):
    dataset = ClipDataset(prepared)
    batch = load_batch(dataset, 2, 3, 4, 5, (1, 2))
    for row, position in enumerate(range(12, 16)):
        (index,) = sample_indices(2, position, 1, len(dataset))
        rng = sample_rng(2, position)
        sample = dataset.sample(index, rng, num_frames=5, strides=(1, 2))
        assert torch.equal(sample.frames, batch.frames[row])
        assert sample.caption == batch.captions[row]
        assert np.float32(sample.fps) == batch.fps[row].item()
