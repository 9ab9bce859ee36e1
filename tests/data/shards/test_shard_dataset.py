import json
import pickle

import fsspec
import numpy as np
import pytest
import torch

from magicvideo.data.shards.dataset import ShardDataset
from magicvideo.data.shards.index import INDEX, is_shard_location, read_index
from magicvideo.errors import UserError
from magicvideo.training.loader import load_encoded_batch


@pytest.fixture
def upload():
    """A function that puts a folder into a store in memory and returns its URL."""
    store = fsspec.filesystem("memory")

    def put(folder):
        url = f"memory://{folder.parent.name}/{folder.name}"
        store.put(str(folder), url, recursive=True)
        return url

    yield put
    store.store.clear()


def batches(dataset, steps, seed=5):
    return [load_encoded_batch(dataset, seed, step, 3, 4, (1, 2)) for step in steps]


def assert_equal(one, other):
    for name, value in vars(one).items():
        same = getattr(other, name)
        assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same


def test_a_sample_is_frames_of_one_variant(write_shards):
    dataset = ShardDataset(write_shards([2, 3], variants=2))
    assert len(dataset) == 5
    assert dataset.info.size == 24
    captions = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sample = dataset.sample(4, rng, num_frames=4, strides=(2, 2))
        assert sample.clip_id == "1/2"
        assert sample.fps == 6
        assert sample.latents.shape == (4, 3, 4, 5)
        assert sample.embeddings.shape == (4, 6)
        assert sample.tokens.shape == (7, 8)
        assert abs(sample.latents.mean() - 12) < 1
        captions.add(sample.caption)
    assert captions == {"clip 2 of 1, variant 0", "clip 2 of 1, variant 1"}


def test_a_batch_depends_only_on_its_step(write_shards):
    folder = write_shards([2, 3, 4, 1])
    unbroken = batches(ShardDataset(folder, window=2), range(9))
    resumed = batches(ShardDataset(folder, window=2), [7])
    assert_equal(unbroken[7], resumed[0])
    assert not torch.equal(unbroken[6].latents, unbroken[7].latents)
    ids = [clip for batch in unbroken for clip in batch.clip_ids]
    assert len(set(ids[:10])) == len(set(ids[10:20])) == 10


def test_shards_of_a_url_are_fetched_cached_and_equal(write_shards, upload, tmp_path):
    folder = write_shards([2, 2, 3, 1, 2])
    url, cache = upload(folder), tmp_path / "cache"
    dataset = ShardDataset(url, window=1, cache=cache)
    for here, there in zip(
        batches(ShardDataset(folder, window=1), range(12)),
        batches(dataset, range(12)),
        strict=True,
    ):
        assert_equal(here, there)
    kept = list(cache.rglob("*.tar"))
    assert 1 <= len(kept) <= 4  # three windows, and one that is being fetched for the next


def test_a_truncated_shard_of_a_url_is_named_and_not_cached(write_shards, upload, tmp_path):
    folder = write_shards([2])
    url = upload(folder)
    with fsspec.open(f"{url}/train-000000.tar", "wb") as file:
        file.write((folder / "train-000000.tar").read_bytes()[:-100])
    dataset = ShardDataset(url, cache=tmp_path / "cache")
    with pytest.raises(UserError, match=r"memory://.*/train-000000\.tar is cut off or changed"):
        batches(dataset, [0])
    assert not list((tmp_path / "cache").rglob("*.tar"))
    fsspec.filesystem("memory").rm(f"{url}/train-000000.tar")
    with pytest.raises(UserError, match=r"train-000000\.tar is missing"):
        batches(dataset, [0])


def test_a_truncated_local_shard_is_named_when_the_data_set_is_opened(write_shards):
    folder = write_shards([2, 1])
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"train-000001\.tar is cut off or changed"):
        ShardDataset(folder)


def test_folders_without_an_index_and_unknown_places_are_refused(write_shards, tmp_path):
    with pytest.raises(UserError, match=r"no index\.json, so it holds no finished shards"):
        ShardDataset(tmp_path)
    with pytest.raises(UserError, match="nosuch://bucket/x cannot be opened"):
        ShardDataset("nosuch://bucket/x")
    folder = write_shards([2])
    assert is_shard_location(folder)
    assert not is_shard_location(tmp_path)
    with pytest.raises(UserError, match="has no clip in heldout"):
        ShardDataset(folder, ("heldout",))
    content = (folder / INDEX).read_text()
    (folder / INDEX).write_text(content.replace('"format":2', '"format":9'))
    with pytest.raises(UserError, match="is damaged or of another version"):
        read_index(folder)
    (folder / INDEX).write_text(content[:-5])
    with pytest.raises(UserError, match="is damaged or of another version"):
        read_index(folder)


def test_captions_for_previews_come_from_the_first_shard(write_shards):
    captions, fps = ShardDataset(write_shards([2, 3])).captions(3)
    assert captions == [f"clip {n} of 0, variant 0" for n in (0, 1, 0)]
    assert fps == 12


def test_subjects_are_sampled_equally_often(write_shards):
    folder = write_shards([4, 4])
    content = json.loads((folder / INDEX).read_text())
    # the first clip is the only one of its subject, the seven others share one
    content["shards"][0]["subject_counts"] = [1, 7, 7, 7]
    content["shards"][1]["subject_counts"] = [7, 7, 7, 7]
    (folder / INDEX).write_text(json.dumps(content))
    dataset = ShardDataset(folder)
    plain = dataset.sample_indices(3, 0, 8)
    assert sorted(plain) == list(range(8))
    balanced = dataset.sample_indices(3, 0, 80, subject_balance=1.0)
    assert balanced.count(0) == 40
    assert all(3 <= balanced.count(clip) <= 9 for clip in range(1, 8))
    batch = load_encoded_batch(dataset, 3, 0, 8, 4, subject_balance=1.0)
    assert batch.clip_ids.count("0/0") == 4
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.sample_indices(3, 5, 40, 1.0) == balanced[5:45]
