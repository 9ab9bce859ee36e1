"""What the API answers: video objects in the shape of the `openai` client, and errors."""

import math
from typing import Any

from pydantic import BaseModel, Field

from magicvideo.studio.jobs import Job

_STATUS = {
    "queued": "queued",
    "running": "in_progress",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "failed",
}


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class VideoObject(BaseModel):
    """A video job; the fields after `expires_at` are additions to the client's type."""

    id: str
    object: str = "video"
    status: str
    progress: int
    created_at: int
    completed_at: int | None
    error: JobError | None
    model: str
    prompt: str
    seconds: str
    size: str
    remixed_from_video_id: str | None
    extended_from_video_id: str | None
    expires_at: int | None
    seed: int
    format: str
    stage: str | None
    seconds_left: float | None
    queue_position: int | None
    preview: int = Field(description="Number of the newest preview, 0 for none.")
    parameters: dict[str, Any]
    warnings: list[str]
    timings: dict[str, float]
    sha256: str | None


class VideoList(BaseModel):
    """One page of videos."""

    object: str = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """Confirmation of a deletion."""

    id: str
    object: str = "video.deleted"
    deleted: bool = True


class ModelObject(BaseModel):
    """A model that requests may name."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "magicvideo"


class ModelList(BaseModel):
    """The models of the server."""

    object: str = "list"
    data: list[ModelObject]


class ErrorDetail(BaseModel):
    """What went wrong, for programs and people."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: One sentence that names the value and what is allowed.
        code: Name of the error for programs.
        param: Field of the request that it is about.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return the JSON object of the answer."""
        return error_body(self.status, self.message, code=self.code, param=self.param)


def error_body(
    status: int, message: str, *, code: str | None, param: str | None = None
) -> dict[str, Any]:
    """Return the JSON object of an error."""
    types = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = types.get(status, "server_error" if status >= 500 else "invalid_request_error")
    detail = ErrorDetail(message=message, type=kind, param=param, code=code)
    return ErrorBody(error=detail).model_dump()


def video_object(job: Job, position: int | None = None) -> VideoObject:
    """Return a job as the API shows it.

    Args:
        job: The job.
        position: How many jobs are before it, while it waits.
    """
    error = None
    if job.error_code is not None:
        error = JobError(code=job.error_code, message=job.error_message or "")
    return VideoObject(
        id=job.id,
        status=_STATUS[job.state],
        progress=job.progress,
        created_at=int(job.created_at),
        completed_at=_whole(job.finished_at) if job.state == "completed" else None,
        error=error,
        model=job.model,
        prompt=job.prompt,
        seconds=f"{job.seconds:.3f}".rstrip("0").rstrip("."),
        size=job.size,
        remixed_from_video_id=job.source_id if job.kind != "extend" else None,
        extended_from_video_id=job.source_id if job.kind == "extend" else None,
        expires_at=_whole(job.expires_at),
        seed=int(job.parameters["seed"]),
        format=job.format,
        stage=job.stage,
        seconds_left=job.time_left,
        queue_position=position if job.state == "queued" else None,
        preview=job.preview,
        parameters=job.parameters,
        warnings=job.warnings,
        timings=job.timings,
        sha256=job.sha256,
    )


def poll_after(job: Job) -> dict[str, str]:
    """Return the header with the milliseconds until the next poll."""
    if job.is_finished:
        return {}
    wait = 1000 if job.time_left is None else min(5000, max(200, 100 * job.time_left))
    return {"openai-poll-after-ms": str(int(wait))}


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else math.floor(seconds)
