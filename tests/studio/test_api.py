"""`/v1/videos` over real HTTP: requests and answers."""

import hashlib
import io
import json
import threading
import time

import av
import httpx
import pytest
from PIL import Image

from magicvideo.studio.config import Limits

FAST = {"steps": 1, "stages": "keyframes"}


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_video_is_made_and_can_be_fetched(shared):
    answer = shared.create(prompt="a cat", seed=5, **FAST)
    video = answer.json()
    assert answer.status_code == 200
    assert video["object"] == "video"
    assert (video["status"], video["progress"]) == ("queued", 0)
    assert int(answer.headers["openai-poll-after-ms"]) > 0
    done = shared.wait(video["id"])
    assert (done["status"], done["progress"], done["error"]) == ("completed", 100, None)
    assert done["created_at"] <= done["completed_at"]
    content = shared.http.get(f"/v1/videos/{video['id']}/content")
    assert content.headers["content-type"] == "video/mp4"
    assert hashlib.sha256(content.content).hexdigest() == done["sha256"]
    with av.open(io.BytesIO(content.content)) as container:
        stream = container.streams.video[0]
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        frames = list(container.decode(video=0))
        assert size == done["size"]
        assert float(done["seconds"]) == pytest.approx(len(frames) / stream.average_rate, abs=1e-3)
        assert json.loads(container.metadata["comment"])["magicvideo"]["seed"] == 5


def test_the_variants_are_pictures(shared):
    done = shared.make(prompt="a dog", seed=1, **FAST)
    for variant, kind in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        answer = shared.http.get(f"/v1/videos/{done['id']}/content", params={"variant": variant})
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert picture.format == kind
            assert answer.headers["content-type"] == f"image/{kind.lower()}"
    wrong = shared.http.get(f"/v1/videos/{done['id']}/content", params={"variant": "source"})
    assert error_of(wrong, 422)["param"] == "variant"


def test_ranges_of_the_file(shared):
    done = shared.make(prompt="a dog", seed=1, **FAST)
    address = f"/v1/videos/{done['id']}/content"
    whole = shared.http.get(address).content
    part = shared.http.get(address, headers={"Range": "bytes=7-30"})
    assert (part.status_code, part.content) == (206, whole[7:31])
    assert part.headers["content-range"] == f"bytes 7-30/{len(whole)}"
    assert shared.http.get(address, headers={"Range": "bytes=-9"}).content == whole[-9:]
    beyond = shared.http.get(address, headers={"Range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416
    head = shared.http.head(address)
    assert (head.headers["content-length"], head.content) == (str(len(whole)), b"")


def test_equal_requests_give_equal_bytes_and_are_made_once(shared):
    first = shared.make(prompt="a cat", seed=11, steps=2)
    second = shared.make(prompt="a cat", seed=11, steps=2)
    other = shared.make(prompt="a cat", seed=12, steps=2)
    assert first["id"] != second["id"]
    assert first["sha256"] == second["sha256"] != other["sha256"]
    assert first["timings"]
    assert second["timings"] == {}


def test_the_settings_arrive(shared, picture):
    fields = {
        "prompt": "a cat",
        "seconds": "0.5",
        "size": "48x48",
        "seed": "9",
        "steps": "2",
        "guidance": "1.5",
        "fps": "6",
        "format": "webp",
        "negative_prompt": "blue",
        "guidance_stop": "0.5",
        "model": "tiny",
    }
    files = {name: (None, value) for name, value in fields.items()}
    files["input_reference"] = ("me.png", picture, "image/png")
    answer = shared.http.post("/v1/videos", files=files)
    assert answer.status_code == 200, answer.text
    done = shared.wait(answer.json()["id"])
    assert (done["status"], done["size"], done["format"]) == ("completed", "48x48", "webp")
    request = json.loads(shared.studio.store.get(done["id"]).request)["magicvideo"]
    assert request["num_frames"] == 4  # ten frames at eighteen a second are nearest
    assert request["guidance_scale"] == 1.5
    assert request["guidance_stop"] == 0.5
    assert request["negative_prompt"] == "blue"
    assert request["image_condition"] is not None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"steps": "1"}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": "   "}, None),
        ({"prompt": "a\x00b"}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"prompt": "x" * 1_000_000}, "prompt"),
        ({"prompt": "a cat", "steps": "0"}, "steps"),
        ({"prompt": "a cat", "steps": "-1"}, "steps"),
        ({"prompt": "a cat", "steps": "1.5"}, "steps"),
        ({"prompt": "a cat", "steps": "9" * 40}, "steps"),
        ({"prompt": "a cat", "steps": "many"}, "steps"),
        ({"prompt": "a cat", "seed": "-1"}, "seed"),
        ({"prompt": "a cat", "seed": str(2**63)}, "seed"),
        ({"prompt": "a cat", "guidance": "nan"}, "guidance"),
        ({"prompt": "a cat", "guidance": "inf"}, "guidance"),
        ({"prompt": "a cat", "seconds": "4000"}, "seconds"),
        ({"prompt": "a cat", "seconds": "60"}, None),
        ({"prompt": "a cat", "seconds": "nan"}, "seconds"),
        ({"prompt": "a cat", "size": "720x1280"}, None),
        ({"prompt": "a cat", "size": "big"}, "size"),
        ({"prompt": "a cat", "frames": "6"}, None),
        ({"prompt": "a cat", "format": "exe"}, "format"),
        ({"prompt": "a cat", "scheduler": "fast"}, None),
        ({"prompt": "a cat", "scheduler": "../ddim"}, "scheduler"),
        ({"prompt": "a cat", "stages": "upscaler"}, None),
        ({"prompt": "a cat", "colour": "red"}, "colour"),
        ({"prompt": "a cat", "lora": "../../etc/passwd"}, "lora.0"),
        ({"prompt": "a cat", "lora": "style"}, None),
        ({"prompt": "a cat", "input_reference": "/etc/passwd"}, "input_reference"),
        ({"prompt": "a cat", "input_reference": "http://127.0.0.1:1/x.png"}, "input_reference"),
        (
            {"prompt": "a cat", "input_reference[image_url]": "file:///etc/passwd"},
            "input_reference",
        ),
    ],
)
def test_values_that_cannot_be_are_refused_before_any_work(shared, fields, param):
    before = shared.studio.store.counts()
    error = error_of(shared.create(**fields), 422)
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(".")
    assert error["param"] == param
    assert shared.studio.store.counts() == before


