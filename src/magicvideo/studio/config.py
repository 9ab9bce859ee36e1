"""Settings of one studio: where jobs, queue and files live, and every limit."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from magicvideo.errors import UserError

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one studio accepts.

    Attributes:
        queued_jobs: Waiting jobs, of all clients together.
        client_jobs: Waiting and running jobs of one client.
        body_bytes: Largest request body.
        upload_pixels: Most pixels of an uploaded picture, checked before it is decoded.
        prompt_characters: Longest prompt.
        job_seconds: Longest time that a job may run.
        stored_bytes: All results together; beyond it the oldest results are removed.
        result_seconds: How long a result is kept; None keeps it until `stored_bytes` is reached.
        receive_seconds: Longest silence while a client sends its request.
        connections: Open connections at a time.
    """

    queued_jobs: int = 200
    client_jobs: int = 100
    body_bytes: int = 32 * MEGABYTE
    upload_pixels: int = 50_000_000
    prompt_characters: int = 4000
    job_seconds: float = 3600.0
    stored_bytes: int = 20_000 * MEGABYTE
    result_seconds: float | None = None
    receive_seconds: float = 20.0
    connections: int = 500

    def __post_init__(self) -> None:
        """Refuse limits that would admit nothing."""
        for name, value in vars(self).items():
            if value is not None and value <= 0:
                raise UserError(f"The limit {name} is {value}; it must be above 0.")


@dataclass(frozen=True, kw_only=True)
class StudioConfig:
    """Where a studio keeps what it has, and what it makes videos with.

    Attributes:
        home: Local folder of locks and scratch files, and by default of all else.
        model: Model folder, or None for the shipped model.
        database: SQLAlchemy URL; by default SQLite in `home`.
        queue: `redis://`, `postgresql://` or `sqlite:///` URL; by default SQLite in `home`.
        files: fsspec URL of the results; by default a folder in `home`.
        loras: Folder whose LoRA files can be named in requests, or None.
        runs: Folder of training runs that the page shows, or None.
        data: Prepared data set that the page shows, or None.
        threads: CPU threads of one worker; None leaves PyTorch's choice.
        webhook: URL that receives an event for each finished job, or None.
        webhook_secret: Signs what is sent there: `whsec_` and base64.
        limits: What is accepted.
    """

    home: Path
    model: Path | None = None
    database: str | None = None
    queue: str | None = None
    files: str | None = None
    loras: Path | None = None
    runs: Path | None = None
    data: Path | None = None
    threads: int | None = None
    webhook: str | None = None
    webhook_secret: str | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def database_url(self) -> str:
        """Return the SQLAlchemy URL of the job table."""
        return self.database or f"sqlite:///{self.home / 'jobs.sqlite'}"

    @property
    def queue_url(self) -> str:
        """Return the URL of the queue."""
        return self.queue or f"sqlite:///{self.home / 'queue.sqlite'}"

    @property
    def files_url(self) -> str:
        """Return the fsspec URL of the results."""
        return self.files or str(self.home / "files")

    @property
    def scratch(self) -> Path:
        """Return the local folder of unfinished videos."""
        return self.home / "scratch"

    @property
    def home_id(self) -> str:
        """Return a short name of this home, for the names of its workers."""
        return hashlib.sha256(str(self.home.resolve()).encode()).hexdigest()[:8]

    def make_folders(self) -> None:
        """Make the local folders.

        Raises:
            UserError: If they cannot be made.
        """
        try:
            for folder in (self.home, self.scratch, self.home / "locks"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(
                f"The studio's folder {self.home} cannot be made ({error.strerror}); name another "
                "with --home."
            ) from None


def config_to_json(config: StudioConfig) -> bytes:
    """Return settings as JSON, for another process."""
    return TypeAdapter(StudioConfig).dump_json(config)


def config_from_json(text: bytes) -> StudioConfig:
    """Return the settings that `config_to_json` wrote."""
    return TypeAdapter(StudioConfig).validate_json(text)


def default_home() -> Path:
    """Return the folder of a studio for which none is named."""
    return Path.home() / ".magicvideo" / "studio"
