"""The server process: the app on uvicorn, the workers it starts, and what is done now and then."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI
from filelock import FileLock, Timeout

from magicvideo.errors import UserError
from magicvideo.studio.config import StudioConfig, config_to_json
from magicvideo.studio.http_server import HttpServer
from magicvideo.studio.security import Access
from magicvideo.studio.service import Studio
from magicvideo.studio.webhooks import Webhook

logger = logging.getLogger(__name__)

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
            [sys.executable, "-m", "magicvideo.studio", device, str(os.getpid())],
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


def serve(
    app: FastAPI,
    studio: Studio,
    access: Access,
    address: Address,
    workers: WorkerProcesses,
    announce: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        app: The app, without its gate.
        studio: What it is about.
        access: Who may speak to it.
        address: Where to listen; port 0 takes a free one.
        workers: Processes that are started with the server and end with it.
        announce: Called with the address of the page once the server listens.

    Raises:
        UserError: If another server has the same home, or the address cannot be used.
    """
    config = studio.config
    webhook = _webhook(config)
    lock = FileLock(config.home / "locks" / "server.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"Another server runs on {config.home}; stop it, or name another folder with --home."
        ) from None
    with lock:
        server = HttpServer(app, access, config.limits, address.host, address.port)
        stopping = threading.Event()
        upkeep = threading.Thread(
            target=_maintain, args=(studio, webhook, workers, stopping), daemon=True
        )
        upkeep.start()
        announce(server.address)
        try:
            server.run()
        finally:
            stopping.set()
            upkeep.join(_STOP_SECONDS)
            workers.stop()
            studio.close()


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
