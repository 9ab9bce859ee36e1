"""The page of a study on a web server for a few raters, from the standard library."""

import re
import sqlite3
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from magicvideo.errors import UserError
from studies.human_study.pages import PAGES, StudyPages
from studies.human_study.results import Votes
from studies.human_study.study import Study

_LARGEST_FORM = 4096  # bytes
_MOST_FIELDS = 8
LOOPBACK = ("127.0.0.1", "localhost")
"""Hosts that only this machine reaches."""
_SECONDS = 30.0  # that a browser may be silent for
_STATIC = {"/page.css": "text/css; charset=utf-8", "/page.js": "text/javascript; charset=utf-8"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; media-src 'self'; style-src 'self'; script-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")


class StudyServer(ThreadingHTTPServer):
    """Serves one study; nothing of a request becomes a path or a part of a query.

    Args:
        study: What is compared.
        folder: Its folder, with all videos made.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.

    Raises:
        UserError: If the address cannot be used.
    """

    daemon_threads = True

    def __init__(self, study: Study, folder: Path, host: str, port: int) -> None:
        self.booth = StudyPages(study, Votes(folder))
        self.is_private = host in LOOPBACK
        self.videos = {f"/video/{name}": path for name, path in study.videos(folder).items()}
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"{host}:{port} cannot be listened on ({error}); choose others with --host and "
                "--port."
            ) from None

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over browsers that close a connection early, as they do with videos."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        """Return where a browser on this machine finds the first page."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"


class _Handler(BaseHTTPRequestHandler):
    server: StudyServer
    server_version, sys_version = "study", ""
    timeout = _SECONDS

    def do_GET(self) -> None:
        """Answer with a page or a video."""
        address = urlsplit(self.path)
        if address.path == "/":
            self._page(self.server.booth.welcome())
        elif address.path == "/pair":
            self._pair(address.query)
        elif address.path in _STATIC:
            content = (PAGES / address.path.removeprefix("/")).read_bytes()
            self._answer(HTTPStatus.OK, content, {"Content-Type": _STATIC[address.path]})
        elif address.path in self.server.videos:
            self._video(self.server.videos[address.path].read_bytes())
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")

    def do_POST(self) -> None:
        """Keep the answers of a form."""
        size = self.headers.get("Content-Length", "")
        if not (size.isascii() and size.isdigit() and len(size) < 8):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "The form states no length.")
        elif int(size) > _LARGEST_FORM:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The form is too large.")
        elif self.path != "/vote":
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
        elif self._is_foreign():
            self._refuse(HTTPStatus.FORBIDDEN, "The form is from another site.")
        else:
            self._vote(self.rfile.read(int(size)))

    def log_message(self, format: str, *args: object) -> None:
        """Write no line for each request: it would be one for every piece of a video."""

    def _pair(self, query: str) -> None:
        try:
            fields = _fields(query)
            place = fields.get("place")
            if place is not None and not (place.isascii() and place.isdigit() and len(place) < 8):
                raise UserError("There is no such pair.")
            page = self.server.booth.pair(
                fields.get("rater", ""), None if place is None else int(place)
            )
        except UserError as error:
            self._page(self.server.booth.welcome(str(error)), HTTPStatus.BAD_REQUEST)
        else:
            self._page(page)

    def _vote(self, body: bytes) -> None:
        try:
            rater = self.server.booth.vote(_fields(body.decode("ascii", "replace")))
        except UserError as error:
            self._page(self.server.booth.welcome(str(error)), HTTPStatus.BAD_REQUEST)
        except sqlite3.Error:
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE, "The answers could not be kept; send them again."
            )
        else:
            place = f"/pair?{urlencode({'rater': rater})}"
            self._answer(HTTPStatus.SEE_OTHER, b"", {"Location": place})

    def _video(self, content: bytes) -> None:
        """Answer with a video or the piece of it that was asked for, as Safari does."""
        headers = {"Content-Type": "video/mp4", "Accept-Ranges": "bytes"}
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None:
            self._answer(HTTPStatus.OK, content, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "There is no such piece.")
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(HTTPStatus.PARTIAL_CONTENT, content[first : last + 1], headers)

    def _is_foreign(self) -> bool:
        """Tell whether a form is from a page of another site, which a browser lets happen."""
        host = self.headers.get("Host", "")
        is_renamed = self.server.is_private and host.rsplit(":", 1)[0] not in LOOPBACK
        origin = self.headers.get("Origin")
        return is_renamed or (origin is not None and urlsplit(origin).netloc != host)

    def _page(self, text: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._answer(status, text.encode(), {"Content-Type": "text/html; charset=utf-8"})

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._answer(status, sentence.encode(), {"Content-Type": "text/plain; charset=utf-8"})

    def _answer(self, status: HTTPStatus, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | _HEADERS | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _fields(text: str) -> dict[str, str]:
    """Return the fields of a form or a query.

    Raises:
        UserError: If there are too many, or they are no UTF-8.
    """
    try:
        return dict(parse_qsl(text, errors="strict", max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise UserError("The form cannot be read; begin again at the first page.") from None