def test_bodies_that_cannot_be_read_are_refused(shared):
    post = shared.http.post
    kinds = {"content-type": "multipart/form-data"}  # without a boundary
    assert error_of(post("/v1/videos", content=b"--x\r\nnonsense", headers=kinds), 400)
    assert (
        error_of(post("/v1/videos", content=b"prompt"), 400)["code"] == "unsupported_content_type"
    )
    json_kind = {"content-type": "application/json"}
    for body in (b"{", b"[" * 100_000, b"\xff\xfe"):
        error_of(post("/v1/videos", content=body, headers=json_kind), 400)
    error_of(post("/v1/videos", content=b"[]", headers=json_kind), 422)
    error_of(post("/v1/videos", content=b'{"prompt": "\\ud800"}', headers=json_kind), 422)
    error_of(post("/v1/videos", content=b'{"prompt": "a", "steps": true}', headers=json_kind), 422)
    many = {f"field{n}": (None, "1") for n in range(60)}
    error_of(post("/v1/videos", files=many), 400)
    twice = [("prompt", (None, "a")), ("prompt", (None, "b"))]
    error_of(post("/v1/videos", files=twice), 422)


def test_json_is_read_too(shared):
    answer = shared.http.post("/v1/videos", json={"prompt": "a cat", "seed": 3, "steps": 1})
    assert answer.status_code == 200
    assert answer.json()["seed"] == 3
    shared.http.delete(f"/v1/videos/{answer.json()['id']}")


def test_unknown_models_and_videos_are_not_found(shared):
    assert error_of(shared.create(prompt="a cat", model="sora-2"), 404)["code"] == "model_not_found"
    for path in ("/v1/videos/video_none", "/v1/videos/video_none/content"):
        assert error_of(shared.http.get(path), 404)["code"] == "video_not_found"
    assert error_of(shared.http.get("/v1/nothing"), 404)
    assert error_of(shared.http.put("/v1/videos"), 405)


def test_words_beyond_the_encoder_are_told(shared):
    answer = shared.create(prompt="cat " * 40, steps=1, stages="keyframes")
    assert any("cat" in warning for warning in answer.json()["warnings"])
    shared.wait(answer.json()["id"])


def test_pages_of_the_list(open_studio):
    studio = open_studio(worker=False)
    ids = [studio.create(prompt=f"a cat {n}").json()["id"] for n in range(5)]
    first = studio.http.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in first["data"]] == [ids[4], ids[3]]
    assert (first["has_more"], first["last_id"]) == (True, ids[3])
    rest = studio.http.get("/v1/videos", params={"after": ids[3], "limit": 3}).json()
    assert [video["id"] for video in rest["data"]] == [ids[2], ids[1], ids[0]]
    assert rest["has_more"] is False
    oldest = studio.http.get("/v1/videos", params={"order": "asc", "limit": 1}).json()
    assert oldest["data"][0]["id"] == ids[0]
    error_of(studio.http.get("/v1/videos", params={"after": "video_none"}), 404)
    error_of(studio.http.get("/v1/videos", params={"limit": 0}), 422)
    positions = [studio.http.get(f"/v1/videos/{name}").json()["queue_position"] for name in ids]
    assert positions == [0, 1, 2, 3, 4]
    studio.http.delete(f"/v1/videos/{ids[1]}")
    assert studio.http.get(f"/v1/videos/{ids[4]}").json()["queue_position"] == 3


