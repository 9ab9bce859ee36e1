"""`/v1/videos` in the shape of the `openai` client: create, list, read, watch, cancel, delete."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict

from magicvideo.studio.files import PREVIEW
from magicvideo.studio.form_fields import VIDEO, multipart_schema, read_fields
from magicvideo.studio.jobs import Job
from magicvideo.studio.metrics import Metrics
from magicvideo.studio.parameters import Text, VideoParameters
from magicvideo.studio.responses import (
    ApiError,
    ErrorBody,
    ModelList,
    ModelObject,
    VideoDeleted,
    VideoList,
    VideoObject,
    poll_after,
    video_object,
)
from magicvideo.studio.security import CLIENT_HEADER
from magicvideo.studio.service import Studio

_MEDIA_TYPES = {
    "mp4": "video/mp4",
    "webm": "video/webm",
    "webp": "image/webp",
    "gif": "image/gif",
    "jpg": "image/jpeg",
}
_WATCH_SECONDS = 0.3
_PING_SECONDS = 10.0


class RemixBody(BaseModel):
    """What a remix asks for."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text


class CreateForm(VideoParameters):
    """The fields of a new video, with a picture to begin with."""

    input_reference: Annotated[bytes | None, "binary"] = None


class ExtendForm(VideoParameters):
    """The fields of an extension: a video, and what is to differ from it."""

    prompt: Text | None = None  # type: ignore[assignment]
    video: Annotated[bytes, "binary"]


# -- what the routes need -------------------------------------------------------------------------


