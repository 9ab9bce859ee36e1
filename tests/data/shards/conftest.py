"""A folder of shards, written without any network."""

import pytest
from random_shards import members

from magicvideo.data.shards.archive import write_archive
from magicvideo.data.shards.index import Shard, ShardIndex, ShardInfo, write_index
from magicvideo.storage import sha256


@pytest.fixture
def write_shards(tmp_path):
    """A function that writes shards with so many clips each, and their index."""

    def write(counts, variants=1, name="shards"):
        folder = tmp_path / name
        folder.mkdir()
        shards = []
        for number, clips in enumerate(counts):
            path = folder / f"train-{number:06d}.tar"
            write_archive(path, members(number, clips, variants))
            shards.append(
                Shard(
                    file=path.name,
                    split="train",
                    bytes=path.stat().st_size,
                    sha256=sha256(path),
                    clips=clips,
                    samples=clips * variants,
                )
            )
        info = ShardInfo(
            source="test",
            origin="here",
            size=24,
            every=1,
            licence="none",
            split_rule="none",
            variants=variants,
            clips_per_shard=max(counts),
            parts={},
            device="cpu",
            threads=1,
        )
        write_index(folder, ShardIndex(info=info, shards=tuple(shards)))
        return folder

    return write
