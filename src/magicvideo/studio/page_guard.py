"""A guard before Gradio's own routes: no file of a request may be named by an address.

Gradio fetches a file whose path is a URL. The page sends uploads only, so whatever looks like an
address in a file's place is refused before Gradio sees it.
"""

import json
import re
from typing import Any

from magicvideo.studio.responses import error_body
from magicvideo.studio.security import AsgiApp, Message, Receive, Scope, Send, answer_json

_PREFIX = "/gradio_api/"
_BINARY = ("/gradio_api/upload",)
_ADDRESS = re.compile(r"\s*([a-z][a-z0-9+.-]+:|//|\\\\)", re.IGNORECASE)
_DEEPEST = 30


class PageGuard:
    """The ASGI layer.

    Args:
        app: What is protected.
    """

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        path = scope.get("path", "")
        is_call = scope["type"] == "http" and scope["method"] == "POST"
        if not (is_call and path.startswith(_PREFIX)) or path in _BINARY:
            await self._app(scope, receive, send)
            return
        body = await _read(receive)
        if _names_an_address(body):
            message = "A file must be uploaded; no address and no path is ever opened."
            await answer_json(send, 403, error_body(403, message, code="foreign_file"))
            return
        is_given = False

        async def replay() -> Message:
            nonlocal is_given
            if is_given:
                return await receive()
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _names_an_address(body: bytes) -> bool:
    try:
        return _search(json.loads(body), 0)
    except (ValueError, RecursionError):
        return False  # not JSON: Gradio refuses it


def _search(value: Any, depth: int) -> bool:  # noqa: ANN401 (whatever JSON holds)
    if depth > _DEEPEST:
        return True
    if isinstance(value, list):
        return any(_search(item, depth + 1) for item in value)
    if not isinstance(value, dict):
        return False
    path = value.get("path")
    if isinstance(path, str) and _ADDRESS.match(path):
        return True
    return any(_search(item, depth + 1) for item in value.values())
