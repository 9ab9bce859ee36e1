"""The web app of a study. It uses the HTTP server and the access checks of the studio."""

import sqlite3
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from magicvideo.errors import UserError
from magicvideo.studio.config import LOOPBACK_HOSTS, Limits
from magicvideo.studio.http_server import HttpServer
from magicvideo.studio.security import Access, machine_names
from studies.human_study.pages import PAGES, StudyPages
from studies.human_study.results import Votes
from studies.human_study.study import Study

_LARGEST_FORM = 4096  # bytes
_MOST_FIELDS = 8
_SECONDS = 30.0  # timeout for receiving a request
_CONNECTIONS = 300
_STATIC = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; media-src 'self'; style-src 'self'; script-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}


def serve_study(study: Study, folder: Path, host: str, port: int) -> HttpServer:
    """Return the server of one study. No part of a request is used as a path or in a query.

    Args:
        study: The study.
        folder: Its folder, with all videos.
        host: Address to listen on.
        port: Port to listen on; 0 selects a free one.

    Raises:
        UserError: If the address cannot be used.
    """
    everywhere = host in ("0.0.0.0", "::")
    names = machine_names() if everywhere else (host,)
    access = Access(hosts=(*LOOPBACK_HOSTS, *names), any_address=everywhere)
    limits = Limits(body_bytes=_LARGEST_FORM, receive_seconds=_SECONDS, connections=_CONNECTIONS)
    return HttpServer(create_study_app(study, folder), access, limits, host, port)


def create_study_app(study: Study, folder: Path) -> FastAPI:
    """Return the app of one study."""
    pages = StudyPages(study, Votes(folder))
    videos = study.videos(folder)
    app = FastAPI(
        title="study", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )

    @app.exception_handler(HTTPException)
    async def _refuse(_: Request, error: HTTPException) -> Response:
        sentence = "There is no such page." if error.status_code == 404 else f"{error.detail}"
        return PlainTextResponse(sentence, error.status_code, headers=_HEADERS)

    @app.exception_handler(sqlite3.Error)
    async def _unavailable(_: Request, __: sqlite3.Error) -> Response:
        sentence = "The answers could not be stored; send them again."
        return PlainTextResponse(sentence, 503, headers={**_HEADERS, "Retry-After": "5"})

    @app.get("/")
    def show_welcome() -> Response:
        return _page(pages.welcome())

    @app.get("/pair")
    def show_pair(request: Request) -> Response:
        try:
            fields = _fields(request.url.query)
            place = fields.get("place")
            if place is not None and not (place.isascii() and place.isdigit() and len(place) < 8):
                raise UserError("There is no such pair.")
            number = None if place is None else int(place)
            return _page(pages.pair(fields.get("rater", ""), number))
        except UserError as error:
            return _page(pages.welcome(str(error)), 400)

    @app.post("/vote")
    async def keep_vote(request: Request) -> Response:
        body = await request.body()  # an incomplete body raises and is not stored
        try:
            fields = _fields(body.decode("ascii", "replace"))
            rater = await to_thread.run_sync(pages.vote, fields)
        except UserError as error:
            return _page(pages.welcome(str(error)), 400)
        place = f"/pair?{urlencode({'rater': rater})}"
        return Response(status_code=303, headers={**_HEADERS, "Location": place})

    @app.get("/video/{name}")
    def send_video(name: str) -> Response:
        path = videos.get(name)
        if path is None or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, media_type="video/mp4", headers=_HEADERS)

    @app.get("/{name}")
    def send_static(name: str) -> Response:
        if name not in _STATIC:
            raise HTTPException(404)
        headers = {**_HEADERS, "Content-Type": _STATIC[name]}
        return Response((PAGES / name).read_bytes(), headers=headers)

    return app


def _page(text: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(text, status, headers=_HEADERS)


def _fields(text: str) -> dict[str, str]:
    """Return the fields of a form or a query.

    Raises:
        UserError: If there are too many, or they are not UTF-8.
    """
    try:
        return dict(parse_qsl(text, errors="strict", max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise UserError("The form cannot be read; start again at the first page.") from None
