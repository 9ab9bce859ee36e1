"""One process that makes videos on one device, job after job.

Any of these processes can be killed at any moment. Its job is queued again by the next worker on
the device, which holds a file lock that the operating system frees with the process, or by any
other worker after 30 seconds without a heartbeat. Work continues from latents kept between stages,
and since equal requests give equal bytes, it does not matter who finishes.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from filelock import FileLock, Timeout

from magicvideo.atomic_io import sha256
from magicvideo.errors import UserError
from magicvideo.shapes import Frames
from magicvideo.studio.config import StudioConfig
from magicvideo.studio.engine import Engine, Made, preview_bytes
from magicvideo.studio.files import PREVIEW, FileStore, file_names, result_names
from magicvideo.studio.jobs import SILENCE, Job, JobStore, Result
from magicvideo.studio.parameters import VideoParameters
from magicvideo.studio.queue import JobQueue
from magicvideo.studio.uploads import Beginning, read_beginning

logger = logging.getLogger(__name__)

_BEAT = 3.0
_IDLE = 0.1
_LOOK = 1.0  # seconds between looks for waiting jobs that the queue has lost
_WRITE = 0.2  # least seconds between two notes of progress
_SHOW = 0.4  # least seconds between two previews of steps
_PREVIEW_SHARE = 0.05  # of the time so far that previews of steps may take
MAX_ATTEMPTS = 10


class _StopError(Exception):
    """The job is not this worker's to finish: cancelled, or the worker has to end."""


class _TimeoutError(Exception):
    """The job took longer than is allowed."""


@dataclass
class _Timer:
    """When a stage began, and how far it is."""

    stage: str = ""
    began: float = 0.0
    done: int = 0


