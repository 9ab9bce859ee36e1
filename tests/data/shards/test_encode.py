"""Encoding with the real networks of the tiny model."""

import shutil

import numpy as np
import pytest
import torch

from magicvideo.atomic_io import sha256
from magicvideo.data.backgrounds import parse_background
from magicvideo.data.dataset import ClipDataset, composite_background
from magicvideo.data.doctor import check_shards
from magicvideo.data.manifest import write_manifest
from magicvideo.data.prepare import FrameSettings
from magicvideo.data.shards.dataset import ShardDataset
from magicvideo.data.shards.encode import assign_clips_to_shards, encode
from magicvideo.data.shards.index import INDEX, read_index
from magicvideo.data.shards.writer import inputs_from_prepared, inputs_from_source
from magicvideo.data.sources import folder as folder_source
from magicvideo.data.workers import Rank
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import encode_frames
from magicvideo.models.conditioning import embed_frames, encode_text


def contents(folder):
    """The bytes of all files except the records of single shards, which contain dates."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.suffix == ".tar" or path.name == INDEX
    }


@pytest.fixture(scope="session")
def whole(mixed, folders, tmp_path_factory):
    """The eight clips encoded by one process; do not write into it."""
    from magicvideo.data.workers import map_unordered

    out = tmp_path_factory.mktemp("encoded") / "shards"
    inputs = inputs_from_prepared(mixed)
    report = encode(
        inputs,
        folders,
        out,
        lambda function, jobs: map_unordered(function, jobs, 1),
        variants=3,
        clips_per_shard=2,
    )
    assert (report.kept, report.missing, report.clips, report.skipped) == (0, 0, 8, [])
    return out


def test_samples_are_the_network_outputs_of_the_clips(whole, mixed, folders):
    frozen = folders.load()
    pixels = ClipDataset(mixed, ("train", "heldout"))
    shards = ShardDataset(whole, ("train", "heldout"))
    opened = [shards._cache.open(n) for n in range(len(shards._cache.shards))]
    keys = {shard.metadata(k[0]).id: (shard, k) for shard in opened for k in shard.clips}
    assert set(keys) == {clip.id for clip in pixels.clips}
    for clip in pixels.clips:
        shard, variants = keys[clip.id]
        assert len(variants) == (3 if clip.channels == 4 else 1)
        for key in variants:
            note = shard.metadata(key)
            behind = parse_background(note.background) if note.background else None
            assert (behind is None) == (clip.channels == 3)
            frames = composite_background(np.load(mixed / clip.file), behind)[None]
            with torch.no_grad():
                expected = {
                    "latents": encode_frames(frozen.vae, frames)[0],
                    "embeddings": embed_frames(frozen.image_encoder, frames)[0],
                    "tokens": encode_text(frozen.text_encoder, frozen.tokenizer, [note.caption])[0],
                }
            # a gradient's direction has no name
            of_gradient = note.background is not None and note.background.startswith("gradient")
            for name in ("tokens",) if of_gradient else expected:
                stored = torch.from_numpy(shard.array(key, name).astype(np.float32))
                found = stored * getattr(note, f"{name}_scale")
                assert torch.allclose(found, expected[name], rtol=2**-10, atol=1e-5), (key, name)
            assert (note.fps, note.loops) == (clip.fps, clip.loops)
            assert note.parts == folders.hashes()


def test_samples_state_their_source(whole, shapes):
    shards = ShardDataset(whole)
    note = next(
        shard.metadata(keys[0])
        for shard in map(shards._cache.open, range(len(shards._cache.shards)))
        for keys in shard.clips
        if shard.metadata(keys[0]).background is None
    )
    name = note.id if note.id.endswith(".mp4") else f"{note.id}.mp4"
    assert note.source_sha256 == sha256(shapes / name)
    assert note.caption


def test_variants_differ_and_depend_only_on_the_clip(whole):
    shards = ShardDataset(whole)
    for number in range(len(shards._cache.shards)):
        shard = shards._cache.open(number)
        for keys in shard.clips:
            if shard.metadata(keys[0]).id == "glass":
                notes = [shard.metadata(key) for key in keys]
    assert len({note.background for note in notes}) == 3
    assert all("glass" in note.caption for note in notes)


@pytest.mark.parametrize("world", [2, 3])
def test_the_bytes_do_not_depend_on_the_number_of_processes(whole, encode_mixed, tmp_path, world):
    out = tmp_path / "shards"
    reports = [encode_mixed(out, rank=Rank(number, world)) for number in reversed(range(world))]
    assert [report.missing > 0 for report in reports] == [True] * (world - 1) + [False]
    assert contents(out) == contents(whole)


def test_complete_shards_are_kept_and_others_are_written_again(
    whole, mixed, encode_mixed, tmp_path
):
    out = tmp_path / "shards"
    shutil.copytree(whole, out)
    assert all(finding.split for finding in check_shards(out))
    shards = sorted(out.glob("*.tar"))
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-1] + b"x")
    shards[2].rename(out / "elsewhere")
    findings = check_shards(out)
    assert [finding.split is None for finding in findings] == [False, True, True, False]
    assert findings[1].detail == "damaged: its SHA-256 is not the index's"
    (out / "elsewhere").rename(shards[2])
    shards[1].write_bytes(content)
    dates = [path.stat().st_mtime_ns for path in shards]
    (out / INDEX).unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    shards[2].with_suffix(".json").unlink()
    (out / f".partial-{shards[2].stem}-abc.tar").write_bytes(b"half")
    report = encode_mixed(out)
    assert (report.written, report.kept) == (2, len(shards) - 2)
    assert contents(out) == contents(whole)
    assert not list(out.glob(".partial-*"))
    changed = [path.stat().st_mtime_ns != date for path, date in zip(shards, dates, strict=True)]
    assert changed == [False, True, True] + [False] * (len(shards) - 3)

    source = tmp_path / "data"
    shutil.copytree(mixed, source)
    clips = ClipDataset(source, ("train", "heldout")).clips
    fewer = [clip for clip in clips if clip.split == "train"][:-2]
    held = [clip for clip in clips if clip.split == "heldout"]
    write_manifest(source, [*fewer, *held])
    report = encode_mixed(out, source=source)
    assert report.clips == 6
    assert report.kept == 1  # the held-out, which are as they were
    index = read_index(out)
    assert {shard.file for shard in index.shards} == {path.name for path in out.glob("*.tar")}
    assert sum(shard.clips for shard in index.shards) == 6


def test_clips_of_a_source_are_decoded_on_the_fly_and_damaged_ones_skipped(
    shapes, prepared, folders, tmp_path
):
    from magicvideo.data.workers import map_unordered

    videos = tmp_path / "videos"
    shutil.copytree(shapes, videos)
    victim = sorted(videos.glob("*.mp4"))[2]
    victim.write_bytes(victim.read_bytes()[:300])
    inputs = inputs_from_source(folder_source.scan(videos, holdout=0.35), FrameSettings.square(24))
    report = encode(inputs, folders, tmp_path / "shards", lambda f, jobs: map_unordered(f, jobs, 1))
    assert report.clips == 6
    assert [one.file for one in report.skipped] == [victim.name]
    by_id = {clip.id: clip for clip in ClipDataset(prepared, ("train", "heldout")).clips}
    shards = ShardDataset(tmp_path / "shards", ("train", "heldout"))
    shard = shards._cache.open(0)
    for (key,) in shard.clips:
        note = shard.metadata(key)
        assert note.source_sha256 == sha256(videos / note.file)
        assert len(shard.array(key, "latents")) == by_id[note.id].frames
        assert note.fps == by_id[note.id].fps


def test_the_assignment_is_a_function_of_the_clips(mixed):
    clips = inputs_from_prepared(mixed).clips
    shards = assign_clips_to_shards(clips, 3)
    assert assign_clips_to_shards(clips[::-1], 3) == shards
    assert sorted(one.id for _, _, chosen in shards for one in chosen) == sorted(
        one.id for one in clips
    )
    for name, split, chosen in shards:
        assert name.startswith(f"{split}-")
        assert {one.split for one in chosen} == {split}
        assert len(chosen) <= 3


def test_other_settings_and_foreign_folders_are_refused(whole, encode_mixed, tmp_path):
    out = tmp_path / "shards"
    shutil.copytree(whole, out)
    with pytest.raises(UserError, match="was begun with variants=3 and this command has variants"):
        encode_mixed(out, variants=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not empty and holds no shards"):
        encode_mixed(tmp_path / "mine")
    with pytest.raises(UserError, match="--clips-per-shard 0 does not fit"):
        encode_mixed(tmp_path / "new", clips_per_shard=0)
    assert not (tmp_path / "new").exists()


def test_ranks_are_read_as_torchrun_sets_them():
    assert Rank.from_env({}) == Rank(0, 1, 0)
    assert Rank.from_env({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Rank(5, 8, 1)
    for said in ({"RANK": "2"}, {"RANK": "8", "WORLD_SIZE": "8"}, {"RANK": "x", "WORLD_SIZE": "2"}):
        with pytest.raises(UserError, match="is not a process and the number of processes"):
            Rank.from_env(said)
