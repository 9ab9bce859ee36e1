"""The table of jobs: the one truth under page, API and workers.

A job is `queued`, `running`, and then `completed`, `failed` or `cancelled`. Each change of state is
one conditional UPDATE, so two processes never both make it. SQLite in WAL mode and PostgreSQL give
the same guarantees here: what a method has returned from is on the disk.
"""

import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    CursorResult,
    Engine,
    Index,
    String,
    UniqueConstraint,
    Update,
    create_engine,
    delete,
    event,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
    sessionmaker,
)

from magicvideo.errors import UserError

State: TypeAlias = Literal["queued", "running", "completed", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
ACTIVE: tuple[State, ...] = ("queued", "running")
SILENCE = 30.0
"""Seconds without a heartbeat after which a worker is taken to be gone."""
SCHEMA_VERSION = 1
_CREATE_LOCK = 0x6D616769  # of PostgreSQL's advisory locks: one creation of a job at a time
_PATIENCE = 30.0  # seconds that a writer waits for another


class Table(DeclarativeBase):
    """Base of the tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


class Job(Table):
    """One video: what is asked for, how far it is, and what came out.

    Attributes:
        seq: Order of creation.
        id: Public name, `video_` and 32 hexadecimal digits.
        client: Who asked: name of a token, or an address.
        idempotency_key: As sent by the client; unique for each client.
        fingerprint: SHA-256 of all that decides the bytes of the result.
        parameters: What the client sent, checked.
        request: The complete request as JSON, once a worker has planned it.
        picture: Name of the stored picture to begin with, or of the video to continue.
        source_id: The job that this one remixes, extends or varies.
        stage: What the worker is doing.
        progress: Percent.
        preview: Number of the newest preview, 0 for none.
        time_left: Estimated seconds to the end.
        worker: Name of the worker that runs it, or ran it last.
        beat_at: Time of the last heartbeat of that worker.
        attempts: How often a worker began it.
        cancel_requested: Set to stop a running job within one step.
        deleted_at: When the client deleted it; it is hidden from then on.
        notified: Whether the webhook has accepted the event of its end, or never will.
        notice_attempts: How often the webhook was tried.
        notice_at: When it is tried next.
        files: Names of stored results by variant: video, thumbnail, spritesheet.
        sha256: Of the video file.
        num_bytes: Of all results.
        timings: Seconds by stage.
        warnings: Sentences for the client, such as words beyond the text encoder's length.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("client", "idempotency_key", name="one_job_per_idempotency_key"),
        Index("jobs_by_state", "state", "seq"),
        Index("jobs_by_client", "client", "state"),
    )

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    state: Mapped[str] = mapped_column(String(16), default="queued")
    kind: Mapped[str] = mapped_column(String(16), default="generate")
    client: Mapped[str] = mapped_column(String(128))
    idempotency_key: Mapped[str | None] = mapped_column(String(256))
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    model: Mapped[str] = mapped_column(String(128))
    prompt: Mapped[str]
    parameters: Mapped[dict[str, Any]]
    request: Mapped[str | None]
    picture: Mapped[str | None]
    source_id: Mapped[str | None] = mapped_column(String(64))
    format: Mapped[str] = mapped_column(String(8))
    seconds: Mapped[float]
    size: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str | None] = mapped_column(String(32))
    progress: Mapped[int] = mapped_column(default=0)
    preview: Mapped[int] = mapped_column(default=0)
    time_left: Mapped[float | None]
    created_at: Mapped[float]
    queued_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    expires_at: Mapped[float | None]
    deleted_at: Mapped[float | None]
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None]
    worker: Mapped[str | None] = mapped_column(String(128))
    beat_at: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    notified: Mapped[bool] = mapped_column(default=False)
    notice_attempts: Mapped[int] = mapped_column(default=0)
    notice_at: Mapped[float] = mapped_column(default=0.0)
    files: Mapped[dict[str, Any]] = mapped_column(default=dict)
    sha256: Mapped[str | None] = mapped_column(String(64))
    num_bytes: Mapped[int] = mapped_column(default=0)
    timings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    warnings: Mapped[list[str]] = mapped_column(default=list)

    @property
    def is_finished(self) -> bool:
        """Tell whether nothing more will happen to it."""
        return self.state not in ACTIVE


