"""Cancels, restarts and kills: nothing is lost or duplicated, and every file is complete."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from magicvideo.errors import UserError
from magicvideo.studio.config import Limits
from magicvideo.studio.jobs import JobStore, NewJob, QueueFullError
from magicvideo.studio.parameters import VideoParameters
from magicvideo.studio.worker import _Progress

LONG = {"steps": 1000, "stages": "keyframes"}
FAST = {"steps": 1, "stages": "keyframes"}


def until(condition, seconds=900):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


def started(studio, **fields):
    """Create a video and wait until its worker has started it."""
    video = studio.create(prompt="a cat", **fields).json()
    until(lambda: studio.studio.store.get(video["id"]).stage)
    return video["id"]


def test_a_waiting_video_is_cancelled_at_once_and_the_others_move_up(open_studio):
    studio = open_studio(worker=False)
    ids = [studio.create(prompt=f"a cat {n}").json()["id"] for n in range(3)]
    answer = studio.http.post(f"/v1/videos/{ids[0]}/cancel").json()
    assert (answer["status"], answer["error"]["code"]) == ("failed", "cancelled")
    assert studio.http.get(f"/v1/videos/{ids[2]}").json()["queue_position"] == 1


def test_a_running_video_stops_within_one_step(open_studio, monkeypatch):
    studio = open_studio()
    steps = []
    report = _Progress.report

    def count(progress, stage, done, total):
        steps.append(time.monotonic())
        report(progress, stage, done, total)

    monkeypatch.setattr(_Progress, "report", count)
    video = started(studio, **LONG)
    studio.http.post(f"/v1/videos/{video}/cancel")
    cancelled = time.monotonic()
    done = studio.wait(video)
    assert done["error"]["code"] == "cancelled"
    assert 0 < len(steps) < LONG["steps"]
    assert sum(step > cancelled for step in steps) <= 1
    assert not list(studio.studio.config.scratch.glob("*.mp4"))
    until(lambda: not [name for name in studio.studio.files.names() if video in name])
    assert studio.make(prompt="a dog", seed=1, **FAST)["status"] == "completed"


def test_a_deleted_running_video_leaves_nothing(open_studio):
    studio = open_studio()
    video = started(studio, **LONG)
    assert studio.http.delete(f"/v1/videos/{video}").json()["deleted"]
    assert studio.http.get(f"/v1/videos/{video}").status_code == 404
    assert studio.make(prompt="a dog", seed=1, **FAST)["status"] == "completed"
    studio.studio.maintain()
    assert not [name for name in studio.studio.files.names() if video in name]


def test_a_video_that_takes_too_long_is_stopped(open_studio):
    studio = open_studio(limits=Limits(job_seconds=0.5))
    done = studio.make(prompt="a cat", **LONG)
    assert done["error"]["code"] == "timed_out"
    assert "0.5 seconds" in done["error"]["message"]


def test_a_stopped_worker_puts_its_video_back_and_the_next_goes_on(open_studio, monkeypatch):
    """The key frames are kept: the second worker does not sample them again."""
    studio = open_studio()
    fields = {"prompt": "a cat", "seed": 3, "steps": 3, "interpolation_steps": 6}
    reference = studio.make(**fields)
    studio.http.delete(f"/v1/videos/{reference['id']}")
    report = _Progress.report

    def stop_half_way(progress, stage, done, total):
        if (stage, done) == ("interpolation", 3):
            studio.worker.stop()
        report(progress, stage, done, total)

    with monkeypatch.context() as patch:
        patch.setattr(_Progress, "report", stop_half_way)
        video = studio.create(**fields).json()["id"]
        studio.threads[-1].join(900)
    job = studio.studio.store.get(video)
    assert (job.state, job.attempts) == ("queued", 1)
    again = open_studio()  # the same home
    done = again.wait(video)
    assert done["sha256"] == reference["sha256"]
    assert "key frames" not in done["timings"]
    assert again.studio.store.get(video).attempts == 2
    names = again.studio.files.names  # the worker cleans up after the video is there
    until(lambda: not [name for name in names() if name.endswith(".safetensors")])


def test_eight_at_once_with_one_that_fails(open_studio):
    studio = open_studio()
    fields = [{"prompt": f"a cat {n}", "seed": n, "steps": 1 + n % 3} for n in range(8)]
    serial = {n: studio.make(**fields[n], stages="keyframes")["sha256"] for n in (1, 5)}
    answers = {}

    def send(number):
        answers[number] = studio.create(**fields[number], stages="keyframes").json()["id"]

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = studio.studio.store
    with store._write() as session:  # as if the model had been changed under a waiting job
        job = session.get(type(store.get(answers[2])), store.get(answers[2]).seq)
        job.parameters, job.state = {**job.parameters, "frames": 900}, "queued"
        job.finished_at = None
    studio.studio.queue.put(answers[2])
    done = {number: studio.wait(name) for number, name in answers.items()}
    assert done[2]["error"]["code"] == "invalid_request"
    others = [video for number, video in done.items() if number != 2]
    assert {video["status"] for video in others} == {"completed"}
    assert {number: done[number]["sha256"] for number in serial} == serial


def new_job(**changes):
    values = {
        "client": "me",
        "prompt": "a cat",
        "parameters": {"prompt": "a cat", "seed": 1},
        "fingerprint": "f",
        "model": "tiny",
        "format": "mp4",
        "seconds": 1.0,
        "size": "8x8",
    }
    return NewJob(**{**values, **changes})


def test_one_worker_has_a_job_however_many_ask(store_url):
    store = JobStore(store_url)
    jobs = [new_job(fingerprint=str(number)) for number in range(20)]
    ids = [store.create(job, queued_jobs=99, client_jobs=99)[0].id for job in jobs]
    taken = []

    def claim(worker):
        own = JobStore(store_url)
        taken.extend((name, worker) for name in ids if own.claim(name, worker) is not None)
        own.close()

    threads = [threading.Thread(target=claim, args=(f"worker {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in taken) == sorted(ids)
    name, worker = taken[0]
    assert not store.report(name, "another", {"progress": 5})
    assert store.report(name, worker, {"progress": 5})
    assert store.requeue_lost(silent_for=60.0) == []
    assert sorted(store.requeue_lost(worker_prefix="worker ")) == sorted(ids)
    assert not store.report(name, worker, {"progress": 6})  # it lost the job
    store.close()


def test_a_twin_waits_for_the_bytes_that_are_being_made(store_url):
    store = JobStore(store_url)
    first, twin, other = (
        store.create(new_job(fingerprint=name), queued_jobs=9, client_jobs=9)[0].id
        for name in ("same", "same", "other")
    )
    assert store.claim(first, "worker 1") is not None
    assert store.claim(twin, "worker 2") is None
    assert store.claim(other, "worker 2") is not None
    assert store.fail(first, "worker 1", "server_error", "It failed.")
    assert store.claim(twin, "worker 2") is not None
    store.close()


def test_the_bounds_hold_when_many_ask_at_once(store_url):
    store = JobStore(store_url)
    refused = []

    def create(number):
        own = JobStore(store_url)
        for _ in range(5):
            job = new_job(client=f"client {number}")
            try_to_create(own, job)
        own.close()

    def try_to_create(own, job):
        try:
            own.create(job, queued_jobs=12, client_jobs=4)
        except QueueFullError as error:
            refused.append(error.retry_after)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.counts()["queued"] == 12
    assert len(refused) == 8
    assert all(seconds > 0 for seconds in refused)
    store.close()


def test_results_are_removed_by_age_and_by_size(open_studio):
    studio = open_studio()
    first, second = (studio.make(prompt="a cat", seed=n, **FAST) for n in (1, 2))
    store = studio.studio.store
    sizes = {video["id"]: store.get(video["id"]).num_bytes for video in (first, second)}
    expired = store.expire(stored_bytes=sizes[second["id"]])
    assert [job.id for job in expired] == [first["id"]]
    studio.studio.files.remove(expired[0].files.values())
    gone = studio.http.get(f"/v1/videos/{first['id']}/content")
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "video_expired")
    assert studio.http.get(f"/v1/videos/{second['id']}/content").status_code == 200
    again = studio.make(prompt="a cat", seed=1, **FAST)  # its twin has no files: it is made anew
    assert again["sha256"] == first["sha256"]


def test_another_version_of_the_table_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    store = JobStore(url)
    with store._write() as session:
        session.connection().exec_driver_sql("UPDATE studio_meta SET value = '99'")
    store.close()
    with pytest.raises(UserError, match="version 99"):
        JobStore(url)
    for wrong in ("nonsense", "mysql://x/y", f"sqlite:///{tmp_path}/absent/jobs.sqlite"):
        with pytest.raises(UserError, match="database"):
            JobStore(wrong)


class Command:
    """A separate `magicvideo studio` process."""

    def __init__(self, home, model, *options):
        command = [sys.executable, "-m", "magicvideo", "studio", "--no-page", "--port", "0"]
        command += ["--home", str(home), "--model", str(model), "--threads", "1", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = self.process.stdout.readline()
        self.url = line.split(" at ")[1].split("/ ")[0]
        self.http = httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    def workers(self):
        """Ids of its worker processes."""
        found = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid="], capture_output=True, text=True
        )
        return [int(word) for word in found.stdout.split()]

    def kill(self):
        self.http.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def stop(self):
        self.http.close()
        self.process.terminate()
        self.process.wait(120)
        self.process.stdout.close()


@pytest.fixture
def commands():
    """Servers that a test starts, ended after it."""
    started_here = []
    yield started_here
    for command in started_here:
        command.kill()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it finds processes as Linux lists them")
def test_kills_of_worker_and_server_lose_and_double_nothing(tiny_model, tmp_path, commands):
    """`benchmarks/studio_faults.py` is the long version: many kills, many clients."""
    home, random_source = tmp_path / "home", random.Random(4)
    server = Command(home, tiny_model)
    commands.append(server)
    ids = []
    for number in range(8):
        fields = {"prompt": f"a cat {number % 4}", "seed": str(number % 4), "steps": "20"}
        files = {name: (None, value) for name, value in fields.items()}
        key = {"Idempotency-Key": f"job {number}"}
        ids.append(server.http.post("/v1/videos", files=files, headers=key).json()["id"])
    assert len(set(ids)) == 8
    store = JobStore(f"sqlite:///{home / 'jobs.sqlite'}")
    until(lambda: store.counts()["running"])
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)
    until(lambda: store.counts()["completed"] >= 1)
    time.sleep(random_source.random() / 2)
    server.kill()
    server = Command(home, tiny_model)
    commands.append(server)
    until(lambda: store.counts()["completed"] == 8)
    digests = {}
    for number, name in enumerate(ids):
        content = server.http.get(f"/v1/videos/{name}/content").content
        digest = hashlib.sha256(content).hexdigest()
        assert digest == store.get(name).sha256
        assert digests.setdefault(number % 4, digest) == digest
    assert len(set(digests.values())) == 4
    server.stop()
    assert server.process.returncode == 0
    names = [path.name for path in (home / "files").iterdir()]  # a worker that ends cleans up first
    assert len(names) == 3 * 8, names
    store.close()


def test_the_parameters_survive_the_table(open_studio):
    studio = open_studio(worker=False)
    seed = 2**63 - 1
    video = studio.create(prompt="ein Fuß 🦊 שלום", seed=seed, guidance=2.5).json()
    job = studio.studio.store.get(video["id"])
    assert VideoParameters.model_validate(job.parameters).seed == seed
    assert json.loads(json.dumps(job.parameters))["prompt"] == "ein Fuß 🦊 שלום"
