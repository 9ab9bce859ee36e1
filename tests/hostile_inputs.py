"""Hostile changes of honest files, and the watch over what reading them may do.

`FUZZ_EXAMPLES` sets how many examples each test tries: 20 by default, thousands by `make fuzz`.
"""

import copy
import json
import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from magicvideo.errors import ClipError, UserError

MAX_SECONDS = 5.0
MAX_MEGABYTES = 500

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 20,
    suppress_health_check=list(HealthCheck),
)
"""The same few examples in every run of the tests; other ones in each run of `make fuzz`."""

NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
VALUES = [
    None,
    True,
    0,
    -1,
    1,
    10**7,
    2**31,
    2**63,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../secret",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x",
    "\ud800",
    "\x1b[2J",
    "a" * 10_000,
    [],
    {},
    [[]],
    [None] * 1000,
    {"x": {}},
]

_edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "number", "cut", "zero", "repeat", "insert"]),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(NUMBERS),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def changed_bytes(draw, whole, head=1.0):
    """Bytes of a file after a few edits, most of them in the first `head` of it."""
    content = bytearray(whole)
    for kind, where, number, count in draw(_edits):
        place = int(where * len(content) * head)
        if kind == "flip":
            content[place : place + 1] = bytes([(content[place] if content else 0) ^ number % 256])
        elif kind == "number":
            size = min(8, max(1, (number.bit_length() + 7) // 8))
            order = "big" if count % 2 else "little"
            content[place : place + size] = number.to_bytes(size, order)
        elif kind == "cut":
            del content[place:]
        elif kind == "zero":
            content[place : place + count] = bytes(count)
        elif kind == "repeat":
            content[place:place] = content[place : place + count] * (number % 50)
        else:
            content[place:place] = bytes([number % 256]) * count
        if not content:
            break
    return bytes(content)


def places_in(value, path=()):
    """The paths to all values inside a JSON document."""
    yield path
    lists = enumerate(value) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, dict) else lists:
        yield from places_in(inner, (*path, key))


@st.composite
def changed_json(draw, document):
    """A JSON document in which a few values, keys or depths are hostile, as text."""
    changed = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(places_in(changed), key=str)))
        kind = draw(st.sampled_from(["value", "drop", "add"]))
        if not path:
            continue
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        if kind == "drop":
            del holder[path[-1]]
        elif kind == "add" and isinstance(holder, dict):
            key = draw(st.sampled_from(["extra", "../x", "__class__", "\ud800"]))
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        else:
            holder[path[-1]] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    text = json.dumps(changed)
    depth = draw(st.sampled_from([0, 0, 0, 200, 100_000]))
    return text.replace("null", "[" * depth + "]" * depth, 1) if depth else text


_allowed: list[Path] = []


def watch_files(event, arguments):
    """Note files that are opened for writing outside the folder of the test."""
    if event != "open" or not _allowed or not isinstance(arguments[0], str | bytes):
        return
    mode, flags = arguments[1], arguments[2]
    writes = any(letter in (mode or "") for letter in "wax+") or bool(
        flags and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )
    path = Path(os.path.realpath(os.fsdecode(arguments[0])))
    is_bytecode = path.parent.name == "__pycache__"  # of a module that is imported on the way
    if is_bytecode or str(path) == os.devnull:
        return
    if writes and _allowed[0] not in (path, *path.parents):
        raise AssertionError(f"{path} is opened for writing, outside {_allowed[0]}")


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def safely(folder):
    """Let a `UserError` or `ClipError` pass, and nothing else; watch time, memory and files."""
    memory, started = peak_megabytes(), time.process_time()
    _allowed[:] = [Path(os.path.realpath(folder))]
    try:
        yield
    except (UserError, ClipError) as error:
        sentence = str(error)
        assert sentence
        assert len(sentence) < 20_000
    finally:
        _allowed.clear()
    assert time.process_time() - started < MAX_SECONDS
    assert peak_megabytes() - memory < MAX_MEGABYTES
