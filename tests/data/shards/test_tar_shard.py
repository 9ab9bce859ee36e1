import gc
import io
import tarfile

import numpy as np
import pytest
from random_shards import SHAPES, members

from magicvideo.data.shards.index import read_index
from magicvideo.data.shards.tar_shard import (
    ARRAY_AXES,
    ShardReader,
    add_member,
    from_scaled_fp16,
    open_archive,
)
from magicvideo.errors import UserError


def test_the_bytes_of_a_shard_depend_only_on_its_members(tmp_path):
    for name in ("one.tar", "two.tar"):
        with open_archive(tmp_path / name) as archive:
            for member in members(3, 2, 2):
                add_member(archive, *member)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        about = archive.getmembers()[0]
        assert (about.mtime, about.uid, about.gid, about.uname) == (0, 0, 0, "")


def test_samples_are_read_by_offset(write_shards):
    folder = write_shards([2, 3], variants=2)
    shard = ShardReader(folder / "train-000001.tar", read_index(folder).shards[1])
    assert shard.clips[2] == ["00002-00", "00002-01"]
    metadata = shard.metadata("00002-01")
    assert metadata.caption == "clip 2 of 1, variant 1"
    latents = from_scaled_fp16(shard.array("00002-01", "latents"), metadata.latents_scale).numpy()
    rng = np.random.default_rng((1, 2, 1))
    np.testing.assert_allclose(latents, rng.normal(12, 1, SHAPES["latents"]), rtol=2**-11)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards(write_shards):
    webdataset = pytest.importorskip("webdataset")
    folder = write_shards([2, 3], variants=2)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()  # the library leaves files to the collector, which warns of it
    assert len(found) == 10
    assert found[-1]["json"]["caption"] == "clip 2 of 1, variant 1"
    shard = ShardReader(folder / "train-000001.tar", read_index(folder).shards[1])
    for name in ARRAY_AXES:
        assert found[-1][f"{name}.npy"].dtype == np.float16
        np.testing.assert_array_equal(found[-1][f"{name}.npy"], shard.array("00002-01", name))


def test_a_damaged_shard_is_named(write_shards):
    folder = write_shards([2])
    path, (shard,) = folder / "train-000000.tar", read_index(folder).shards
    whole = path.read_bytes()
    path.write_bytes(whole[:-700])
    with pytest.raises(UserError, match=r"train-000000\.tar is cut off or changed: it has"):
        ShardReader(path, shard)
    path.write_bytes(b"x" * len(whole))
    with pytest.raises(UserError, match=r"train-000000\.tar is damaged"):
        ShardReader(path, shard)
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("00000-00.json"), io.BytesIO())
    broken = ShardReader(path, shard.model_copy(update={"bytes": path.stat().st_size, "clips": 1}))
    with pytest.raises(UserError, match=r"train-000000\.tar is damaged"):
        broken.metadata("00000-00")
    with pytest.raises(UserError, match=r"train-000000\.tar is damaged"):
        broken.array("00000-00", "latents")
    path.unlink()
    with pytest.raises(UserError, match=r"train-000000\.tar is missing"):
        ShardReader(path, shard)
