"""uvicorn with the gate before an app, and with limits on connections that do not speak."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from magicvideo.errors import UserError
from magicvideo.studio.config import Limits
from magicvideo.studio.security import Access, AsgiApp, Gate

_HEADER_SECONDS = 15.0
_HEADER_BYTES = 32 * 1024
_BACKLOG = 512


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which closes connections whose request line never comes."""

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._header_timer = self.loop.call_later(_HEADER_SECONDS, self._check_headers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        if self._header_timer is not None:
            self._header_timer.cancel()
        super().connection_lost(exc)

    def _check_headers(self) -> None:
        if self.cycle is None:
            self.transport.close()


class HttpServer:
    """An app behind the gate, on one address.

    Args:
        app: The app.
        access: Who may speak to it.
        limits: How large, slow and many requests may be.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.

    Raises:
        UserError: If the address cannot be used.
    """

    def __init__(self, app: AsgiApp, access: Access, limits: Limits, host: str, port: int) -> None:
        self._listener = _listen(host, port)
        self.host, self.port = host, int(self._listener.getsockname()[1])
        self._server = _Server(
            uvicorn.Config(
                Gate(app, access, limits),
                http=TimedProtocol,
                ws="none",
                log_level="warning",
                access_log=False,
                limit_concurrency=limits.connections,
                h11_max_incomplete_event_size=_HEADER_BYTES,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=3,
                server_header=False,
                backlog=_BACKLOG,
            )
        )

    @property
    def address(self) -> str:
        """Return where a browser on this machine finds the first page."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, where this is the main thread, or `stop`."""
        try:
            asyncio.run(self._server.serve([self._listener]))
        finally:
            self._listener.close()

    def stop(self) -> None:
        """End `run`, from another thread."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn's server, which returns after a signal instead of raising it again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end the server."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: FrameType | None) -> None:
            self.handle_exit(number, frame)

        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, end) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"{host}:{port} cannot be listened on ({error}); choose others with --host and --port."
        ) from None
    return listener
