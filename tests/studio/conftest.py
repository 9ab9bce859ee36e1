"""A studio with a tiny model: real server, real HTTP, and a worker in a thread."""

import contextlib
import gc
import io
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image
from sqlalchemy import create_engine, text

from magicvideo.studio.api import create_app
from magicvideo.studio.config import Limits, StudioConfig
from magicvideo.studio.engine import Engine
from magicvideo.studio.http_server import HttpServer
from magicvideo.studio.metrics import Metrics
from magicvideo.studio.security import Access
from magicvideo.studio.service import Studio
from magicvideo.studio.worker import Worker

QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class RunningStudio:
    """A server on a free port, its studio, and its worker."""

    def __init__(self, config, engines, access=None, worker=True, wrap=None):
        self.studio = Studio(config, engine=engines[0])
        self.metrics = Metrics(self.studio.store)
        app = create_app(self.studio, self.metrics)
        if wrap is not None:
            app = wrap(app, self.studio)
        self.server = HttpServer(app, access or Access(), config.limits, "127.0.0.1", 0)
        self.port, self.url = self.server.port, self.server.address.rstrip("/")
        self.threads = [threading.Thread(target=self.server.run, daemon=True)]
        self.worker = Worker(config, "cpu", engines[1]) if worker else None
        if self.worker is not None:
            self.threads.append(threading.Thread(target=self.worker.run, daemon=True))
        for thread in self.threads:
            thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def create(self, **fields):
        """Send a form; returns the answer."""
        files = {name: (None, str(value)) for name, value in fields.items()}
        return self.http.post("/v1/videos", files=files)

    def make(self, **fields):
        """Create a video and wait for its end."""
        answer = self.create(**fields)
        assert answer.status_code == 200, answer.text
        return self.wait(answer.json()["id"])

    def wait(self, video_id, seconds=400):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            video = self.http.get(f"/v1/videos/{video_id}").json()
            if video.get("status") not in ("queued", "in_progress"):
                return video
            time.sleep(0.1)
        raise AssertionError(f"not finished: {video}")

    def close(self):
        self.http.close()
        self.server.stop()
        if self.worker is not None:
            self.worker.stop()
        for thread in self.threads:
            thread.join(30)
        self.studio.close()


@pytest.fixture(scope="session")
def engines(tiny_model):
    """The planning engine of a server, and the making one of a worker."""
    return Engine(tiny_model), Engine(tiny_model, device="cpu")


@pytest.fixture
def open_studio(engines, tiny_model, tmp_path):
    """A function that opens a studio with other limits; it is closed after the test."""
    with contextlib.ExitStack() as stack:

        def start(name="home", limits=None, **options):
            config = StudioConfig(home=tmp_path / name, model=tiny_model, limits=limits or Limits())
            settings = options.pop("settings", {})
            config = replace(config, **settings)
            running = RunningStudio(config, engines, **options)
            stack.callback(running.close)
            return running

        yield start


@pytest.fixture(scope="session")
def shared(engines, tiny_model, tmp_path_factory):
    """One studio for all tests that need no special limits."""
    config = StudioConfig(home=tmp_path_factory.mktemp("studio"), model=tiny_model)
    running = RunningStudio(config, engines)
    yield running
    running.close()


@pytest.fixture(scope="session")
def picture():
    """A small PNG."""
    holder = io.BytesIO()
    Image.new("RGB", (31, 23), (200, 40, 90)).save(holder, format="PNG")
    return holder.getvalue()


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run of two stages, one of them with samples and a truncated log line."""
    home = tmp_path_factory.mktemp("runs")
    for stage, scale in (("vae", 1.0), ("keyframes", 2.0)):
        folder = home / "emoji" / stage
        (folder / "samples").mkdir(parents=True)
        lines = [
            json.dumps({"step": step, "loss": scale / step, "lr": 1e-4}) + "\n"
            for step in range(1, 2001)
        ]
        (folder / "log.jsonl").write_text("".join(lines) + '{"step": 20', encoding="utf-8")
    for step in (100, 2000):
        name = f"emoji/keyframes/samples/step-{step:08}.png"
        Image.new("RGB", (8, 8), (step % 256, 0, 0)).save(home / name)
    return home


@pytest.fixture(scope="session")
def postgres():
    """Address of a PostgreSQL server of this session, from Debian's binaries."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL's server is not installed")
    # not below pytest's folder, which is root's alone where root runs the tests
    program, folder = programs[-1].parent, Path(tempfile.mkdtemp(prefix="studio-postgres-"))
    as_other = []
    if os.geteuid() == 0:  # it does not run as root
        shutil.chown(folder, "postgres")
        as_other = ["runuser", "-u", "postgres", "--"]
    data = folder / "data"
    options = ["--auth=trust", "--username=studio", "--no-sync", "--encoding=UTF8"]
    subprocess.run([*as_other, program / "initdb", *options, "-D", data], check=True, **QUIET)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*as_other, program / "pg_ctl", "-D", data, "-w", "-t", "300"]
    control += ["-l", folder / "log"]
    subprocess.run([*control, "-o", settings, "start"], check=True, **QUIET)
    yield f"postgresql://studio@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, **QUIET)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis(tmp_path_factory):
    """Address of a Redis server of this session, from Debian's binary."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    server = subprocess.Popen([program, *options], **QUIET)
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait(10)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request, tmp_path):
    """Address of an empty job table, of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.sqlite'}"
        return
    url = request.getfixturevalue("postgres")
    _empty(url)
    yield url


@pytest.fixture(params=["sqlite", "redis", "postgresql"])
def queue_url(request, tmp_path):
    """Address of an empty queue, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'queue.sqlite'}"
    url = request.getfixturevalue("redis" if request.param == "redis" else "postgres")
    if request.param == "postgresql":
        _empty(url)
    return url


def _empty(url):
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()


@pytest.fixture(scope="module")
def _close_event_loops():
    """Collect the event loops that Gradio leaves open, whose warnings would fail later tests."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
