"""What page and API do with jobs: submit, cancel, delete, and keep the studio in order."""

import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from magicvideo.atomic_io import atomic_file
from magicvideo.errors import UserError
from magicvideo.studio.config import StudioConfig
from magicvideo.studio.engine import Engine, read_recipe
from magicvideo.studio.files import FileStore, file_names, upload_name
from magicvideo.studio.jobs import SILENCE, Job, JobStore, KeyReusedError, NewJob, QueueFullError
from magicvideo.studio.parameters import VideoParameters
from magicvideo.studio.queue import JobQueue
from magicvideo.studio.responses import ApiError
from magicvideo.studio.uploads import (
    Beginning,
    normalize_picture,
    read_beginning,
    video_suffix,
)

_RANDOM_SEEDS = 2**32  # few digits: people read and type a seed
_LENGTH = ("seconds", "frames", "fps")  # what an extension does not take over from its source


class Studio:
    """One studio: its jobs, queue, files and the plan of its model.

    Args:
        config: Where all of them are.
        device: Kind of device of the workers.
        engine: Plans requests; by default one of the model that `config` names.

    Raises:
        UserError: If one cannot be opened.
    """

    def __init__(
        self, config: StudioConfig, device: str = "cpu", engine: Engine | None = None
    ) -> None:
        config.make_folders()
        self.config, self.device = config, device
        self.store = JobStore(config.database_url)
        self.queue = JobQueue(config.queue_url)
        self.files = FileStore(config.files_url)
        self.engine = engine or Engine(config.model, loras=config.loras, threads=config.threads)
        self._tidied = 0.0

    @property
    def model_names(self) -> tuple[str, ...]:
        """Return the names that a request may give to the model."""
        return tuple(dict.fromkeys([self.engine.name, "magicvideo"]))

    def submit(
        self,
        fields: Mapping[str, Any],
        *,
        client: str,
        picture: bytes | None = None,
        video: bytes | None = None,
        key: str | None = None,
        kind: str = "generate",
        source: Job | None = None,
    ) -> tuple[Job, bool]:
        """Check a request and put it into table and queue.

        Args:
            fields: As sent, by name.
            client: Who asks.
            picture: Uploaded picture to begin with.
            video: Video to continue.
            key: Idempotency key.
            kind: How it was asked for: `generate`, `remix` or `extend`.
            source: The job that it is made from; without a picture or a video, it begins with
                what that began with.

        Returns:
            The job, and whether it is new.

        Raises:
            ApiError: If it is refused.
        """
        parameters = self.check(fields)
        if parameters.seed is None:
            parameters = parameters.model_copy(update={"seed": self._seed(client, key)})
        with self._beginning(picture, video, source) as beginning:
            return self._submit(parameters, beginning, client, key, kind, source)

    def _submit(
        self,
        parameters: VideoParameters,
        beginning: Beginning | None,
        client: str,
        key: str | None,
        kind: str,
        source: Job | None,
    ) -> tuple[Job, bool]:
        try:
            plan = self.engine.plan(parameters, beginning, self.device)
        except UserError as error:
            raise _refusal(error) from None
        new = NewJob(
            client=client,
            prompt=parameters.prompt,
            parameters=parameters.model_dump(mode="json", exclude_none=True),
            fingerprint=plan.fingerprint,
            model=self.engine.name,
            format=parameters.format,
            seconds=plan.seconds,
            size=plan.size,
            kind=kind,
            source_id=None if source is None else source.id,
            idempotency_key=key,
            warnings=plan.warnings,
        )
        return self._create(new, None if beginning is None else beginning.path)

    @contextmanager
    def _beginning(
        self, picture: bytes | None, video: bytes | None, source: Job | None
    ) -> Iterator[Beginning | None]:
        """Give what a video begins with as a file, which is removed at the end."""
        param = "video" if video is not None else "input_reference"
        with tempfile.TemporaryDirectory() as folder:
            beginning = None
            try:
                if picture is not None:
                    limit = self.config.limits.upload_pixels
                    content, suffix = normalize_picture(picture, most_pixels=limit), ".png"
                elif video is not None:
                    content, suffix = video, video_suffix(video)
                elif source is not None and source.picture is not None:
                    content, suffix = self.files.read(source.picture), Path(source.picture).suffix
                else:
                    content, suffix = b"", ""
                if content:
                    path = Path(folder) / upload_name(suffix)
                    path.write_bytes(content)
                    beginning = read_beginning(path)
            except UserError as error:
                raise _refusal(error, param) from None
            yield beginning

    def check(self, fields: Mapping[str, Any]) -> VideoParameters:
        """Return the parameters in a request's fields.

        Raises:
            ApiError: If one is unknown or has a value that cannot be.
        """
        try:
            parameters = VideoParameters.model_validate(dict(fields))
        except ValidationError as error:
            raise invalid_field(error) from None
        limit = self.config.limits.prompt_characters
        for name in ("prompt", "negative_prompt"):
            text = getattr(parameters, name) or ""
            if len(text) > limit:
                message = f"{name} has {len(text):,} characters; at most {limit:,} are allowed."
                raise ApiError(422, message, code="string_too_long", param=name)
        if parameters.model is not None and parameters.model not in self.model_names:
            known = " and ".join(self.model_names)
            raise ApiError(
                404,
                f"There is no model {parameters.model!r} here; there is {known}.",
                code="model_not_found",
                param="model",
            )
        return parameters

    def remix(
        self, source: Job, prompt: str, *, client: str, key: str | None = None
    ) -> tuple[Job, bool]:
        """Make a finished job's video again with another prompt, its seed and settings kept.

        Raises:
            ApiError: If the source is not completed, or the prompt is refused.
        """
        if source.state != "completed":
            raise ApiError(
                400,
                f"The video {source.id} is {source.state}; only completed videos can be remixed.",
                code="video_not_ready",
            )
        fields = {**source.parameters, "prompt": prompt}
        return self.submit(fields, client=client, key=key, kind="remix", source=source)

    def extend(
        self,
        source: Job | None,
        fields: Mapping[str, Any],
        *,
        client: str,
        upload: bytes | None = None,
        key: str | None = None,
    ) -> tuple[Job, bool]:
        """Continue a video with new frames.

        Args:
            source: A completed job; its prompt, seed and settings are kept.
            fields: What is to differ; `seconds` is the length of what is added.
            client: Who asks.
            upload: A video in place of the job; prompt and seed that it records are kept.
            key: Idempotency key.

        Raises:
            ApiError: If the model cannot do it, or the video cannot be extended.
        """
        if not self.engine.extends_videos:
            raise ApiError(
                400,
                "This model was trained without given frames, so it extends no videos; remix one "
                "to make it with another prompt.",
                code="unsupported_operation",
            )
        if (source is None) == (upload is None):
            message = "Send one video to extend: as a file, or as the id of a completed one."
            raise ApiError(422, message, code="invalid_value", param="video")
        if upload is not None:
            kept = _recorded(upload)
        else:
            assert source is not None
            upload = self._finished_video(source)
            recorded = source.parameters.items()
            kept = {name: value for name, value in recorded if name not in _LENGTH}
        return self.submit(
            {**kept, **fields}, client=client, video=upload, key=key, kind="extend", source=source
        )

    def _finished_video(self, job: Job) -> bytes:
        """Return the file of a completed job.

        Raises:
            ApiError: If it has none.
        """
        if job.state != "completed":
            message = f"The video {job.id} is {job.state}; only completed videos can be extended."
            raise ApiError(400, message, code="video_not_ready")
        try:
            return self.files.read(str(job.files["video"]))
        except (KeyError, FileNotFoundError):
            message = f"The files of {job.id} have been removed; ask for the video again."
            raise ApiError(410, message, code="video_expired") from None

    def owned(self, job_id: str, client: str) -> Job:
        """Return a client's job.

        Raises:
            ApiError: If there is none.
        """
        job = self.store.get(job_id)
        if job is None or job.client != client:
            message = f"There is no video {job_id[:80]!r}."
            raise ApiError(404, message, code="video_not_found", param="video_id")
        return job

    def delete(self, job: Job) -> None:
        """Delete a job and its files, and stop it if it runs."""
        was = self.store.delete(job.id)
        if was is not None and was.state != "running":
            self._remove_deleted()

    def close(self) -> None:
        """Close the connections to table and queue."""
        self.store.close()
        self.queue.close()

    def local_file(self, name: str) -> Path:
        """Return a stored file on this machine's disk; one from elsewhere is fetched first.

        Raises:
            FileNotFoundError: If it is not there.
        """
        path = self.files.local_path(name)
        if path is not None:
            if not path.is_file():
                raise FileNotFoundError(name)
            return path
        cached = self.config.scratch / "cache" / name
        if not cached.is_file():
            cached.parent.mkdir(exist_ok=True)
            with atomic_file(cached) as partial:
                self.files.fetch(name, partial)
        os.utime(cached)
        return cached

    def maintain(self) -> None:
        """Keep order: queue lost jobs again, remove what was deleted, expired or abandoned."""
        for job_id in self.store.requeue_lost(silent_for=SILENCE):
            self.queue.put(job_id)
        self._remove_deleted()
        for job in self.store.expire(stored_bytes=self.config.limits.stored_bytes):
            self.files.remove(job.files.values())
        if time.monotonic() - self._tidied > 600:
            self._tidied = time.monotonic()
            self.files.remove_abandoned(self.store.pictures())
            for path in (self.config.scratch / "cache").glob("*"):
                if path.stat().st_mtime < time.time() - 3600:
                    path.unlink(missing_ok=True)

    def _remove_deleted(self) -> None:
        for job in self.store.purge():
            pictures = [] if job.picture is None else [job.picture]
            self.files.remove([*file_names(job.id), *pictures])

    def _create(self, new: NewJob, beginning: Path | None) -> tuple[Job, bool]:
        limits = self.config.limits
        name = None
        if beginning is not None:
            # stored first: a worker may take the job as soon as it is in the table
            name = beginning.name
            self.files.put(name, beginning)
        try:
            job, is_new = self.store.create(
                NewJob(**{**vars(new), "picture": name}),
                queued_jobs=limits.queued_jobs,
                client_jobs=limits.client_jobs,
            )
        except QueueFullError as error:
            self._drop(name)
            raise ApiError(
                429,
                str(error),
                code="queue_full",
                headers={"Retry-After": str(error.retry_after)},
            ) from None
        except KeyReusedError:
            self._drop(name)
            raise ApiError(
                409,
                "The Idempotency-Key was used before with another request; send a new key.",
                code="idempotency_key_reused",
                headers={"x-should-retry": "false"},
            ) from None
        if is_new:
            self.queue.put(job.id)
        else:
            self._drop(name)
        return job, is_new

    def _drop(self, name: str | None) -> None:
        if name is not None:
            self.files.remove([name])

    def _seed(self, client: str, key: str | None) -> int:
        """Return a random seed, or for an idempotency key always the same one."""
        if key is None:
            return secrets.randbelow(_RANDOM_SEEDS)
        digest = hashlib.sha256(f"{client}\0{key}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


def _recorded(video: bytes) -> dict[str, Any]:
    """Return the prompt and the seed that an uploaded video records, if it does."""
    try:
        recipe = read_recipe(video)
    except UserError:
        return {}
    return {name: recipe[name] for name in ("prompt", "seed") if recipe[name] != ""}


def invalid_field(error: ValidationError) -> ApiError:
    """Return the answer to fields that cannot be."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "body"
    if first["type"] == "missing":
        message = f"The field {field} is missing."
    elif first["type"] == "extra_forbidden":
        message = f"The field {field[:80]!r} is not known."
    else:
        reason = first["msg"].removeprefix("Value error, ")
        message = f"{field} cannot be {str(first['input'])[:60]!r}: {reason}."
    return ApiError(422, message, code=first["type"], param=field[:80])


def _refusal(error: UserError, param: str | None = None) -> ApiError:
    return ApiError(422, str(error), code="invalid_value", param=param)
