"""Shards from an untrusted server: no file outside the cache, no endless reading."""

import io
import json
import tarfile

import fsspec
import numpy as np
import pytest

from magicvideo.atomic_io import sha256
from magicvideo.data.shards.dataset import ShardDataset
from magicvideo.data.shards.index import INDEX, MAX_INDEX_BYTES, read_index
from magicvideo.data.shards.tar_shard import ShardReader
from magicvideo.errors import UserError

SHARD = "train-000000.tar"


@pytest.fixture
def serve():
    """A function that puts a folder into a store in memory and returns its URL."""
    store = fsspec.filesystem("memory")

    def put(folder):
        url = f"memory://{folder.parent.name}/{folder.name}"
        store.put(str(folder), url, recursive=True)
        return url

    yield put
    store.store.clear()


def rewrite_index(folder, **changes):
    content = json.loads((folder / INDEX).read_text())
    content["shards"][0].update(changes)
    (folder / INDEX).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name",
    ["{victim}", "../victim.tar", "/etc/passwd", "a/../../x.tar", "..tar", "a\\b.tar", "x.tar\n"],
)
def test_an_index_names_no_file_outside_the_cache(write_shards, serve, tmp_path, name):
    victim = tmp_path / "victim.tar"
    victim.write_text("precious")
    folder = write_shards([2])
    rewrite_index(folder, file=name.replace("{victim}", str(victim)))
    for location in (folder, serve(folder)):
        with pytest.raises(UserError, match="is damaged or of another version"):
            ShardDataset(location, cache=tmp_path / "cache")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": 0},
        {"clips": -1},
        {"sha256": "x"},
        {"subject_counts": [1]},
        {"subject_counts": [0, 1]},
        {"size": 3},
    ],
)
def test_numbers_of_an_index_are_checked(write_shards, change):
    folder = write_shards([2])
    rewrite_index(folder, **change)
    with pytest.raises(UserError, match="is damaged or of another version"):
        read_index(folder)


def test_an_endless_index_is_not_read(write_shards):
    folder = write_shards([2])
    with (folder / INDEX).open("r+b") as file:
        file.truncate(MAX_INDEX_BYTES + 5)
    with pytest.raises(UserError, match=r"has more than .* bytes, the limit"):
        read_index(folder)


def test_a_download_stops_at_the_size_of_the_shard(write_shards, serve, tmp_path, monkeypatch):
    folder = write_shards([2])
    url = serve(folder)
    read = []

    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def read(self, size=-1):
            read.append(size)
            return bytes(size)

    store = fsspec.filesystem("memory")
    real = type(store)._open

    def endless(self, path, mode="rb", **options):
        return Endless() if path.endswith(SHARD) else real(self, path, mode, **options)

    monkeypatch.setattr(type(store), "_open", endless)
    dataset = ShardDataset(url, cache=tmp_path / "cache")
    with pytest.raises(UserError, match=r"train-000000\.tar is cut off or changed"):
        dataset.sample(0, np.random.default_rng(0), num_frames=2)
    assert len(read) <= 2
    assert not list((tmp_path / "cache").rglob("*.tar"))


def member(name, content=b"", **fields):
    about = tarfile.TarInfo(name)
    about.size = len(content)
    for field, value in fields.items():
        setattr(about, field, value)
    return about, content


@pytest.mark.parametrize(
    "hostile",
    [
        member("00000-00.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("00000-00.json", type=tarfile.LNKTYPE, linkname="../../x"),
        member("00000-00.json", type=tarfile.CHRTYPE),
        member("a" * 300),  # needs a header of GNU's or pax's, of any length
    ],
)
def test_only_plain_members_are_read(write_shards, hostile):
    folder = write_shards([1])
    (record,) = read_index(folder).shards
    path = folder / SHARD
    with tarfile.open(path, "w") as archive:
        archive.addfile(hostile[0], io.BytesIO(hostile[1]))
    record = record.model_copy(update={"bytes": path.stat().st_size, "sha256": sha256(path)})
    with pytest.raises(UserError, match=r"train-000000\.tar is damaged"):
        ShardReader(path, record)


def npy(values, version=(1, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, values, version=version, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npy(np.zeros((9, 3, 4), np.float16)),
        npy(np.zeros((9, 3, 4, 5), np.float32)),
        npy(np.zeros((9, 3, 4, 5), np.int64)),
        npy(np.zeros((0, 3, 4, 5), np.float16)),
        npy(np.asfortranarray(np.zeros((9, 3, 4, 5), np.float16))),
        npy(np.array([[[["code"]]]], object)),
        npy(np.zeros((9, 3, 4, 5), np.float16), (2, 0)),
        npy(np.zeros((9, 3, 4, 5), np.float16))[:-2],
        npy(np.zeros((9, 3, 4, 5), np.float16)).replace(b"(9, 3, 4, 5)", b"(9, 3, 4, 6)"),
        b"\x93NUMPY\x01\x00\xff\xff",
        b"",
    ],
)
def test_arrays_of_another_shape_or_type_are_damage(write_shards, content):
    folder = write_shards([1])
    (record,) = read_index(folder).shards
    path = folder / SHARD
    with tarfile.open(path) as archive:
        members = [(one, archive.extractfile(one).read()) for one in archive]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for about, kept in members:
            changed = content if about.name.endswith("latents.npy") else kept
            about.size = len(changed)
            archive.addfile(about, io.BytesIO(changed))
    reader = ShardReader(path, record.model_copy(update={"bytes": path.stat().st_size}))
    with pytest.raises(UserError, match=r"train-000000\.tar is damaged"):
        reader.array("00000-00", "latents")


def test_latents_that_are_not_finite_are_named(write_shards):
    folder = write_shards([1])
    path = folder / SHARD
    with tarfile.open(path) as archive:
        place = archive.getmember("00000-00.latents.npy").offset_data + 128
    content = bytearray(path.read_bytes())
    content[place : place + 1080] = np.full(540, np.nan, np.float16).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"clip 0/0 in .*000000\.tar has numbers that are not fin"):
        ShardDataset(folder).sample(0, np.random.default_rng(0), num_frames=2)
