"""The server process: the app on uvicorn, the workers it starts, and what is done now and then."""

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI
from filelock import FileLock, Timeout
from uvicorn.protocols.http.h11_impl import H11Protocol

from magicvideo.errors import UserError
from magicvideo.studio.config import StudioConfig, config_to_json
from magicvideo.studio.security import Access, Gate
from magicvideo.studio.service import Studio
from magicvideo.studio.webhooks import Webhook

logger = logging.getLogger(__name__)

_HEADER_SECONDS = 15.0
_MAINTAIN_SECONDS = 3.0
_RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0, 15.0)
_STOP_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the server listens."""

    host: str
    port: int


class WorkerProcesses:
    """One worker process for each device; one that ends is started again.

    Args:
        config: Their settings.
        devices: The devices; none for a server whose workers run elsewhere.
    """

    def __init__(self, config: StudioConfig, devices: list[str]) -> None:
        self._config, self._devices = config, devices
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ends: dict[str, int] = dict.fromkeys(devices, 0)
        self._starts: dict[str, float] = dict.fromkeys(devices, 0.0)

    def check(self) -> None:
        """Start the workers that do not run."""
        now = time.monotonic()
        for device in self._devices:
            process = self._processes.get(device)
            if process is not None and process.poll() is None:
                if now - self._starts[device] > 60:
                    self._ends[device] = 0
                continue
            wait = _RESTART_SECONDS[min(self._ends[device], len(_RESTART_SECONDS) - 1)]
            if process is not None and now - self._starts[device] < wait:
                continue
            if process is not None:
                self._ends[device] += 1
                logger.warning("The worker of %s ended (%s).", device, process.returncode)
            self._starts[device] = now
            self._processes[device] = self._start(device)

    def _start(self, device: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "magicvideo.studio", device],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the server's, which ends them in order
        )
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(config_to_json(self._config))
        return process

    def stop(self) -> None:
        """End all workers after their current step."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            _wait_or_kill(process)


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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


def serve(
    app: FastAPI,
    studio: Studio,
    access: Access,
    address: Address,
    workers: WorkerProcesses,
    announce: Callable[[int], None],
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        app: The app, without its gate.
        studio: What it is about.
        access: Who may speak to it.
        address: Where to listen; port 0 takes a free one.
        workers: Processes that are started with the server and end with it.
        announce: Called with the port once the server listens.

    Raises:
        UserError: If another server has the same home, or the address cannot be used.
    """
    config = studio.config
    lock = FileLock(config.home / "locks" / "server.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"Another server runs on {config.home}; stop it, or name another folder with --home."
        ) from None
    with lock, _listening(address) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                Gate(app, access, config.limits),
                http=TimedProtocol,
                ws="none",
                log_level="warning",
                access_log=False,
                limit_concurrency=config.limits.connections,
                h11_max_incomplete_event_size=32 * 1024,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=5,
                server_header=False,
                backlog=512,
            )
        )
        webhook = _webhook(config)
        stopping = threading.Event()
        upkeep = threading.Thread(
            target=_maintain, args=(studio, webhook, workers, stopping), daemon=True
        )
        upkeep.start()
        announce(listener.getsockname()[1])
        try:
            asyncio.run(server.serve([listener]))
        finally:
            stopping.set()
            upkeep.join(_STOP_SECONDS)
            workers.stop()


@contextmanager
def _listening(address: Address) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"{address.host}:{address.port} cannot be listened on ({error}); choose others "
                "with --host and --port."
            ) from None
        yield listener


def _maintain(
    studio: Studio, webhook: Webhook | None, workers: WorkerProcesses, stopping: threading.Event
) -> None:
    while True:
        workers.check()
        try:
            studio.maintain()
            if webhook is not None:
                webhook.send_all(studio.store)
        except Exception:
            logger.exception("Keeping the studio in order failed; it is tried again")
        if stopping.wait(_MAINTAIN_SECONDS):
            return


def _webhook(config: StudioConfig) -> Webhook | None:
    if config.webhook is None:
        return None
    if config.webhook_secret is None:
        raise UserError("A webhook needs a secret; set MAGICVIDEO_WEBHOOK_SECRET.")
    return Webhook(config.webhook, config.webhook_secret)
