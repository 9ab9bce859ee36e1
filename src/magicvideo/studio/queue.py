"""The queue between API and workers: huey's storage, which carries job ids and nothing else.

The job table is the truth. An id may be lost or come twice: `JobStore.claim` lets one worker have
a job, and workers put ids of waiting jobs back into a queue that has lost them.
"""

import json
from typing import Any
from urllib.parse import urlsplit

from huey import Huey, PostgresHuey, RedisHuey, SqliteHuey
from huey.exceptions import HueyException
from huey.registry import Message
from huey.serializer import Serializer

from magicvideo.errors import UserError

_NAME = "magicvideo"
_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")


class JsonSerializer(Serializer):
    """Messages as JSON, since huey's default is pickle and a queue may be written by others."""

    def _serialize(self, data: tuple[object, ...]) -> bytes:
        return json.dumps(list(data)).encode()

    def _deserialize(self, data: bytes) -> tuple[object, ...]:
        message: tuple[object, ...] = Message(*json.loads(data))
        return message


class JobQueue:
    """Ids of waiting jobs, first in, first out.

    Args:
        url: `sqlite:///FILE`, `redis://HOST` or `postgresql://HOST/NAME`.

    Raises:
        UserError: If the URL is of another kind.
    """

    def __init__(self, url: str) -> None:
        self._huey = _open(url)
        self._task = self._huey.task(name="make_video")(_make_video)

    def put(self, job_id: str) -> None:
        """Append an id."""
        self._task(job_id)

    def take(self) -> str | None:
        """Remove and return the first id, or None where there is none."""
        try:
            task = self._huey.dequeue()
            return None if task is None else str(task.args[0])
        except (ValueError, TypeError, IndexError, HueyException):
            return None  # not a message of ours; it is off the queue now

    def __len__(self) -> int:
        """Return how many ids wait."""
        return int(self._huey.pending_count())

    def close(self) -> None:
        """Close the connection."""
        storage = self._huey.storage
        storage.close()
        if (pool := getattr(storage, "pool", None)) is not None:
            pool.disconnect()  # of Redis, whose storage leaves its connections open


def _make_video(job_id: str) -> str:
    """Name the task; workers take its argument, huey's consumer does not run."""
    return job_id


def _open(url: str) -> Huey:
    scheme = urlsplit(url).scheme
    common: dict[str, Any] = {"results": False, "serializer": JsonSerializer()}
    if scheme == "sqlite":
        filename = url.removeprefix("sqlite:///")
        return SqliteHuey(_NAME, filename=filename, strict_fifo=True, timeout=30, **common)
    if scheme in ("redis", "rediss", "unix"):
        return RedisHuey(_NAME, url=url, blocking=False, **common)
    if scheme in _POSTGRESQL:
        return PostgresHuey(_NAME, dsn=url.replace("+psycopg", "", 1), blocking=False, **common)
    raise UserError(
        f"The queue {url!r} is of no known kind; give sqlite:///FILE, redis://HOST or "
        "postgresql://HOST/NAME."
    )
