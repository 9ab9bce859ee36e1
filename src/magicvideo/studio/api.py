"""The HTTP API: `/v1/videos` in the shape of the `openai` client, and what operators need."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from magicvideo.studio.files import PREVIEW
from magicvideo.studio.jobs import SILENCE, Job
from magicvideo.studio.metrics import MeasuredApp, Metrics
from magicvideo.studio.parameters import Text, VideoParameters
from magicvideo.studio.responses import (
    ApiError,
    ErrorBody,
    ModelList,
    ModelObject,
    VideoDeleted,
    VideoList,
    VideoObject,
    error_body,
    poll_after,
    video_object,
)
from magicvideo.studio.security import CLIENT_HEADER, BodyError
from magicvideo.studio.service import Studio

_MAX_FIELDS = 40
_MAX_FIELD_BYTES = 2_000_000
_PICTURE = "input_reference"
_MEDIA_TYPES = {
    "mp4": "video/mp4",
    "webm": "video/webm",
    "webp": "image/webp",
    "gif": "image/gif",
    "jpg": "image/jpeg",
}
_WATCH_SECONDS = 0.3
_PING_SECONDS = 10.0
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": words}
    for status, words in {
        400: "The request cannot be read",
        401: "A token is missing",
        403: "A foreign Host or Origin",
        404: "There is no such video",
        409: "An idempotency key came with another request",
        413: "The request is too large",
        422: "A field has a value that cannot be",
        429: "The queue is full",
        500: "The server failed",
        503: "The job table does not answer",
    }.items()
}
VideoId = Annotated[str, Path(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9_-]+$")]


class RemixBody(BaseModel):
    """What a remix asks for."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text


class VideoReference(BaseModel):
    """A video of this server."""

    model_config = ConfigDict(extra="forbid")

    id: str


class CreateForm(VideoParameters):
    """The fields of a new video, with a picture to begin with."""

    input_reference: Annotated[bytes | None, "binary"] = None


def create_app(studio: Studio, metrics: Metrics) -> FastAPI:
    """Return the app of a studio; `security.Gate` has to stand before it."""
    app = FastAPI(
        title="magicvideo",
        summary="Text to video by latent diffusion",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        responses=_ERRORS,
        redirect_slashes=False,
    )
    app.state.studio = studio
    app.include_router(_video_routes(studio, metrics))
    app.include_router(_operator_routes(studio, metrics))
    _add_error_answers(app)

    app.add_middleware(MeasuredApp, metrics=metrics)
    return app


def _client(request: Request) -> str:
    return request.headers[CLIENT_HEADER]