def test_an_idempotency_key_makes_one_job(open_studio):
    studio = open_studio(worker=False)
    send = studio.http.post
    key = {"Idempotency-Key": "order-1"}
    first = send("/v1/videos", json={"prompt": "a cat"}, headers=key).json()
    again = send("/v1/videos", json={"prompt": "a cat"}, headers=key).json()
    assert first["id"] == again["id"]
    other = send("/v1/videos", json={"prompt": "a dog"}, headers=key)
    assert error_of(other, 409)["code"] == "idempotency_key_reused"
    assert studio.studio.store.counts()["queued"] == 1
    answers = []

    def race():
        mine = {"Idempotency-Key": "order-2"}
        answers.append(send("/v1/videos", json={"prompt": "a cat"}, headers=mine).json()["id"])

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(set(answers)) == 1


def test_a_full_queue_and_a_greedy_client_are_answered_at_once(open_studio):
    studio = open_studio(limits=Limits(queued_jobs=3, client_jobs=2), worker=False)
    assert [studio.create(prompt="a cat").status_code for _ in range(2)] == [200, 200]
    began = time.monotonic()
    refused = studio.create(prompt="a cat")
    assert time.monotonic() - began < 10  # it waits for no worker
    assert error_of(refused, 429)["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) > 0
    assert studio.studio.store.counts()["queued"] == 2


def test_a_remix_keeps_seed_and_settings(shared):
    source = shared.make(prompt="a cat", seed=21, **FAST)
    answer = shared.http.post(f"/v1/videos/{source['id']}/remix", json={"prompt": "a dog"})
    remix = shared.wait(answer.json()["id"])
    assert remix["remixed_from_video_id"] == source["id"]
    assert (remix["prompt"], remix["seed"]) == ("a dog", 21)
    assert remix["parameters"]["steps"] == 1
    plain = shared.make(prompt="a dog", seed=21, **FAST)
    assert plain["sha256"] == remix["sha256"]


def test_unsupported_requests_are_refused_with_a_reason(shared):
    for path in ("edits", "extensions"):
        answer = shared.http.post(f"/v1/videos/{path}", files={"prompt": (None, "a cat")})
        assert error_of(answer, 400)["code"] == "unsupported_operation"


def test_a_deleted_video_is_gone(shared):
    done = shared.make(prompt="a cat", seed=31, **FAST)
    answer = shared.http.delete(f"/v1/videos/{done['id']}").json()
    assert answer == {"id": done["id"], "object": "video.deleted", "deleted": True}
    error_of(shared.http.get(f"/v1/videos/{done['id']}"), 404)
    assert not [name for name in shared.studio.files.names() if done["id"] in name]


def test_an_unfinished_video_has_no_content(open_studio):
    studio = open_studio(worker=False)
    video = studio.create(prompt="a cat").json()
    answer = studio.http.get(f"/v1/videos/{video['id']}/content")
    assert error_of(answer, 400)["code"] == "video_not_ready"


def test_sync_answers_with_the_video(shared):
    files = {name: (None, str(value)) for name, value in {"prompt": "a cat", **FAST}.items()}
    answer = shared.http.post("/v1/videos/sync", files=files)
    assert answer.status_code == 200
    assert answer.content[4:8] == b"ftyp"
    job = shared.studio.store.get(answer.headers["x-video-id"])
    assert hashlib.sha256(answer.content).hexdigest() == job.sha256


def test_a_client_that_leaves_cancels_its_sync_video(open_studio):
    studio = open_studio(worker=False)
    with pytest.raises(httpx.ReadTimeout):
        studio.http.post("/v1/videos/sync", files={"prompt": (None, "a cat")}, timeout=1.0)
    end = time.monotonic() + 10
    while studio.studio.store.counts()["cancelled"] == 0:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_events_tell_progress_and_show_previews(shared):
    video = shared.create(prompt="a woman surfing", seed=77, steps=3).json()
    events = []
    with shared.http.stream("GET", f"/v1/videos/{video['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                events.append([line.removeprefix("event: ")])
            elif line.startswith("data: "):
                events[-1].append(json.loads(line.removeprefix("data: ")))
    names = [event[0] for event in events]
    assert names[-1] == "completed"
    assert events[-1][1]["status"] == "completed"
    progress = [event[1]["progress"] for event in events if event[0] == "progress"]
    assert progress == sorted(progress)
    previews = [event[1]["image"] for event in events if event[0] == "preview"]
    assert previews
    assert all(image.startswith("data:image/webp;base64,") for image in previews)


def test_operators_see_what_goes_on(shared):
    assert shared.http.get("/health").json() == {"status": "ok"}
    assert shared.http.get("/ready").json() == {"workers": 1, "ready": True}
    shared.make(prompt="a cat", seed=5, **FAST)
    text = shared.http.get("/metrics").text
    assert 'magicvideo_jobs{state="completed"}' in text
    assert 'route="/v1/videos"' in text
    assert shared.http.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_without_a_worker_it_is_not_ready(open_studio):
    assert open_studio(worker=False).http.get("/ready").status_code == 503
