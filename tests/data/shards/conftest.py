"""Shards written without networks, and clips to encode with the tiny model."""

import shutil

import numpy as np
import pytest
from random_shards import members

from magicvideo.atomic_io import sha256
from magicvideo.data.manifest import ClipRecord, read_manifest, write_manifest
from magicvideo.data.prepare import _write_array
from magicvideo.data.shards.index import ShardIndex, ShardInfo, ShardRecord, write_index
from magicvideo.data.shards.tar_shard import add_member, open_archive
from magicvideo.data.workers import map_unordered

GLASS_FRAMES, SIDE = 18, 24  # more frames than pass the networks at a time


@pytest.fixture
def write_shards(tmp_path):
    """A function that writes shards with so many clips each, and their index."""

    def write(counts, variants=1, name="shards"):
        folder = tmp_path / name
        folder.mkdir()
        shards = []
        for number, clips in enumerate(counts):
            path = folder / f"train-{number:06d}.tar"
            with open_archive(path) as archive:
                for member in members(number, clips, variants):
                    add_member(archive, *member)
            shards.append(
                ShardRecord(
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
            height=24,
            width=24,
            fit="crop",
            frame_step=1,
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


def run_here(function, jobs):
    return map_unordered(function, jobs, 1)


@pytest.fixture(scope="session")
def mixed(prepared, tmp_path_factory):
    """The seven prepared videos, two of them held out, and one of glass; do not write into it."""
    folder = tmp_path_factory.mktemp("mixed") / "data"
    shutil.copytree(prepared, folder)
    pixels = np.random.default_rng(0).integers(
        0, 128, (GLASS_FRAMES, SIDE, SIDE, 4), dtype=np.uint8
    )
    pixels[..., 3] = 128
    _write_array(folder / "clips/glass.npy", pixels)
    glass = ClipRecord(
        id="glass",
        file="clips/glass.npy",
        frames=GLASS_FRAMES,
        fps=12,
        channels=4,
        split="train",
        loops=True,
        sha256="0",
        text="a pane of glass",
    )
    videos = read_manifest(folder)
    held = [clip.model_copy(update={"split": "heldout"}) for clip in videos[:2]]
    write_manifest(folder, [*held, *videos[2:], glass])
    return folder


@pytest.fixture(scope="session")
def folders(tiny_model):
    """Where the parts of the tiny model are."""
    from magicvideo.models.pretrained_encoders import resolve_frozen_encoders

    return resolve_frozen_encoders(tiny_model)


@pytest.fixture
def encode_mixed(mixed, folders):
    """A function that encodes the eight clips, two or three in a shard."""
    from magicvideo.data.shards.encode import encode
    from magicvideo.data.shards.writer import inputs_from_prepared

    def run(out, run_jobs=run_here, source=mixed, **settings):
        chosen = {"variants": 3, "clips_per_shard": 2, **settings}
        return encode(inputs_from_prepared(source), folders, out, run_jobs, **chosen)

    return run
