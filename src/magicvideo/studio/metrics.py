"""Numbers for Prometheus: jobs by state, workers, stored bytes, and times of requests and jobs."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from magicvideo.studio.jobs import SILENCE, JobStore
from magicvideo.studio.security import AsgiApp, Message, Receive, Scope, Send

_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The metrics of one server process.

    Args:
        store: The job table, read at each scrape.
    """

    def __init__(self, store: JobStore) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Jobs(store))
        self._requests = Histogram(
            "magicvideo_http_request_seconds",
            "Time to the start of the answer",
            ("method", "route", "status"),
            buckets=_REQUEST_BUCKETS,
            registry=self._registry,
        )
        self._submitted = Counter(
            "magicvideo_jobs_submitted", "Accepted jobs", ("kind",), registry=self._registry
        )

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(method, route, str(status)).observe(seconds)

    def count_submitted(self, kind: str) -> None:
        """Count an accepted job."""
        self._submitted.labels(kind).inc()

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)


class MeasuredApp:
    """An ASGI layer that observes each request up to the start of its answer.

    Args:
        app: What answers.
        metrics: Where requests are counted.
    """

    def __init__(self, app: AsgiApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def observe(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                seconds = time.perf_counter() - began
                self._metrics.observe_request(scope["method"], route, message["status"], seconds)
            await send(message)

        await self._app(scope, receive, observe)


class _Jobs(Collector):
    def __init__(self, store: JobStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Yield what the table holds."""
        jobs = GaugeMetricFamily("magicvideo_jobs", "Jobs by state", labels=["state"])
        for state, count in self._store.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        yield GaugeMetricFamily(
            "magicvideo_workers",
            "Workers that are alive",
            value=len(self._store.workers(silent_for=SILENCE)),
        )
        yield GaugeMetricFamily(
            "magicvideo_stored_bytes", "Bytes of all results", value=self._store.stored_bytes()
        )
