"""Untrusted weights: no code runs, memory is bounded, no other file is changed."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from magicvideo.atomic_io import sha256, verify_checksums, write_checksums
from magicvideo.convert.diffusers_folder import read_checkpoint
from magicvideo.errors import UserError
from magicvideo.pipelines.model_folder import (
    read_json,
    read_safetensors_header,
    verify_model_folder,
)


def framed(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(first, last, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def many(count):
    entries = {f"t{index}": tensor(4 * index, 4 * index + 4, [1]) for index in range(count)}
    return framed(entries, bytes(4 * count))


HOSTILE = {
    "no bytes": b"",
    "half a length": b"1234",
    "a header of 2^40 bytes": framed(b"{}", length=1 << 40),
    "a header of 2^64-1 bytes": framed(b"{}", length=(1 << 64) - 1),
    "not UTF-8": framed(b'{"\xff\xfe": 1}'),
    "UTF-16": framed(json.dumps({"a": tensor(0, 4, [1])}).encode("utf-16"), bytes(4)),
    "no JSON": framed(b"{'a': 1}"),
    "a list": framed([tensor(0, 4, [1])]),
    "a nest": framed(b'{"a":' * 100_000),
    "space before": framed(b" " + json.dumps({"a": tensor(0, 4, [1])}).encode(), bytes(4)),
    "no offsets": framed({"a": {"dtype": "F32", "shape": [1]}}),
    "overlap": framed({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)),
    "twice the same": framed({"a": tensor(0, 8, [2]), "b": tensor(0, 8, [2])}, bytes(8)),
    "a gap": framed({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, bytes(12)),
    "backwards": framed({"a": tensor(8, 0, [2])}, bytes(8)),
    "negative": framed({"a": tensor(-4, 0, [1]), "b": tensor(0, 4, [1])}, bytes(4)),
    "negative shape": framed({"a": tensor(0, 8, [-1, -2])}, bytes(8)),
    "larger than its bytes": framed({"a": tensor(0, 8, [1 << 40])}, bytes(8)),
    "overflow": framed({"a": tensor(0, 0, [1 << 40, 1 << 40])}),
    "unknown type": framed({"a": tensor(0, 4, [1], "F33")}, bytes(4)),
    "type that is none": framed({"a": tensor(0, 4, [1], None)}, bytes(4)),
    "truth": framed({"a": tensor(False, 4, [True])}, bytes(4)),
    "fractions": framed({"a": tensor(0, 4.0, [1.0])}, bytes(4)),
    "data cut": framed({"a": tensor(0, 8, [2])}, bytes(7)),
    "data beyond": framed({"a": tensor(0, 8, [2])}, bytes(9)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_gives_one_sentence(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for read in (read_safetensors_header, read_checkpoint):
        with pytest.raises(UserError, match=r"is not a safetensors file|bytes where its header"):
            read(path)


MEASURE = """
import resource, sys, time
from pathlib import Path
from magicvideo.errors import UserError
from magicvideo.pipelines.model_folder import read_safetensors_header
for path in sorted(Path(sys.argv[1]).iterdir()):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        read_safetensors_header(path)
    except UserError as error:
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(path.name, time.process_time() - start, more // 1024, sep="|")
"""


def test_headers_take_neither_time_nor_memory(tmp_path):
    for number, content in enumerate([*HOSTILE.values(), many(100_000)]):
        (tmp_path / str(number)).write_bytes(content)
    command = [sys.executable, "-c", MEASURE, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert len(lines) == len(HOSTILE) + 1
    assert max(float(seconds) for _, seconds, _ in lines) < 1
    assert sum(int(megabytes) for *_, megabytes in lines) < 50
    path = tmp_path / "large.safetensors"
    path.write_bytes(many(9_000))
    assert len(read_safetensors_header(path)) == 9_000


def test_whatever_header_is_accepted_can_be_loaded(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3, 5), "bias": torch.ones(7).half()}, path)
    whole = path.read_bytes()
    rng, accepted = np.random.default_rng(0), 0
    end = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(600):
        content = bytearray(whole)
        for place in rng.integers(8, end, rng.integers(1, 3)):
            content[place] = rng.choice(list(b'0123456789[]{}",:FBIU abe-.'))
        path.write_bytes(content)
        try:
            header = read_safetensors_header(path)
        except UserError:
            continue
        accepted += 1
        loaded = load_file(path)
        assert {name: tuple(t.shape) for name, t in loaded.items()} == {
            name: stored.shape for name, stored in header.items()
        }
    assert 5 < accepted < 300


class Trap:
    def __init__(self, path, call=Path.touch):
        self.path, self.call = path, call

    def __reduce__(self):
        return (self.call, (self.path,))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_checkpoint_executes_code(tmp_path, suffix, zipped):
    sprung, path = tmp_path / "sprung", tmp_path / f"model{suffix}"
    traps = [
        Trap(sprung),
        Trap(f"touch {sprung}", os.system),
        Trap(f"open({str(sprung)!r}, 'w')", eval),
        Trap(("os", "system"), getattr),
        nn.Linear(2, 3),
    ]
    for trap in traps:
        content = {"state_dict": {"weight": torch.ones(2, 3), "trap": trap}}
        if zipped:
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=r"could run code|cannot be read as a checkpoint"):
            read_checkpoint(path)
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.PTH", "x.ckpt", "x.pkl", "x.Pickle"])
def test_a_folder_with_a_pickle_of_any_name_is_refused(tmp_path, name):
    sprung = tmp_path / "sprung"
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / name).write_bytes(pickle.dumps(Trap(sprung)))
    write_checksums(folder)
    with pytest.raises(UserError, match=f"{name} is a pickle, which can run code"):
        verify_model_folder(folder)
    assert not sprung.exists()


def test_archives_that_expand_beyond_their_size_are_refused(tmp_path):
    plain, path = tmp_path / "plain.pt", tmp_path / "bomb.pt"
    torch.save({"weight": torch.zeros(2_000_000)}, plain)
    assert read_checkpoint(plain)["weight"].shape == (2_000_000,)
    with zipfile.ZipFile(plain) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in whole.infolist():
            bomb.writestr(member.filename, whole.read(member))
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"bytes and would expand to 8,00\d,\d{3}"):
        read_checkpoint(path)
    torch.save({"weight": torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(UserError, match="and 'weight' in it would be larger"):
        read_checkpoint(path)
    path.write_bytes(plain.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)


@pytest.fixture
def summed(tmp_path):
    """A folder with checksums, and a secret file outside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("abc")
    (tmp_path / "secret").write_text("secret")
    write_checksums(folder)
    return folder


def test_checksums_name_no_file_outside_their_folder(summed, tmp_path):
    sums = (summed / "SHA256SUMS").read_text()
    for name in ("../secret", str(tmp_path / "secret"), "./weights", "weights/../weights", "\0"):
        line = f"{sha256(tmp_path / 'secret')}  {name}\n"
        (summed / "SHA256SUMS").write_text(sums + line)
        with pytest.raises(UserError, match="lacks "):
            verify_checksums(summed)


def test_links_out_of_a_folder_must_match_the_checksums(summed, tmp_path):
    (tmp_path / "stored").write_text("abc")  # as in a cache of downloads, which is made of links
    (summed / "weights").unlink()
    (summed / "weights").symlink_to(tmp_path / "stored")
    verify_checksums(summed)
    (summed / "weights").unlink()
    (summed / "weights").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="weights is damaged"):
        verify_checksums(summed)
    (summed / "weights").unlink()
    for target in ("/dev/zero", "weights", "/nowhere"):  # never ends, goes in a circle, is absent
        (summed / "weights").symlink_to(target)
        with pytest.raises(UserError, match="lacks weights"):
            verify_checksums(summed)
        (summed / "weights").unlink()
    os.mkfifo(summed / "weights")
    with pytest.raises(UserError, match="lacks weights"):
        verify_checksums(summed)


@pytest.mark.parametrize("content", [b'{"a":' * 100_000, b"\xff{}", b"[" * 100_000, b'{"a": 1'])
def test_invalid_json_gives_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        read_json(tmp_path / "config.json")