async def _studio_of(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio


async def _client_of(request: Request) -> str:
    return request.headers[CLIENT_HEADER]


CurrentStudio = Annotated[Studio, Depends(_studio_of)]
Client = Annotated[str, Depends(_client_of)]
VideoId = Annotated[str, Path(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9_-]+$")]


async def _job_of(studio: CurrentStudio, client: Client, video_id: VideoId) -> Job:
    return await to_thread.run_sync(studio.owned, video_id, client)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 256:
        message = "An Idempotency-Key has 1 to 256 characters."
        raise ApiError(422, message, code="invalid_value", param="Idempotency-Key")
    return key


def _count(request: Request, job: Job, *, is_new: bool) -> Job:
    metrics: Metrics = request.app.state.metrics
    if is_new:
        metrics.count_submitted(job.kind)
    return job


async def _submit(request: Request, studio: CurrentStudio, client: Client) -> Job:
    """Queue what the body of a request asks for."""
    fields = await read_fields(request)
    key = _idempotency_key(request)
    job, is_new = await to_thread.run_sync(
        partial(studio.submit, fields.values, client=client, picture=fields.file, key=key)
    )
    return _count(request, job, is_new=is_new)


OwnJob = Annotated[Job, Depends(_job_of)]
SubmittedJob = Annotated[Job, Depends(_submit)]

router = APIRouter(prefix="/v1", tags=["videos"])


# -- asking for videos ----------------------------------------------------------------------------


@router.post("/videos", openapi_extra=multipart_schema(CreateForm))
async def create_video(studio: CurrentStudio, job: SubmittedJob, response: Response) -> VideoObject:
    """Queue a video."""
    response.headers.update(poll_after(job))
    return await _object(studio, job)


@router.post(
    "/videos/sync",
    openapi_extra=multipart_schema(CreateForm),
    response_class=FileResponse,
    responses={200: {"content": {"video/mp4": {}}}, 500: {"model": ErrorBody}},
)
async def create_video_sync(
    request: Request, studio: CurrentStudio, client: Client, job: SubmittedJob
) -> Response:
    """Make a video and answer with it; a client that leaves cancels it."""
    try:
        while not job.is_finished:
            if await request.is_disconnected():
                await to_thread.run_sync(studio.store.cancel, job.id)
                return Response(status_code=499)
            await asyncio.sleep(_WATCH_SECONDS)
            job = await to_thread.run_sync(studio.owned, job.id, client)
    except asyncio.CancelledError:
        studio.store.cancel(job.id)
        raise
    if job.state != "completed":
        code, message = job.error_code or "failed", job.error_message or "It failed."
        raise ApiError(422 if code == "invalid_request" else 500, message, code=code)
    return await _file(studio, job, "video")


@router.post("/videos/{video_id}/remix")
async def remix_video(
    request: Request, studio: CurrentStudio, client: Client, source: OwnJob, body: RemixBody
) -> VideoObject:
    """Make a completed video again with another prompt, its seed and settings kept."""
    key = _idempotency_key(request)
    job, is_new = await to_thread.run_sync(
        partial(studio.remix, source, body.prompt, client=client, key=key)
    )
    return await _object(studio, _count(request, job, is_new=is_new))


@router.post("/videos/edits", openapi_extra=multipart_schema(RemixBody))
async def edit_video() -> VideoObject:
    """Refuse an edit: the model changes no finished frames."""
    message = "This model edits no videos; remix one to make it with another prompt."
    raise ApiError(400, message, code="unsupported_operation")


@router.post("/videos/extensions", openapi_extra=multipart_schema(ExtendForm))
async def extend_video(
    request: Request, studio: CurrentStudio, client: Client, response: Response
) -> VideoObject:
    """Continue a completed video, or an uploaded one; the new video has its frames, too."""
    fields = await read_fields(request, VIDEO)
    key = _idempotency_key(request)
    source = None
    if fields.video_id is not None:
        source = await to_thread.run_sync(studio.owned, fields.video_id, client)
    extend = partial(studio.extend, source, fields.values, client=client, key=key)
    job, is_new = await to_thread.run_sync(partial(extend, upload=fields.file))
    response.headers.update(poll_after(job))
    return await _object(studio, _count(request, job, is_new=is_new))


# -- reading them ---------------------------------------------------------------------------------


@router.get("/videos")
async def list_videos(
    studio: CurrentStudio,
    client: Client,
    after: Annotated[str | None, Query(max_length=80)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    """List videos by their creation."""
    find = partial(
        studio.store.find, after=after, limit=limit, newest_first=order == "desc", client=client
    )
    try:
        jobs, has_more = await to_thread.run_sync(find)
    except KeyError:
        message = f"There is no video {after!r}."
        raise ApiError(404, message, code="video_not_found", param="after") from None
    data = [video_object(job) for job in jobs]
    return VideoList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=has_more,
    )


@router.get("/videos/{video_id}")
async def get_video(studio: CurrentStudio, job: OwnJob, response: Response) -> VideoObject:
    """Tell how far a video is; a failed one answers 200 with its error inside."""
    response.headers.update(poll_after(job))
    return await _object(studio, job)


@router.head("/videos/{video_id}/content", include_in_schema=False)
@router.get(
    "/videos/{video_id}/content",
    response_class=FileResponse,
    responses={
        200: {"content": {kind: {} for kind in _MEDIA_TYPES.values()}},
        206: {"description": "A range of the file"},
        410: {"model": ErrorBody, "description": "The file has expired"},
        416: {"description": "There is no such range"},
    },
)
async def get_video_content(
    studio: CurrentStudio,
    job: OwnJob,
    variant: Literal["video", "thumbnail", "spritesheet"] = "video",
) -> Response:
    """Answer with a file of a completed video, or a range of it."""
    return await _file(studio, job, variant)


@router.get(
    "/videos/{video_id}/preview",
    response_class=Response,
    responses={200: {"content": {"image/webp": {}}}},
)
async def get_video_preview(studio: CurrentStudio, job: OwnJob) -> Response:
    """Answer with the newest preview of a video that is being made."""
    content = await _preview(studio, job)
    if content is None:
        raise ApiError(404, "There is no preview now.", code="no_preview")
    return Response(content, media_type="image/webp", headers={"Cache-Control": "no-store"})


@router.get(
    "/videos/{video_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def watch_video(studio: CurrentStudio, client: Client, job: OwnJob) -> StreamingResponse:
    """Stream progress and previews as server-sent events until the video is finished."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    events = _watch(studio, job, client)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


@router.get("/models", tags=["models"])
async def list_models(studio: CurrentStudio) -> ModelList:
    """List the models of the server."""
    return ModelList(data=[ModelObject(id=name) for name in studio.model_names])


# -- stopping them --------------------------------------------------------------------------------


@router.delete("/videos/{video_id}")
async def delete_video(studio: CurrentStudio, job: OwnJob) -> VideoDeleted:
    """Delete a video, and stop it if it is being made."""
    await to_thread.run_sync(studio.delete, job)
    return VideoDeleted(id=job.id)


@router.post("/videos/{video_id}/cancel")
async def cancel_video(studio: CurrentStudio, client: Client, job: OwnJob) -> VideoObject:
    """Stop a video within one step and keep its record."""
    await to_thread.run_sync(studio.store.cancel, job.id)
    return await _object(studio, await to_thread.run_sync(studio.owned, job.id, client))


# -- answers --------------------------------------------------------------------------------------


async def _object(studio: Studio, job: Job) -> VideoObject:
    if job.state != "queued":
        return video_object(job)
    return video_object(job, await to_thread.run_sync(studio.store.position, job))


async def _file(studio: Studio, job: Job, variant: str) -> Response:
    if job.state in ("queued", "running"):
        message = f"The video {job.id} is not ready yet."
        raise ApiError(400, message, code="video_not_ready")
    if job.state != "completed":
        message = f"The video {job.id} was not made: {job.error_message}"
        raise ApiError(400, message, code="video_failed")
    if variant not in job.files:
        message = f"The files of {job.id} have been removed; ask for the video again."
        raise ApiError(410, message, code="video_expired")
    name = str(job.files[variant])
    try:
        path = await to_thread.run_sync(studio.local_file, name)
    except FileNotFoundError:
        message = f"The files of {job.id} are gone; ask for the video again."
        raise ApiError(410, message, code="video_expired") from None
    suffix = name.rpartition(".")[2]
    return FileResponse(
        path,
        media_type=_MEDIA_TYPES[suffix],
        filename=name,
        content_disposition_type="inline",
        headers={"Cache-Control": "private, max-age=3600", "X-Video-Id": job.id},
    )


async def _preview(studio: Studio, job: Job) -> bytes | None:
    try:
        return await to_thread.run_sync(studio.files.read, f"{job.id}-{PREVIEW}")
    except FileNotFoundError:
        return None


async def _watch(studio: Studio, job: Job, client: str) -> AsyncIterator[str]:
    shown, sent, sent_at = 0, "", time.monotonic()
    while True:
        state = (await _object(studio, job)).model_dump_json()
        if state != sent:
            sent, sent_at = state, time.monotonic()
            yield _event("progress", state)
        if job.preview > shown and not job.is_finished:
            content = await _preview(studio, job)
            if content is not None:
                shown = job.preview
                image = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
                yield _event("preview", json.dumps({"number": shown, "image": image}))
        if job.is_finished:
            yield _event("completed" if job.state == "completed" else "failed", state)
            return
        if time.monotonic() - sent_at > _PING_SECONDS:
            sent_at = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(_WATCH_SECONDS)
        try:
            job = await to_thread.run_sync(studio.owned, job.id, client)
        except ApiError as error:
            yield _event("deleted", json.dumps(error.body()))
            return


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
