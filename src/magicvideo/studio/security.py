"""What stands before the app: tokens, Host and Origin, and limits on slow or large requests.

A plain ASGI layer, so that it also covers the mounted page.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException

from magicvideo.studio.config import LOOPBACK_HOSTS, Limits
from magicvideo.studio.responses import error_body

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "magicvideo_token"
CLIENT_HEADER = "x-magicvideo-client"
"""Set by the gate alone: what a client sends under this name is dropped."""
LOCAL_CLIENT = "local"
_OPEN_PATHS = ("/health", "/ready")
_SLOWEST_BYTES = 20_000  # a second, over a whole body
_SEND_SECONDS = 60.0
_READING = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may speak to the server.

    Attributes:
        tokens: Clients by token; empty where everybody on this machine is one client.
        hosts: Names under which the server may be reached.
        any_address: Whether it may be reached under any IP address, too. That is safe where it
            listens on all: a page of another site can only bind a name to this server's address.
    """

    tokens: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = LOOPBACK_HOSTS
    any_address: bool = False

    def client_of(self, headers: Mapping[str, str]) -> str | None:
        """Return whose request it is, or None without a valid token."""
        if not self.tokens:
            return LOCAL_CLIENT
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            given = _cookie(headers.get("cookie", ""))
        return self.client_of_token(given.strip())

    def client_of_token(self, given: str) -> str | None:
        """Return the client that a token belongs to, compared in constant time."""
        found = None
        for token, client in self.tokens.items():
            if hmac.compare_digest(_digest(token), _digest(given)):
                found = client
        return found

    def allows_host(self, host: str) -> bool:
        """Tell whether a Host header names this server."""
        name = _host_name(host)
        return name in self.hosts or (self.any_address and _is_address(name))


class Gate:
    """The ASGI layer.

    Args:
        app: What is protected.
        access: Who may speak to it.
        limits: How large and slow requests may be.
    """

    def __init__(self, app: AsgiApp, access: Access, limits: Limits) -> None:
        self._app, self._access, self._limits = app, access, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        guarded = _Guarded(receive, send, self._limits)
        refused = self._refusal(scope, headers)
        if refused is not None:
            await answer_json(guarded.send, *refused)
            return
        if (login := self._login(scope)) is not None:
            await login(guarded.send)
            return
        client = self._access.client_of(headers)
        if client is None and scope["path"] not in _OPEN_PATHS:
            message = "A valid token is missing; send it as `Authorization: Bearer TOKEN`."
            body = error_body(401, message, code="invalid_token")
            await answer_json(guarded.send, 401, body, {b"www-authenticate": b"Bearer"})
            return
        name = CLIENT_HEADER.encode()
        kept = [pair for pair in scope["headers"] if pair[0] != name]
        scope["headers"] = [*kept, (name, (client or "").encode("latin-1", "replace"))]
        await guarded.run(self._app, scope)

    def _refusal(
        self, scope: Scope, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]] | None:
        host = headers.get("host", "")
        if not self._access.allows_host(host):
            message = "The Host of the request is not this server's; add it with --allow-host."
            return 403, error_body(403, message, code="foreign_host")
        origin = headers.get("origin")
        is_foreign = origin is not None and _netloc(origin) != host.lower()
        is_embedded = headers.get("sec-fetch-site") == "cross-site" and not (
            headers.get("sec-fetch-mode") == "navigate" and scope["method"] in _READING
        )
        if is_foreign or is_embedded:
            message = "Pages of other sites may not use this server."
            return 403, error_body(403, message, code="foreign_origin")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, error_body(400, "Content-Length is not a number.", code="invalid_length")
        if int(length) > self._limits.body_bytes:
            return 413, error_body(413, _too_large(self._limits), code="request_too_large")
        return None

    def _login(self, scope: Scope) -> Callable[[Send], Awaitable[None]] | None:
        """Return the answer that turns the token in a page's address into a cookie."""
        if scope["path"] != "/" or not self._access.tokens:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self._access.client_of_token(given) is None:
            return None
        cookie = f"{COOKIE}={given}; HttpOnly; SameSite=Strict; Path=/; Max-Age=2592000"
        if scope.get("scheme") == "https":
            cookie += "; Secure"

        async def answer(send: Send) -> None:
            headers = {b"location": b"/", b"set-cookie": cookie.encode("latin-1")}
            await answer_json(send, 303, None, headers)

        return answer


class BodyError(HTTPException):
    """A request's body is too large or too slow; whoever reads it answers so."""

    def __init__(self, status: int, code: str, sentence: str) -> None:
        super().__init__(status, sentence, {"connection": "close"})
        self.body = error_body(status, sentence, code=code)


class _Guarded:
    """One request with limits on its body and on how long its answer may be stuck."""

    def __init__(self, receive: Receive, send: Send, limits: Limits) -> None:
        self._receive, self._send, self._limits = receive, send, limits
        self._size, self._is_whole, self._has_answered = 0, False, False
        self._deadline = 0.0

    async def run(self, app: AsgiApp, scope: Scope) -> None:
        clock = asyncio.get_running_loop().time
        allowed = self._limits.receive_seconds + self._limits.body_bytes / _SLOWEST_BYTES
        self._deadline = clock() + allowed
        try:
            await app(scope, self.receive, self.send)
        except BodyError as error:
            if not self._has_answered:
                headers = {b"connection": b"close"}
                await answer_json(self.send, error.status_code, error.body, headers)

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(
                self._receive(), max(0.0, min(left, self._limits.receive_seconds))
            )
        except TimeoutError:
            sentence = "The request did not arrive in time."
            raise BodyError(408, "request_timeout", sentence) from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._size > self._limits.body_bytes:
                raise BodyError(413, "request_too_large", _too_large(self._limits))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_answered = True
            present = {name.lower() for name, _ in message.get("headers", [])}
            extra = [pair for pair in _HEADERS.items() if pair[0] not in present]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await asyncio.wait_for(self._send(message), _SEND_SECONDS)


async def answer_json(
    send: Send,
    status: int,
    body: dict[str, Any] | None,
    headers: Mapping[bytes, bytes] | None = None,
) -> None:
    """Answer with a JSON object, or with nothing but headers."""
    content = b"" if body is None else json.dumps(body).encode()
    pairs = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *(headers or {}).items(),
    ]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})


def _too_large(limits: Limits) -> str:
    return f"The request is larger than {limits.body_bytes:,} bytes."


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _host_name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def machine_names() -> tuple[str, ...]:
    """Return the names under which other machines may know this one."""
    name = socket.gethostname().lower()
    return tuple(dict.fromkeys((name, f"{name}.local", socket.getfqdn().lower())))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