class Worker:
    """Makes the videos of waiting jobs on one device.

    Args:
        config: The studio.
        device: `cpu`, `mps`, `cuda` or `cuda:1`.
        engine: The model; by default it is loaded when the worker begins.
        parent: Process that started it: the worker ends when that is gone.

    Raises:
        UserError: If the studio's places or its model cannot be opened.
    """

    def __init__(
        self,
        config: StudioConfig,
        device: str,
        engine: Engine | None = None,
        parent: int | None = None,
    ) -> None:
        config.make_folders()
        self.config, self.device = config, device
        self.place = f"{socket.gethostname()}:{device}:{config.home_id}:"
        self.name = f"{self.place}{os.getpid()}-{int(time.time())}"
        self.store = JobStore(config.database_url)
        self.queue = JobQueue(config.queue_url)
        self.files = FileStore(config.files_url)
        self._stop, self._is_ready = threading.Event(), threading.Event()
        self._engine = engine
        self._parent = parent

    def run(self) -> None:
        """Work until `stop` is called."""
        lock = FileLock(self.config.home / "locks" / f"worker-{self.device.replace(':', '-')}.lock")
        threading.Thread(target=self._beat, daemon=True).start()
        while not self._stop.is_set():
            with contextlib.suppress(Timeout), lock.acquire(timeout=1.0):
                self._requeue(self.store.requeue_lost(worker_prefix=self.place))
                self._engine = self._engine or Engine(
                    self.config.model,
                    device=self.device,
                    loras=self.config.loras,
                    threads=self.config.threads,
                )
                self.store.beat(self.name, self.device)
                self._is_ready.set()
                self._work()
                self._is_ready.clear()
                self.store.dismiss(self.name)
        self.store.close()
        self.queue.close()

    def stop(self, *_: int | FrameType | None) -> None:
        """End after the current step; its job is queued again."""
        self._stop.set()

    def _work(self) -> None:
        looked = 0.0
        while not self._stop.is_set():
            job_id = self.queue.take()
            if job_id is not None:
                self._take(job_id)
                continue
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                self._look_after()
            self._stop.wait(_IDLE)

    def _look_after(self) -> None:
        """Queue what others have lost: jobs of silent workers, and ids that are in no queue."""
        self._requeue(self.store.requeue_lost(silent_for=SILENCE))
        if len(self.queue) == 0:
            self._requeue(self.store.waiting(before=time.time() - _LOOK))

    def _requeue(self, ids: list[str]) -> None:
        for job_id in ids:
            self.queue.put(job_id)

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT):
            self._check_parent()
            if not self._is_ready.is_set():
                continue
            try:
                self.store.beat(self.name, self.device)
            except Exception:
                logger.exception("The job table does not answer")

    def _check_parent(self) -> None:
        """Stop when the server that started this worker is gone."""
        if self._parent is not None and os.getppid() != self._parent:
            self._stop.set()

    def _take(self, job_id: str) -> None:
        job = self.store.claim(job_id, self.name)
        if job is None:
            return
        if job.attempts > MAX_ATTEMPTS:
            message = f"The job ended {MAX_ATTEMPTS} workers; it is not tried again."
            self.store.fail(job_id, self.name, "worker_lost", message)
            return
        try:
            self._do(job)
        except _StopError:
            self._let_go(job)
        except _TimeoutError:
            limit = self.config.limits.job_seconds
            message = f"The job took longer than {limit:g} seconds; ask for fewer steps or frames."
            self.store.fail(job_id, self.name, "timed_out", message)
        except UserError as error:
            self.store.fail(job_id, self.name, "invalid_request", str(error))
        except MemoryError:
            message = "The device's memory ended; ask for fewer frames or a smaller size."
            self.store.fail(job_id, self.name, "out_of_memory", message)
        except Exception as error:
            logger.error("Job %s failed:\n%s", job_id, traceback.format_exc())
            if "out of memory" in str(error).lower():
                message = "The device's memory ended; ask for fewer frames or a smaller size."
                self.store.fail(job_id, self.name, "out_of_memory", message)
            else:
                message = "The server could not make the video; see its log."
                self.store.fail(job_id, self.name, "server_error", message)
        self._clean_up(job_id)

    def _let_go(self, job: Job) -> None:
        if self.store.end_cancelled_if_asked(job.id, self.name):
            return
        if self.store.release(job.id, self.name):
            self.queue.put(job.id)

    def _clean_up(self, job_id: str) -> None:
        """Remove what was kept of a job that will not continue."""
        job = self.store.get(job_id)
        if job is None or job.is_finished:
            assert self._engine is not None
            self._engine.forget(job_id, self.files, self.config.scratch)
            self.files.remove([f"{job_id}-{PREVIEW}"])
            if job is None:
                self.files.remove(file_names(job_id))

    def _do(self, job: Job) -> None:
        twin = self.store.find_result(job.fingerprint)
        if twin is not None and self._copy(twin, job):
            return
        assert self._engine is not None
        parameters = VideoParameters.model_validate(job.parameters)
        scratch = self.config.scratch
        beginning, upload = None, None
        try:
            if job.picture is not None:
                upload = self.files.fetch(job.picture, scratch / job.picture)
                beginning = read_beginning(upload)
            progress = _Progress(self, job, self._engine, parameters, beginning)
            made = self._engine.make(job.id, parameters, beginning, self.files, scratch, progress)
            self._hand_in(job, made, progress.timings())
        finally:
            if upload is not None:
                upload.unlink(missing_ok=True)

    def _hand_in(self, job: Job, made: Made, timings: dict[str, float]) -> None:
        names = result_names(job.id, job.format)
        digest = sha256(made.video)
        size = self.files.put(names["video"], made.video)
        size += self.files.put(names["thumbnail"], made.thumbnail)
        size += self.files.put(names["spritesheet"], made.spritesheet)
        made.video.unlink()
        if not self.store.report(job.id, self.name, {"request": made.request.to_json()}):
            raise _StopError
        self._complete(job, names, digest, size, timings)

    def _copy(self, twin: Job, job: Job) -> bool:
        """Complete a job with the files of another that has the same bytes."""
        names = result_names(job.id, job.format)
        try:
            for variant, name in names.items():
                self.files.copy(twin.files[variant], name)
        except (FileNotFoundError, KeyError):
            return False  # it was removed meanwhile
        if not self.store.report(job.id, self.name, {"request": twin.request}):
            raise _StopError
        self._complete(job, names, str(twin.sha256), twin.num_bytes, {})
        return True

    def _complete(
        self, job: Job, names: dict[str, str], digest: str, size: int, timings: dict[str, float]
    ) -> None:
        kept = self.config.limits.result_seconds
        result = Result(
            files=names,
            sha256=digest,
            num_bytes=size,
            timings=timings,
            expires_at=None if kept is None else time.time() + kept,
        )
        if not self.store.complete(job.id, self.name, result):
            raise _StopError

    @property
    def is_stopping(self) -> bool:
        """Tell whether `stop` was called."""
        return self._stop.is_set()