def _add_error_answers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def _api_error(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def _validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = str(first["loc"][-1])
        message = f"{place} cannot be {str(first.get('input'))[:60]!r}: {first['msg']}."
        body = error_body(422, message, code=str(first["type"]), param=place)
        return JSONResponse(body, 422)

    @app.exception_handler(BodyError)
    async def _body_error(_: Request, error: BodyError) -> JSONResponse:
        return JSONResponse(error.body, error.status_code, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def _http_error(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        body = error_body(error.status_code, f"{error.detail}.", code=code)
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def _failure(_: Request, __: Exception) -> JSONResponse:
        message = "The server failed to answer; its log tells why."
        return JSONResponse(error_body(500, message, code="server_error"), 500)

    @app.exception_handler(SQLAlchemyError)
    async def _database_error(_: Request, __: SQLAlchemyError) -> JSONResponse:
        body = error_body(503, "The job table does not answer.", code="unavailable")
        return JSONResponse(body, 503, headers={"Retry-After": "5"})


def _video_routes(studio: Studio, metrics: Metrics) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["videos"])
    create_body = _multipart_schema(CreateForm)

    async def submit(request: Request) -> Job:
        fields, picture = await _read_fields(request)
        key = request.headers.get("idempotency-key")
        if key is not None and not 1 <= len(key) <= 256:
            message = "An Idempotency-Key has 1 to 256 characters."
            raise ApiError(422, message, code="invalid_value", param="Idempotency-Key")
        call = partial(studio.submit, fields, client=_client(request), picture=picture, key=key)
        job, is_new = await to_thread.run_sync(call)
        if is_new:
            metrics.count_submitted(job.kind)
        return job

    @router.post("/videos", openapi_extra=create_body)
    async def create_video(request: Request, response: Response) -> VideoObject:
        """Queue a video."""
        job = await submit(request)
        response.headers.update(poll_after(job))
        return await _object(studio, job)

    @router.post(
        "/videos/sync",
        openapi_extra=create_body,
        response_class=FileResponse,
        responses={200: {"content": {"video/mp4": {}}}, 500: {"model": ErrorBody}},
    )
    async def create_video_sync(request: Request) -> Response:
        """Make a video and answer with it; a client that leaves cancels it."""
        job = await submit(request)
        try:
            while not job.is_finished:
                if await request.is_disconnected():
                    await to_thread.run_sync(studio.store.cancel, job.id)
                    return Response(status_code=499)
                await asyncio.sleep(_WATCH_SECONDS)
                job = await to_thread.run_sync(studio.owned, job.id, _client(request))
        except asyncio.CancelledError:
            studio.store.cancel(job.id)
            raise
        if job.state != "completed":
            code, message = job.error_code or "failed", job.error_message or "It failed."
            raise ApiError(422 if code == "invalid_request" else 500, message, code=code)
        return await _file(studio, job, "video")

    @router.get("/videos")
    async def list_videos(
        request: Request,
        after: Annotated[str | None, Query(max_length=80)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """List videos by their creation."""
        call = partial(
            studio.store.find,
            after=after,
            limit=limit,
            newest_first=order == "desc",
            client=_client(request),
        )
        try:
            jobs, has_more = await to_thread.run_sync(call)
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

    @router.post("/videos/edits", openapi_extra=_multipart_schema(RemixBody))
    async def edit_video() -> VideoObject:
        """Refuse an edit: the model changes no finished frames."""
        message = "This model edits no videos; remix one to make it with another prompt."
        raise ApiError(400, message, code="unsupported_operation")

    @router.post("/videos/extensions", openapi_extra=_multipart_schema(RemixBody))
    async def extend_video() -> VideoObject:
        """Refuse an extension: the model goes on from no finished video."""
        message = "This model extends no videos; ask for more seconds instead."
        raise ApiError(400, message, code="unsupported_operation")

    @router.get("/videos/{video_id}")
    async def get_video(request: Request, response: Response, video_id: VideoId) -> VideoObject:
        """Tell how far a video is; a failed one answers 200 with its error inside."""
        job = await to_thread.run_sync(studio.owned, video_id, _client(request))
        response.headers.update(poll_after(job))
        return await _object(studio, job)

    @router.delete("/videos/{video_id}")
    async def delete_video(request: Request, video_id: VideoId) -> VideoDeleted:
        """Delete a video, and stop it if it is being made."""
        job = await to_thread.run_sync(studio.owned, video_id, _client(request))
        await to_thread.run_sync(studio.delete, job)
        return VideoDeleted(id=job.id)

    @router.post("/videos/{video_id}/cancel")
    async def cancel_video(request: Request, video_id: VideoId) -> VideoObject:
        """Stop a video within one step and keep its record."""
        job = await to_thread.run_sync(studio.owned, video_id, _client(request))
        await to_thread.run_sync(studio.store.cancel, job.id)
        job = await to_thread.run_sync(studio.owned, video_id, _client(request))
        return await _object(studio, job)

    @router.post("/videos/{video_id}/remix")
    async def remix_video(request: Request, video_id: VideoId, body: RemixBody) -> VideoObject:
        """Make a completed video again with another prompt, its seed and settings kept."""
        source = await to_thread.run_sync(studio.owned, video_id, _client(request))
        key = request.headers.get("idempotency-key")
        call = partial(studio.remix, source, body.prompt, client=_client(request), key=key)
        job, is_new = await to_thread.run_sync(call)
        if is_new:
            metrics.count_submitted(job.kind)
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
        request: Request,
        video_id: VideoId,
        variant: Literal["video", "thumbnail", "spritesheet"] = "video",
    ) -> Response:
        """Answer with a file of a completed video, or a range of it."""
        job = await to_thread.run_sync(studio.owned, video_id, _client(request))
        return await _file(studio, job, variant)

    @router.get(
        "/videos/{video_id}/preview",
        response_class=Response,
        responses={200: {"content": {"image/webp": {}}}},
    )
    async def get_video_preview(request: Request, video_id: VideoId) -> Response:
        """Answer with the newest preview of a video that is being made."""
        job = await to_thread.run_sync(studio.owned, video_id, _client(request))
        content = await _preview(studio, job)
        if content is None:
            raise ApiError(404, "There is no preview now.", code="no_preview")
        return Response(content, media_type="image/webp", headers={"Cache-Control": "no-store"})

    @router.get(
        "/videos/{video_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def watch_video(request: Request, video_id: VideoId) -> StreamingResponse:
        """Stream progress and previews as server-sent events until the video is finished."""
        job = await to_thread.run_sync(studio.owned, video_id, _client(request))
        events = _watch(studio, job, _client(request))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    @router.get("/models", tags=["models"])
    async def list_models() -> ModelList:
        """List the models of the server."""
        return ModelList(data=[ModelObject(id=name) for name in studio.model_names])

    return router


def _operator_routes(studio: Studio, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/health")
    async def check_health() -> dict[str, str]:
        """Tell that the server runs."""
        return {"status": "ok"}

    @router.get("/ready", responses={503: {"description": "No worker is there"}})
    async def check_readiness() -> JSONResponse:
        """Tell whether videos can be made now."""
        workers = await to_thread.run_sync(partial(studio.store.workers, silent_for=SILENCE))
        status = 200 if workers else 503
        return JSONResponse({"workers": len(workers), "ready": bool(workers)}, status)

    @router.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        text = await to_thread.run_sync(metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


async def _object(studio: Studio, job: Job) -> VideoObject:
    if job.state != "queued":
        return video_object(job)
    return video_object(job, await to_thread.run_sync(studio.store.position, job))


async def _read_fields(request: Request) -> tuple[dict[str, Any], bytes | None]:
    """Return the fields of a form or a JSON object, and the picture among them."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _json_fields(await request.body()), None
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        message = "Send the fields as multipart/form-data or as a JSON object."
        raise ApiError(400, message, code="unsupported_content_type")
    try:
        form = await request.form(
            max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
        )
    except BodyError:
        raise
    except (MultiPartException, HTTPException) as error:
        reason = getattr(error, "message", None) or getattr(error, "detail", "")
        message = f"The form cannot be read: {reason}"
        raise ApiError(400, message, code="malformed_form") from None
    except (ValueError, UnicodeError):
        raise ApiError(400, "The form cannot be read.", code="malformed_form") from None
    try:
        return await _form_fields(form)
    finally:
        await form.close()


def _json_fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is no JSON.", code="malformed_json") from None
    if not isinstance(fields, dict):
        raise ApiError(422, "The body must be a JSON object.", code="invalid_value")
    if fields.get(_PICTURE) is not None:
        raise _no_reference()
    fields.pop(_PICTURE, None)
    return fields


async def _form_fields(form: FormData) -> tuple[dict[str, Any], bytes | None]:
    fields: dict[str, Any] = {}
    picture = None
    for name, value in form.multi_items():
        if name.startswith(f"{_PICTURE}["):
            raise _no_reference()
        if isinstance(value, UploadFile):
            if name != _PICTURE:
                message = f"The field {name[:80]!r} takes no file."
                raise ApiError(422, message, code="invalid_value", param=name[:80])
            picture = await value.read()
        elif name == _PICTURE:
            raise _no_reference()
        elif name.removesuffix("[]") == "lora":
            fields.setdefault("lora", []).append(value)
        elif name in fields:
            message = f"The field {name[:80]!r} is there twice."
            raise ApiError(422, message, code="invalid_value", param=name[:80])
        else:
            fields[name] = value
    return fields, picture


def _no_reference() -> ApiError:
    message = "Send input_reference as a file; no address and no path is ever opened."
    return ApiError(422, message, code="invalid_value", param=_PICTURE)


def _multipart_schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    schema.pop("description", None)
    if "input_reference" in schema["properties"]:
        schema["properties"]["input_reference"] = {"type": "string", "format": "binary"}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


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
    shown, sent, said = 0, "", time.monotonic()
    while True:
        told = (await _object(studio, job)).model_dump_json()
        if told != sent:
            sent, said = told, time.monotonic()
            yield _event("progress", told)
        if job.preview > shown and not job.is_finished:
            content = await _preview(studio, job)
            if content is not None:
                shown = job.preview
                image = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
                yield _event("preview", json.dumps({"number": shown, "image": image}))
        if job.is_finished:
            yield _event("completed" if job.state == "completed" else "failed", told)
            return
        if time.monotonic() - said > _PING_SECONDS:
            said = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(_WATCH_SECONDS)
        try:
            job = await to_thread.run_sync(studio.owned, job.id, client)
        except ApiError as error:
            yield _event("deleted", json.dumps(error.body()))
            return


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
