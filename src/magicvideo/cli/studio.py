"""`magicvideo studio`: a page and an API on this machine, with a queue behind them."""

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicvideo.cli.console import say
from magicvideo.cli.options import Model
from magicvideo.errors import UserError

if TYPE_CHECKING:
    from magicvideo.studio.config import StudioConfig
    from magicvideo.studio.security import Access

_PACKAGES = ("fastapi", "gradio", "huey", "sqlalchemy", "uvicorn", "prometheus_client", "httpx")


_Host = Annotated[str, typer.Option(help="Address to listen on.")]
_Port = Annotated[
    int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
]
_Home = Annotated[
    Path | None,
    typer.Option(help="Folder of jobs and videos; by default ~/.magicvideo/studio."),
]
_Devices = Annotated[
    list[str] | None,
    typer.Option(help="cpu, mps, cuda or cuda:N; several make videos side by side."),
]
_Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads of each worker.")]
_Loras = Annotated[Path | None, typer.Option(help="Folder of LoRA files that requests may name.")]
_Runs = Annotated[Path | None, typer.Option(help="Folder of training runs, for the Train tab.")]
_Data = Annotated[Path | None, typer.Option(help="Prepared data set, for the Data tab.")]
_Tokens = Annotated[
    Path | None, typer.Option(help="File of clients: a name, a space and a token on each line.")
]
_Hosts = Annotated[
    list[str] | None, typer.Option(help="Further host name under which the server is reached.")
]
_Database = Annotated[
    str | None,
    typer.Option(
        envvar="MAGICVIDEO_DATABASE", help="Job table: sqlite:///FILE or postgresql://..."
    ),
]
_Queue = Annotated[
    str | None,
    typer.Option(
        envvar="MAGICVIDEO_QUEUE", help="Queue: sqlite:///FILE, redis://... or postgresql://..."
    ),
]
_Files = Annotated[
    str | None, typer.Option(help="Results: a folder, or an fsspec URL such as s3://...")
]
_Webhook = Annotated[
    str | None,
    typer.Option(
        help="URL that receives an event for each finished video, signed with "
        "MAGICVIDEO_WEBHOOK_SECRET."
    ),
]
_MaxQueued = Annotated[int, typer.Option(min=1, help="Most waiting videos.")]
_MaxPerClient = Annotated[int, typer.Option(min=1, help="Most unfinished videos of one client.")]
_MaxGigabytes = Annotated[
    float, typer.Option(help="Videos are kept up to this size; the oldest go first.")
]
_KeepHours = Annotated[
    float | None, typer.Option(help="Hours that a video is kept; by default without end.")
]
_JobMinutes = Annotated[float, typer.Option(help="Longest time that a video may take.")]
_ServerOnly = Annotated[
    bool, typer.Option("--server-only", help="Start no worker; they run elsewhere.")
]
_WorkerOnly = Annotated[
    bool, typer.Option("--worker-only", help="Serve nothing; make videos of a shared queue.")
]
_NoPage = Annotated[bool, typer.Option("--no-page", help="Serve the API alone.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("studio")(studio)


def studio(
    host: _Host = "127.0.0.1",
    port: _Port = 7860,
    home: _Home = None,
    model: Model = None,
    device: _Devices = None,
    threads: _Threads = None,
    loras: _Loras = None,
    runs: _Runs = None,
    data: _Data = None,
    tokens: _Tokens = None,
    allow_host: _Hosts = None,
    database: _Database = None,
    queue: _Queue = None,
    files: _Files = None,
    webhook: _Webhook = None,
    max_queued: _MaxQueued = 200,
    max_per_client: _MaxPerClient = 100,
    max_gigabytes: _MaxGigabytes = 20.0,
    keep_hours: _KeepHours = None,
    job_minutes: _JobMinutes = 60.0,
    server_only: _ServerOnly = False,
    worker_only: _WorkerOnly = False,
    no_page: _NoPage = False,
) -> None:
    """Open the studio: a page to make, compare and keep videos, and the API /v1/videos.

    Examples:
      magicvideo studio
      magicvideo studio --port 8000 --loras loras/ --runs runs/
      magicvideo studio --host 0.0.0.0 --tokens clients.txt
      magicvideo studio --worker-only --database postgresql://db/studio --queue redis://db
    """
    _require(page=not no_page)
    from magicvideo.studio.config import MEGABYTE, Limits, StudioConfig, default_home

    limits = Limits(
        queued_jobs=max_queued,
        client_jobs=max_per_client,
        stored_bytes=int(max_gigabytes * 1000 * MEGABYTE),
        result_seconds=None if keep_hours is None else keep_hours * 3600,
        job_seconds=job_minutes * 60,
    )
    config = StudioConfig(
        home=(home or default_home()).expanduser().resolve(),
        model=model,
        database=database,
        queue=queue,
        files=files,
        loras=loras,
        runs=runs,
        data=data,
        threads=threads,
        webhook=webhook,
        webhook_secret=os.environ.get("MAGICVIDEO_WEBHOOK_SECRET"),
        limits=limits,
    )
    devices = device or _usual_devices()
    if worker_only:
        _work(config, devices)
        return
    access = _access(host, tokens, allow_host or [])
    _serve(config, access, host, port, [] if server_only else devices, devices[0], page=not no_page)


def _serve(
    config: "StudioConfig",
    access: "Access",
    host: str,
    port: int,
    devices: list[str],
    planned_for: str,
    *,
    page: bool,
) -> None:
    from magicvideo.studio.api import create_app
    from magicvideo.studio.config import LOOPBACK_HOSTS
    from magicvideo.studio.metrics import Metrics
    from magicvideo.studio.server import Address, WorkerProcesses, serve
    from magicvideo.studio.service import Studio

    studio = Studio(config, planned_for.partition(":")[0])
    app = create_app(studio, Metrics(studio.store))
    if page:
        from magicvideo.studio.page import mount_page

        app = mount_page(app, studio)

    def announce(address: str) -> None:
        if host not in LOOPBACK_HOSTS:
            say("Hint: everybody with a token can use it, unencrypted.", err=True)
        if len(access.tokens) == 1:
            address += f"?token={next(iter(access.tokens))}"
        say(f"The studio is at {address} (Ctrl-C ends it; videos are kept).")

    serve(
        app,
        studio,
        access,
        Address(host=host, port=port),
        WorkerProcesses(config, devices),
        announce,
    )


def _work(config: "StudioConfig", devices: list[str]) -> None:
    from magicvideo.studio.worker import run_worker

    if len(devices) > 1:
        raise UserError("A worker has one device; start one for each.")
    say(f"A worker on {devices[0]} takes videos of the queue; Ctrl-C ends it.")
    run_worker(config, devices[0])


def _access(host: str, tokens: Path | None, names: list[str]) -> "Access":
    """Return who may speak to the server: with a token, unless only this machine reaches it."""
    from magicvideo.studio.config import LOOPBACK_HOSTS
    from magicvideo.studio.security import Access, machine_names

    clients = {} if tokens is None else _read_tokens(tokens)
    if (token := os.environ.get("MAGICVIDEO_TOKEN")) is not None:
        clients[token] = "owner"
    if host in LOOPBACK_HOSTS:
        return Access(tokens=clients, hosts=(*LOOPBACK_HOSTS, *names))
    if not clients:
        clients = {secrets.token_urlsafe(24): "owner"}
    everywhere = host in ("0.0.0.0", "::")
    known = (*LOOPBACK_HOSTS, *names, *(machine_names() if everywhere else (host,)))
    return Access(tokens=clients, hosts=known, any_address=everywhere)


def _read_tokens(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
    clients: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, token = line.strip().partition(" ")
        if len(token.strip()) < 16:
            raise UserError(
                f"Line {number} of {path} must be a name, a space and a token of at least 16 "
                "characters."
            )
        clients[token.strip()] = name
    if not clients:
        raise UserError(f"{path} holds no client; write a name, a space and a token on a line.")
    return clients


def _usual_devices() -> list[str]:
    import torch

    if torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["mps" if torch.backends.mps.is_available() else "cpu"]


def _require(*, page: bool) -> None:
    from importlib.util import find_spec

    needed = [name for name in _PACKAGES if page or name != "gradio"]
    if missing := [name for name in needed if find_spec(name) is None]:
        raise UserError(
            f"The studio needs {', '.join(missing)}; install magicvideo with its extra, "
            "`pip install 'magicvideo[studio]'`."
        )
