"""Measure status calls of many clients while videos are generated, and the server's memory.

magicvideo studio --no-page --port 7861 &
python -m benchmarks.studio_load --url http://127.0.0.1:7861 --clients 50 --seconds 120
"""

import argparse
import asyncio
import json
import statistics
import time

import httpx
import psutil


async def ask(client: httpx.AsyncClient, path: str, until: float, pause: float) -> list[float]:
    """Request a video's status repeatedly, and return the seconds of each answer."""
    times = []
    while time.monotonic() < until:
        began = time.perf_counter()
        answer = await client.get(path)
        times.append(time.perf_counter() - began)
        answer.raise_for_status()
        await asyncio.sleep(pause)
    return times


async def keep_busy(client: httpx.AsyncClient, until: float, steps: int) -> int:
    """Request videos one after the other, and return the number of finished ones."""
    made = 0
    while time.monotonic() < until:
        answer = await client.post("/v1/videos", json={"prompt": "panda", "steps": steps})
        answer.raise_for_status()
        path = f"/v1/videos/{answer.json()['id']}"
        while time.monotonic() < until:
            if (await client.get(path)).json()["status"] in ("completed", "failed"):
                made += 1
                break
            await asyncio.sleep(0.5)
    return made


async def watch_memory(process: psutil.Process, until: float) -> list[int]:
    """Record the resident set of the server in bytes, once per second."""
    sizes = []
    while time.monotonic() < until:
        sizes.append(process.memory_info().rss)
        await asyncio.sleep(1.0)
    return sizes


def listener_of(port: int) -> psutil.Process:
    """Return the process that listens on a port."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == "LISTEN" and connection.laddr and connection.laddr.port == port:
            return psutil.Process(connection.pid)
    raise SystemExit(f"No process listens on port {port}.")


async def run(url: str, clients: int, seconds: float, pause: float, steps: int) -> None:
    """Run the load test and print its numbers as JSON."""
    until = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients + 4, max_keepalive_connections=clients + 4)
    async with httpx.AsyncClient(
        base_url=url, limits=limits, timeout=30, trust_env=False
    ) as client:
        first = (await client.post("/v1/videos", json={"prompt": "panda", "steps": 1})).json()["id"]
        process = listener_of(httpx.URL(url).port or 80)
        asking = [
            asyncio.create_task(ask(client, f"/v1/videos/{first}", until, pause))
            for _ in range(clients)
        ]
        memory = asyncio.create_task(watch_memory(process, until))
        made = await keep_busy(client, until, steps)
        sizes = await memory
        times = [await task for task in asking]
    calls = sorted(seconds for one in times for seconds in one)
    quarter = max(1, len(sizes) // 4)
    print(
        json.dumps(
            {
                "clients": clients,
                "seconds": seconds,
                "calls": len(calls),
                "videos": made,
                "p50_ms": round(1000 * calls[len(calls) // 2], 1),
                "p95_ms": round(1000 * calls[int(len(calls) * 0.95)], 1),
                "p99_ms": round(1000 * calls[int(len(calls) * 0.99)], 1),
                "rss_mb_second_quarter": round(
                    statistics.mean(sizes[quarter : 2 * quarter]) / 1e6, 1
                ),
                "rss_mb_last_quarter": round(statistics.mean(sizes[-quarter:]) / 1e6, 1),
            }
        )
    )


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument(
        "--pause", type=float, default=1.0, help="seconds between two calls of a client"
    )
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    asyncio.run(run(options.url, options.clients, options.seconds, options.pause, options.steps))


if __name__ == "__main__":
    main()