class WorkerRow(Table):
    """A worker process and the time of its last heartbeat."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    device: Mapped[str] = mapped_column(String(32))
    seen_at: Mapped[float]


class Meta(Table):
    """Facts about the database itself."""

    __tablename__ = "studio_meta"

    key: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str]


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What `JobStore.create` needs to know; the attributes are those of `Job`."""

    client: str
    prompt: str
    parameters: dict[str, Any]
    fingerprint: str
    model: str
    format: str
    seconds: float
    size: str
    kind: str = "generate"
    picture: str | None = None
    source_id: str | None = None
    idempotency_key: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a worker hands in with a finished video."""

    files: Mapping[str, str]
    sha256: str
    num_bytes: int
    timings: Mapping[str, float]
    expires_at: float | None


class QueueFullError(Exception):
    """No more jobs are accepted now.

    Args:
        message: Sentence for the client.
        retry_after: Seconds after which it is worth trying again.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KeyReusedError(Exception):
    """An idempotency key came back with another request."""


class JobStore:
    """Reads and changes the table of jobs; may be used by many threads and processes.

    Args:
        url: SQLAlchemy URL, of SQLite or PostgreSQL.

    Raises:
        UserError: If the database cannot be opened or was written by another version.
    """

    def __init__(self, url: str) -> None:
        try:
            self.engine = _make_engine(url)
            self._prepare()
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise UserError(
                f"The database {url!r} is of no known kind ({error}); give sqlite:///FILE or "
                "postgresql+psycopg://HOST/NAME."
            ) from None
        except OperationalError as error:
            raise UserError(
                f"The database cannot be opened ({str(error.orig).strip()}); check its URL."
            ) from None
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        writers = self.engine.execution_options(immediate=True)
        self._writing = sessionmaker(writers, expire_on_commit=False)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    # -- creation ---------------------------------------------------------------------------------

    def create(self, new: NewJob, *, queued_jobs: int, client_jobs: int) -> tuple[Job, bool]:
        """Add a job, or return the one that the same idempotency key made before.

        Args:
            new: The job.
            queued_jobs: Most waiting jobs of all clients.
            client_jobs: Most waiting and running jobs of one client.

        Returns:
            The job, and whether it is new.

        Raises:
            QueueFullError: If a limit is reached.
            KeyReusedError: If the key belongs to another request.
        """
        now = time.time()
        with self._write() as session:
            if session.get_bind().dialect.name == "postgresql":
                session.execute(text(f"SELECT pg_advisory_xact_lock({_CREATE_LOCK})"))
            if new.idempotency_key is not None:
                query = select(Job).where(
                    Job.client == new.client, Job.idempotency_key == new.idempotency_key
                )
                if (known := session.scalar(query)) is not None:
                    if known.fingerprint != new.fingerprint or known.kind != new.kind:
                        raise KeyReusedError
                    return known, False
            self._check_room(session, new.client, queued_jobs, client_jobs)
            values = {**vars(new), "warnings": list(new.warnings)}
            job = Job(id=f"video_{secrets.token_hex(16)}", created_at=now, queued_at=now, **values)
            session.add(job)
            session.flush()
            return job, True

    def _check_room(
        self, session: Session, client: str, queued_jobs: int, client_jobs: int
    ) -> None:
        counting = select(func.count()).select_from(Job)
        waiting = session.scalar(counting.where(Job.state == "queued")) or 0
        if waiting >= queued_jobs:
            raise QueueFullError(
                f"The queue is full ({queued_jobs} jobs wait); try again later.", 30
            )
        own = session.scalar(counting.where(Job.client == client, Job.state.in_(ACTIVE))) or 0
        if own >= client_jobs:
            raise QueueFullError(
                f"{client_jobs} of your jobs wait or run, as many as are allowed; try again when "
                "one has finished.",
                15,
            )

    # -- reading ----------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job | None:
        """Return a job that is not deleted."""
        with self._sessions() as session:
            return session.scalar(select(Job).where(Job.id == job_id, Job.deleted_at.is_(None)))

    def find(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = True,
        search: str = "",
        states: Iterable[str] = STATES,
        client: str | None = None,
    ) -> tuple[list[Job], bool]:
        """Return one page of jobs and whether there are more.

        Args:
            after: Id of the last job of the page before.
            limit: Length of the page.
            newest_first: Order of creation.
            search: Words that the prompt must all contain.
            states: Only jobs in these.
            client: Only jobs of this client.

        Raises:
            KeyError: If there is no job `after`.
        """
        order = Job.seq.desc() if newest_first else Job.seq.asc()
        query = select(Job).where(Job.deleted_at.is_(None), Job.state.in_(list(states)))
        if client is not None:
            query = query.where(Job.client == client)
        for word in search.split():
            query = query.where(Job.prompt.icontains(word, autoescape=True))
        with self._sessions() as session:
            if after is not None:
                seq = session.scalar(select(Job.seq).where(Job.id == after))
                if seq is None:
                    raise KeyError(after)
                query = query.where(Job.seq < seq if newest_first else Job.seq > seq)
            found = list(session.scalars(query.order_by(order).limit(limit + 1)))
        return found[:limit], len(found) > limit

    def counts(self) -> dict[str, int]:
        """Return the number of jobs in each state."""
        query = select(Job.state, func.count()).where(Job.deleted_at.is_(None)).group_by(Job.state)
        with self._sessions() as session:
            found = {str(row[0]): int(row[1]) for row in session.execute(query)}
        return {state: found.get(state, 0) for state in STATES}

    def stored_bytes(self) -> int:
        """Return the size of all results."""
        with self._sessions() as session:
            return int(session.scalar(select(func.sum(Job.num_bytes))) or 0)

    def position(self, job: Job) -> int:
        """Return how many jobs are before a waiting one."""
        query = select(func.count()).where(Job.state == "queued", Job.seq < job.seq)
        with self._sessions() as session:
            return int(session.scalar(query) or 0)

    def waiting(self, *, before: float, limit: int = 100) -> list[str]:
        """Return ids of jobs that have been queued since before a time, the oldest first."""
        query = (
            select(Job.id)
            .where(Job.state == "queued", Job.queued_at < before)
            .order_by(Job.seq)
            .limit(limit)
        )
        with self._sessions() as session:
            return list(session.scalars(query))

    def find_result(self, fingerprint: str) -> Job | None:
        """Return a completed job with the same bytes, if its files are still there."""
        query = select(Job).where(
            Job.fingerprint == fingerprint, Job.state == "completed", Job.deleted_at.is_(None)
        )
        with self._sessions() as session:
            return next((job for job in session.scalars(query) if job.files), None)

    def pictures(self) -> set[str]:
        """Return the names of the uploads that jobs begin with."""
        with self._sessions() as session:
            found = session.scalars(select(Job.picture).where(Job.picture.is_not(None)))
            return {name for name in found if name is not None}

    # -- a worker's changes -----------------------------------------------------------------------

    def claim(self, job_id: str, worker: str) -> Job | None:
        """Take a waiting job, or return None if it does not wait (any more).

        A job whose bytes another worker is making stays queued: later it gets a copy of them.
        """
        now, other = time.time(), aliased(Job)
        is_being_made = exists().where(
            other.fingerprint == Job.fingerprint, other.state == "running"
        )
        with self._write() as session:
            taken = _rows(
                session,
                update(Job)
                .where(
                    Job.id == job_id,
                    Job.state == "queued",
                    Job.deleted_at.is_(None),
                    ~is_being_made,
                )
                .values(
                    state="running",
                    worker=worker,
                    beat_at=now,
                    started_at=func.coalesce(Job.started_at, now),
                    attempts=Job.attempts + 1,
                    cancel_requested=False,
                ),
            )
            return session.scalar(select(Job).where(Job.id == job_id)) if taken else None

    def report(
        self, job_id: str, worker: str, values: Mapping[str, str | int | float | None]
    ) -> bool:
        """Record a running job's progress; False means that the worker has to stop.

        That is so when the job was cancelled or deleted, or went to another worker.
        """
        with self._write() as session:
            statement = update(Job).where(*_may_go_on(job_id, worker))
            return _rows(session, statement.values(beat_at=time.time(), **values)) == 1

    def may_go_on(self, job_id: str, worker: str) -> bool:
        """Tell whether a worker still has a job that nobody cancelled; only reads."""
        query = select(Job.id).where(*_may_go_on(job_id, worker))
        with self._sessions() as session:
            return session.scalar(query) is not None

    def beat(self, worker: str, device: str) -> None:
        """Record a heartbeat of a worker."""
        now = time.time()
        with self._write() as session:
            session.merge(WorkerRow(name=worker, device=device, seen_at=now))
            session.execute(
                update(Job).where(Job.worker == worker, Job.state == "running").values(beat_at=now)
            )

    def workers(self, *, silent_for: float) -> dict[str, str]:
        """Return the device of each worker with a recent heartbeat, and remove the others."""
        limit = time.time() - silent_for
        with self._write() as session:
            session.execute(delete(WorkerRow).where(WorkerRow.seen_at < limit))
            return {row.name: row.device for row in session.scalars(select(WorkerRow))}

    def dismiss(self, worker: str) -> None:
        """Forget a worker that ends."""
        with self._write() as session:
            session.execute(delete(WorkerRow).where(WorkerRow.name == worker))

    def complete(self, job_id: str, worker: str, result: Result) -> bool:
        """Finish a job; False if it is not this worker's any more, or was cancelled meanwhile."""
        values = {
            "state": "completed",
            "progress": 100,
            "stage": None,
            "time_left": None,
            "finished_at": time.time(),
            "files": dict(result.files),
            "sha256": result.sha256,
            "num_bytes": result.num_bytes,
            "timings": dict(result.timings),
            "expires_at": result.expires_at,
        }
        with self._write() as session:
            return (
                _rows(session, update(Job).where(*_may_go_on(job_id, worker)).values(values)) == 1
            )

    def fail(self, job_id: str, worker: str, code: str, message: str) -> bool:
        """Finish a running job with an error."""
        return self._end(job_id, worker, "failed", code, message)

    def end_cancelled_if_asked(self, job_id: str, worker: str) -> bool:
        """Finish a running job if it was cancelled."""
        with self._sessions() as session:
            query = select(Job.id).where(Job.id == job_id, Job.cancel_requested.is_(True))
            if session.scalar(query) is None:
                return False
        return self._end(job_id, worker, "cancelled", "cancelled", "The job was cancelled.")

    def _end(self, job_id: str, worker: str, state: State, code: str, message: str) -> bool:
        values = {
            "state": state,
            "stage": None,
            "time_left": None,
            "finished_at": time.time(),
            "error_code": code,
            "error_message": message,
        }
        with self._write() as session:
            return (
                _rows(session, update(Job).where(*_is_run_by(job_id, worker)).values(values)) == 1
            )

    def release(self, job_id: str, worker: str) -> bool:
        """Put a running job back, as a worker does that has to stop."""
        values = {"state": "queued", "queued_at": time.time(), "stage": None, "time_left": None}
        with self._write() as session:
            return (
                _rows(session, update(Job).where(*_is_run_by(job_id, worker)).values(values)) == 1
            )

    def requeue_lost(
        self, *, worker_prefix: str | None = None, silent_for: float | None = None
    ) -> list[str]:
        """Queue again the running jobs of workers that are gone, and return their ids.

        Args:
            worker_prefix: Workers so named are known to be gone.
            silent_for: Workers without a heartbeat for so many seconds are taken to be gone.
        """
        now = time.time()
        gone = []
        if worker_prefix is not None:
            gone.append(Job.worker.startswith(worker_prefix, autoescape=True))
        if silent_for is not None:
            gone.append(Job.beat_at < now - silent_for)
        with self._write() as session:
            query = select(Job).where(Job.state == "running", or_(*gone)).with_for_update()
            jobs = list(session.scalars(query))
            for job in jobs:
                job.stage, job.time_left = None, None
                if job.cancel_requested or job.deleted_at is not None:
                    job.state, job.finished_at = "cancelled", now
                    job.error_code, job.error_message = "cancelled", "The job was cancelled."
                else:
                    job.state, job.queued_at = "queued", now
            return [job.id for job in jobs if job.state == "queued"]

    # -- a client's changes -----------------------------------------------------------------------

    def cancel(self, job_id: str) -> Job | None:
        """Stop a job: at once where it waits, within one step where it runs."""
        now = time.time()
        with self._write() as session:
            session.execute(
                update(Job)
                .where(Job.id == job_id, Job.state == "queued")
                .values(
                    state="cancelled",
                    finished_at=now,
                    error_code="cancelled",
                    error_message="The job was cancelled.",
                )
            )
            session.execute(
                update(Job)
                .where(Job.id == job_id, Job.state == "running")
                .values(cancel_requested=True)
            )
            return session.scalar(select(Job).where(Job.id == job_id, Job.deleted_at.is_(None)))

    def delete(self, job_id: str) -> Job | None:
        """Hide a job, stop it if it is not finished, and return it as it was.

        Its files are the caller's to remove; its row goes with `purge`.
        """
        with self._write() as session:
            query = select(Job).where(Job.id == job_id, Job.deleted_at.is_(None))
            job = session.scalar(query.with_for_update())
            if job is None:
                return None
            job.deleted_at = time.time()
            job.idempotency_key = None
            if job.state == "queued":
                job.state, job.finished_at = "cancelled", job.deleted_at
            elif job.state == "running":
                job.cancel_requested = True
            return job

    # -- keeping order ----------------------------------------------------------------------------

    def purge(self) -> list[Job]:
        """Remove the rows of deleted jobs that no worker has any more, and return them."""
        with self._write() as session:
            query = select(Job).where(Job.deleted_at.is_not(None), Job.state != "running")
            jobs = list(session.scalars(query))
            if jobs:
                session.execute(delete(Job).where(Job.seq.in_([job.seq for job in jobs])))
            return jobs

    def expire(self, *, stored_bytes: int) -> list[Job]:
        """Take the files from jobs past their time, and from the oldest beyond a size.

        Returns:
            The jobs as they were, with the names of the files to remove.
        """
        now = time.time()
        with self._write() as session:
            query = select(Job).where(Job.num_bytes > 0).order_by(Job.seq.desc())
            total, expired = 0, []
            for job in session.scalars(query):
                total += job.num_bytes
                is_late = job.expires_at is not None and job.expires_at <= now
                if is_late or total > stored_bytes:
                    expired.append(job)
            for job in expired:
                session.execute(update(Job).where(Job.seq == job.seq).values(files={}, num_bytes=0))
                session.expunge(job)
            return expired

    def open_notices(self) -> list[Job]:
        """Return finished jobs whose webhook event is due."""
        query = (
            select(Job)
            .where(
                Job.notified.is_(False),
                Job.state.in_(("completed", "failed", "cancelled")),
                Job.notice_at <= time.time(),
            )
            .order_by(Job.finished_at)
            .limit(100)
        )
        with self._sessions() as session:
            return list(session.scalars(query))

    def close_notice(self, job_id: str) -> None:
        """Record that no webhook event of a job is left to send."""
        with self._write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(notified=True))

    def postpone_notice(self, job_id: str, seconds: float) -> None:
        """Record that the webhook did not accept the event of a job."""
        with self._write() as session:
            session.execute(
                update(Job)
                .where(Job.id == job_id)
                .values(notice_attempts=Job.notice_attempts + 1, notice_at=time.time() + seconds)
            )

    def _prepare(self) -> None:
        with self.engine.execution_options(immediate=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_CREATE_LOCK})"))
            Table.metadata.create_all(connection)
            found = connection.scalar(select(Meta.value).where(Meta.key == "schema"))
            if found is None:
                row = {"key": "schema", "value": str(SCHEMA_VERSION)}
                connection.execute(insert(Meta), row)
            elif found != str(SCHEMA_VERSION):
                raise UserError(
                    f"The job table has version {found}, and this program knows {SCHEMA_VERSION}; "
                    "use the version of magicvideo that wrote it, or another --home."
                )

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with self._writing() as session, session.begin():
            yield session


def _is_run_by(job_id: str, worker: str) -> tuple[ColumnElement[bool], ...]:
    return Job.id == job_id, Job.worker == worker, Job.state == "running"


def _may_go_on(job_id: str, worker: str) -> tuple[ColumnElement[bool], ...]:
    return *_is_run_by(job_id, worker), Job.cancel_requested.is_(False)


def _rows(session: Session, statement: Update) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount


def _make_engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(
            url.replace("postgresql://", "postgresql+psycopg://", 1), pool_pre_ping=True
        )
    engine = create_engine(url, connect_args={"timeout": _PATIENCE})

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # BEGIN is sent below, not by the driver
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # a writer takes the lock at once: a reader that turns writer could fail half-way
        is_writer = connection.get_execution_options().get("immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")

    return engine