class _Progress:
    """Follows one job: notes progress in the table, stores previews, and stops on demand."""

    def __init__(
        self,
        worker: Worker,
        job: Job,
        engine: Engine,
        parameters: VideoParameters,
        beginning: Beginning | None,
    ) -> None:
        self._worker, self._job, self._engine = worker, job, engine
        plan = engine.plan(parameters, beginning, device=worker.device)
        self._expected = engine.expected_seconds(plan.request)
        self._timer, self._timings = _Timer(), dict[str, float]()
        self._began = time.monotonic()
        self._written, self._shown, self._preview_seconds = 0.0, 0.0, 0.0
        self._previews = job.preview

    def report(self, stage: str, done: int, total: int) -> None:
        """Record a step, and stop if the job must not continue."""
        now = time.monotonic()
        if self._worker.is_stopping:
            raise _StopError
        if now - self._began > self._worker.config.limits.job_seconds:
            raise _TimeoutError
        if stage != self._timer.stage:
            self._end_stage(now)
            self._timer = _Timer(stage, now)
        self._timer.done = done
        store, job, name = self._worker.store, self._job, self._worker.name
        if now - self._written < _WRITE and done not in (0, total):
            if not store.may_go_on(job.id, name):
                raise _StopError
            return
        self._written = now
        progress, left = self._estimate(stage, done)
        values: dict[str, str | int | float | None]
        values = {"stage": stage, "progress": progress, "time_left": left}
        if not store.report(job.id, name, values):
            raise _StopError

    def show_step(self, make_frames: Callable[[], Frames]) -> None:
        """Show what a step has made: the first always, others as long as they cost little."""
        now = time.monotonic()
        is_first = self._previews == self._job.preview
        is_dear = self._preview_seconds > _PREVIEW_SHARE * (now - self._began)
        if is_first or (now - self._shown > _SHOW and not is_dear):
            self.show(make_frames())
            self._preview_seconds += time.monotonic() - now

    def show(self, frames: Frames) -> None:
        """Store a preview."""
        self._shown = time.monotonic()
        self._worker.files.put(f"{self._job.id}-{PREVIEW}", preview_bytes(frames))
        self._previews += 1
        if not self._worker.store.report(
            self._job.id, self._worker.name, {"preview": self._previews}
        ):
            raise _StopError

    def timings(self) -> dict[str, float]:
        """Return the seconds of each stage."""
        self._end_stage(time.monotonic())
        return {stage: round(seconds, 4) for stage, seconds in self._timings.items()}

    def _end_stage(self, now: float) -> None:
        timer = self._timer
        if timer.stage:
            seconds = now - timer.began
            self._timings[timer.stage] = self._timings.get(timer.stage, 0.0) + seconds
            self._engine.learn_seconds(timer.stage, timer.done, seconds)
        self._timer = _Timer()

    def _estimate(self, stage: str, done: int) -> tuple[int, float]:
        """Return percent and the seconds that are left."""
        whole = sum(steps * seconds for steps, seconds in self._expected.values())
        before = 0.0
        for name, (_, seconds) in self._expected.items():
            if name == stage:
                before += done * seconds
                break
            before += self._expected[name][0] * seconds
        # this job's own pace is a better estimate than that of earlier jobs, once it is known
        elapsed = time.monotonic() - self._began
        pace = elapsed / before if before > 0.05 * whole else 1.0
        return min(99, int(100 * before / whole)), round(max(0.0, whole - before) * pace, 1)


def run_worker(config: StudioConfig, device: str, parent: int | None = None) -> None:
    """Run a worker in this process until SIGTERM or SIGINT, or until its parent is gone."""
    worker = Worker(config, device, parent=parent)
    signal.signal(signal.SIGTERM, worker.stop)
    signal.signal(signal.SIGINT, worker.stop)
    worker.run()
