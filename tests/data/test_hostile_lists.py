"""Lists, manifests and indexes with any bytes are read, or refused in a sentence."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magicvideo.data.manifest import DATASET, MANIFEST, read_info, read_manifest
from magicvideo.data.shards.index import INDEX, read_index
from magicvideo.data.sources.registry import open_source
from magicvideo.errors import UserError

KEYS = st.sampled_from(
    ["file_name", "text", "caption", "split", "video_id", "start", "end", "span", "clip", "videos"]
) | st.sampled_from(
    ["sentences", "shards", "info", "file", "bytes", "format", "id", "frames", "fps", "x"]
)
TEXTS = st.one_of(
    st.sampled_from(["a.mp4", "../b.mp4", "/etc/passwd", "C:\\x.mp4", "train", "00:01", "\0", ""]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(KEYS | TEXTS, inner, max_size=4)
    ),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(KEYS, VALUES, min_size=1, max_size=5), max_size=3)
BYTES = st.one_of(
    st.binary(max_size=60),
    ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.lists(st.lists(TEXTS, max_size=3).map(",".join), max_size=4).map(
        lambda lines: "\n".join(["file_name,text", *lines]).encode("utf-8", "surrogatepass")
    ),
    st.integers(1, 3000).map(lambda depth: b'{"a":[' * depth),
)
FOLDERS = {
    "metadata.jsonl": open_source,
    "metadata.csv": open_source,
    "metadata.json": open_source,
    "list.jsonl": open_source,
    "list.json": open_source,
    "results_val.csv": open_source,
    "videos.txt": open_source,
    INDEX: read_index,
    MANIFEST: read_manifest,
    DATASET: read_info,
}


@pytest.mark.parametrize("name", FOLDERS)
def test_any_content_is_read_or_refused(tmp_path, name):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(BYTES)
    def check(content):
        (tmp_path / name).write_bytes(content)
        try:
            found = FOLDERS[name](tmp_path)
        except UserError:
            return
        for clip in getattr(found, "clips", ()):
            assert clip.path.is_relative_to(tmp_path)
            clip.text.encode() if clip.text else None

    check()
