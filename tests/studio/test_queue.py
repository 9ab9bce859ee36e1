"""The queue on SQLite, Redis and PostgreSQL, and a whole studio on the last two."""

import pickle

import pytest

from magicvideo.errors import UserError
from magicvideo.studio.queue import JobQueue


def test_ids_come_out_in_order_and_once(queue_url):
    queue, other = JobQueue(queue_url), JobQueue(queue_url)
    for name in ("video_1", "video_2", "video_3"):
        queue.put(name)
    assert len(other) == 3
    assert [other.take(), queue.take(), other.take(), queue.take()] == [
        "video_1",
        "video_2",
        "video_3",
        None,
    ]
    queue.close()
    other.close()


class Exploit:
    """A pickle that would write a file if it were loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_foreign_messages_are_dropped_and_never_unpickled(queue_url, tmp_path):
    queue = JobQueue(queue_url)
    marker = tmp_path / "marker"
    for message in (
        pickle.dumps(Exploit(marker)),
        b"\xff",
        b"[]",
        b'{"a": 1}',
        b'["x", "unknown"]',
    ):
        queue._huey.storage.enqueue(message)
    queue.put("video_1")
    assert [queue.take() for _ in range(6)] == [None] * 5 + ["video_1"]
    assert not marker.exists()
    queue.close()


def test_an_unknown_kind_of_queue_is_refused():
    with pytest.raises(UserError, match="no known kind"):
        JobQueue("amqp://localhost")


def test_a_studio_on_postgresql_and_redis(open_studio, postgres, redis):
    studio = open_studio(
        settings={"database": postgres, "queue": redis, "files": "memory://studio"}
    )
    done = studio.make(prompt="a cat", seed=2, steps=1, stages="keyframes")
    assert done["status"] == "completed"
    content = studio.http.get(f"/v1/videos/{done['id']}/content", headers={"Range": "bytes=4-7"})
    assert (content.status_code, content.content) == (206, b"ftyp")
    listed = studio.http.get("/v1/videos", params={"limit": 1}).json()
    assert listed["data"][0]["id"] == done["id"]
    assert studio.http.delete(f"/v1/videos/{done['id']}").status_code == 200
