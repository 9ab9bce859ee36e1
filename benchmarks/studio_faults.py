"""Kill a studio's worker, its server, or both at random times while clients send jobs.

    python -m benchmarks.studio_faults --jobs 200 --clients 10
    python -m benchmarks.studio_faults --database postgresql://... --queue redis://...

It ends with exit code 1 if a job was lost, made twice or left a file that is not whole.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

_PROMPTS = ("panda, green background", "fox, blue background", "red heart, white background")


class RunningServer:
    """A `magicvideo studio` process that is restarted after each kill."""

    def __init__(self, options: list[str], home: Path) -> None:
        self._options, self._home = options, home
        self.process, self.url = self._start()

    def _start(self) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "magicvideo", "studio", "--no-page", "--port", "0"]
        process = subprocess.Popen(
            [*command, "--home", str(self._home), *self._options], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("The server did not start.")
        return process, line.split(" at ")[1].split("/ ")[0].split("/?")[0]

    def workers(self) -> list[int]:
        """Return the ids of its worker processes."""
        listed = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid="],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(word) for word in listed.stdout.split()]

    def kill(self, what: str) -> None:
        """Send SIGKILL to the worker, the server or both; the server is restarted."""
        pids = self.workers() if what in ("worker", "both") else []
        pids += [self.process.pid] if what in ("server", "both") else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if what != "worker":
            self.process.wait()
            self.process, self.url = self._start()

    def stop(self) -> None:
        """Stop it with SIGTERM."""
        self.process.terminate()
        self.process.wait()


def call(
    method: str,
    url: str,
    token: str,
    fields: dict[str, object] | None = None,
    key: str | None = None,
) -> httpx.Response:
    """Send one request on a new connection."""
    headers = {"Authorization": f"Bearer {token}"}
    headers |= {} if key is None else {"Idempotency-Key": key}
    # plain HTTP: reading the certificates of HTTPS would take longer than the call
    return httpx.request(
        method, url, json=fields, headers=headers, timeout=60, trust_env=False, verify=False
    )


def send_jobs(
    server: RunningServer, token: str, client: int, count: int, ids: dict[str, str]
) -> None:
    """Send a client's jobs; each is repeated with one idempotency key until it is accepted."""
    for number in range(count):
        key = f"{client}-{number}"
        fields: dict[str, object] = {
            "prompt": _PROMPTS[number // 2 % len(_PROMPTS)],
            "seed": client * 1000 + number // 2,  # every second job repeats the previous one
            "steps": 2,
            "stages": "keyframes",
        }
        while key not in ids:
            try:
                answer = call("POST", f"{server.url}/v1/videos", token, fields, key)
            except httpx.HTTPError:
                time.sleep(0.3)
                continue
            if answer.status_code == 200:
                ids[key] = answer.json()["id"]
            else:
                time.sleep(min(2.0, float(answer.headers.get("Retry-After", 1))))


def count_jobs(server: RunningServer, token: str, *states: str) -> int:
    """Return the number of jobs in some states from the server's metrics."""
    answer = call("GET", f"{server.url}/metrics", token)
    answer.raise_for_status()
    starts = tuple(f'magicvideo_jobs{{state="{state}"}}' for state in states)
    lines = [line for line in answer.text.splitlines() if line.startswith(starts)]
    return sum(int(float(line.split()[-1])) for line in lines)


def check(server: RunningServer, tokens: list[str], ids: dict[str, str]) -> list[str]:
    """Return all errors: lost, duplicate and broken videos."""
    wrong, digests = [], dict[tuple[str, int], str]()
    for client, token in enumerate(tokens):
        listed: list[dict[str, object]] = []
        after = ""
        while True:
            query = f"?limit=100{after}"
            page = call("GET", f"{server.url}/v1/videos{query}", token).json()
            listed += page["data"]
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        own = {name for key, name in ids.items() if key.startswith(f"{client}-")}
        found = Counter(str(video["id"]) for video in listed)
        wrong += [f"lost: {name}" for name in own - set(found)]
        wrong += [f"more than requested: {name}" for name in set(found) - own]
        for video in listed:
            path = f"/v1/videos/{video['id']}/content"
            content = call("GET", f"{server.url}{path}", token).content
            digest = hashlib.sha256(content).hexdigest()
            if digest != video["sha256"]:
                wrong.append(f"not complete: {video['id']} ({video['status']}, {video['error']})")
            twin = (str(video["prompt"]), int(str(video["seed"])))
            if digests.setdefault(twin, digest) != digest:
                wrong.append(f"other bytes for the same request: {video['id']}")
    return wrong


def main() -> None:
    """Run the test and print its numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument(
        "--pause",
        type=float,
        default=4.0,
        help="largest number of seconds from the first job to a kill",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="model folder; by default the bundled model")
    parser.add_argument("--database")
    parser.add_argument("--queue")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        home, names = Path(folder) / "home", [f"client-{n}" for n in range(arguments.clients)]
        tokens = [hashlib.sha256(name.encode()).hexdigest() for name in names]
        file = Path(folder) / "tokens.txt"
        lines = [f"{name} {token}\n" for name, token in zip(names, tokens, strict=True)]
        file.write_text("".join(lines), encoding="utf-8")
        options = ["--tokens", str(file), "--threads", "1"]
        for name in ("model", "database", "queue"):
            if (value := getattr(arguments, name)) is not None:
                options += [f"--{name}", value]
        server = RunningServer(options, home)
        ids: dict[str, str] = {}
        share = arguments.jobs // arguments.clients
        began = time.monotonic()
        try:
            clients = [
                threading.Thread(
                    target=send_jobs, args=(server, token, number, share, ids), daemon=True
                )
                for number, token in enumerate(tokens)
            ]
            for thread in clients:
                thread.start()

            def is_finished() -> bool:
                is_sent = len(ids) == share * arguments.clients
                return is_sent and not count_jobs(server, tokens[0], "queued", "running")

            kills = Counter[str]()
            while sum(kills.values()) < arguments.kills and not is_finished():
                if not count_jobs(server, tokens[0], "running"):
                    time.sleep(0.1)
                    continue
                time.sleep(draw.uniform(0.0, arguments.pause))
                what = draw.choice(["worker", "server", "both"])
                kills[what] += 1
                server.kill(what)
                print(f"{time.monotonic() - began:.0f} s: killed {what}", file=sys.stderr)
            while not is_finished():
                time.sleep(1.0)
            for thread in clients:
                thread.join()
            wrong = check(server, tokens, ids)
            seconds = time.monotonic() - began
        finally:
            server.stop()
    print(
        json.dumps(
            {
                "jobs": len(ids),
                "clients": arguments.clients,
                "kills": dict(kills),
                "seconds": round(seconds),
                "wrong": wrong,
            }
        )
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
