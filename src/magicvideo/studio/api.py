"""The HTTP API: the routes of videos, those of operators, and the form of every error."""

from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from magicvideo.studio import video_routes
from magicvideo.studio.jobs import SILENCE
from magicvideo.studio.metrics import MeasuredApp, Metrics
from magicvideo.studio.responses import ApiError, ErrorBody, error_body
from magicvideo.studio.security import BodyError
from magicvideo.studio.service import Studio

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
    app.state.studio, app.state.metrics = studio, metrics
    app.include_router(video_routes.router)
    app.include_router(_operator_routes(studio, metrics))
    _add_error_answers(app)
    app.add_middleware(MeasuredApp, metrics=metrics)
    return app


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

    @app.exception_handler(ClientDisconnect)
    async def _client_left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # the client is gone, and the server did not fail

    @app.exception_handler(Exception)
    async def _failure(_: Request, __: Exception) -> JSONResponse:
        message = "The server failed to answer; see its log."
        return JSONResponse(error_body(500, message, code="server_error"), 500)

    @app.exception_handler(SQLAlchemyError)
    async def _database_error(_: Request, __: SQLAlchemyError) -> JSONResponse:
        body = error_body(503, "The job table does not answer.", code="unavailable")
        return JSONResponse(body, 503, headers={"Retry-After": "5"})


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
