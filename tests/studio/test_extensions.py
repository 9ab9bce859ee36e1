"""Extended videos, and other abilities of models that continue frames."""

import io
import json
import warnings
from types import SimpleNamespace

import av
import numpy as np
import pytest
from conftest import RunningStudio
from continuing_model import make_continuing_pipeline
from PIL import Image

from magicvideo.media.video_io import to_uint8, write_pixels
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.studio.config import StudioConfig
from magicvideo.studio.engine import Engine
from magicvideo.studio.page import Page
from magicvideo.studio.security import CLIENT_HEADER, LOCAL_CLIENT

openai = pytest.importorskip("openai", reason="the openai client is not installed")
FAST = {"steps": 1, "interpolation_steps": 1, "upscaler_steps": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "continuing"
    make_continuing_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def studio(model, tmp_path_factory):
    config = StudioConfig(home=tmp_path_factory.mktemp("continuing"), model=model)
    running = RunningStudio(config, (Engine(model), Engine(model, device="cpu")))
    yield running
    running.close()


@pytest.fixture
def client(studio):
    # the client marks its video calls as deprecated, since its own service has ended
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with openai.OpenAI(base_url=f"{studio.url}/v1", api_key="none") as opened:
            yield opened


@pytest.fixture(scope="module")
def source(studio):
    """A finished video, and its file's content."""
    video = studio.make(prompt="a cat", seed=5, **FAST)
    return video, studio.http.get(f"/v1/videos/{video['id']}/content").content


def frames_of(content):
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def request_of(studio, video):
    return json.loads(studio.studio.store.get(video["id"]).request)["magicvideo"]


def extend(studio, content, **fields):
    """Send a file to be continued; returns the answer."""
    files = {name: (None, str(value)) for name, value in fields.items()}
    files["video"] = ("a.mp4", content, "video/mp4")
    return studio.http.post("/v1/videos/extensions", files=files)


def test_the_client_extends_a_video_by_its_id(client, source, model, tmp_path):
    video, content = source
    made = client.videos.extend(
        prompt="a dog",
        seconds="1",
        video=openai.omit,  # the client knows the id's type, and refuses it among the files
        extra_body={"video": {"id": video["id"]}},
    )
    done = client.videos.poll(made.id, poll_interval_ms=100)
    assert (done.status, done.prompt, done.error) == ("completed", "a dog", None)
    assert done.extended_from_video_id == video["id"]
    assert done.remixed_from_video_id is None
    assert float(done.seconds) == pytest.approx(float(video["seconds"]) + 1, abs=1 / 21)
    result = client.videos.download_content(done.id).read()
    own, longer = frames_of(content), frames_of(result)
    assert len(longer) / 21 == pytest.approx(float(done.seconds), abs=1e-3)
    assert np.abs(own.astype(int) - longer[: len(own)]).mean() < 12  # they were scaled and encoded

    # the pipeline's own call makes the same file
    path = tmp_path / "source.mp4"
    path.write_bytes(content)
    called = MagicVideoPipeline.from_pretrained(model)(
        "a dog",
        extend=path,
        seconds=1,
        seed=5,
        num_inference_steps=1,
        interpolation_steps=1,
        upscaler_steps=1,
        progress=lambda *_: None,
    ).videos[0]
    written = tmp_path / "called.mp4"
    pixels = to_uint8(called.frames, called.request.output_scale)
    write_pixels(pixels, called.request.video_fps, called.request.to_json(), written)
    assert written.read_bytes() == result


def test_the_client_extends_a_file(client, source):
    _, content = source
    made = client.videos.extend(prompt="a dog", seconds="1", video=("a.mp4", content))
    assert made.prompt == "a dog"
    assert client.videos.delete(made.id).deleted


def test_an_uploaded_video_keeps_the_prompt_and_the_seed_that_it_records(studio, source):
    video, content = source
    by_id = {"video": {"id": video["id"]}, "seconds": 0.5}
    first = studio.http.post("/v1/videos/extensions", json=by_id).json()
    second = extend(studio, content, seconds=0.5, **FAST).json()
    assert (second["prompt"], second["seed"]) == ("a cat", 5)
    digests = [studio.wait(made["id"])["sha256"] for made in (first, second)]
    assert digests[0] == digests[1]
    assert second["extended_from_video_id"] is None


def test_an_extension_needs_its_source_no_more(studio):
    source = studio.make(prompt="a cat", seed=8, **FAST)
    by_id = {"video": {"id": source["id"]}, "seconds": 0.5}
    made = studio.http.post("/v1/videos/extensions", json=by_id).json()
    studio.http.delete(f"/v1/videos/{source['id']}")
    done = studio.wait(made["id"])
    assert done["status"] == "completed"
    remix = studio.http.post(f"/v1/videos/{made['id']}/remix", json={"prompt": "a dog"}).json()
    changed = studio.wait(remix["id"])  # of the same video, continued in another way
    assert (changed["status"], changed["seconds"]) == ("completed", done["seconds"])
    assert changed["sha256"] != done["sha256"]


def gif(width, height, frames=2):
    pictures = [Image.new("P", (width, height), number) for number in range(frames)]
    holder = io.BytesIO()
    pictures[0].save(holder, format="GIF", save_all=True, append_images=pictures[1:])
    return holder.getvalue()


def test_what_cannot_be_extended_is_said(studio, source, picture):
    video, content = source
    post, address = studio.http.post, "/v1/videos/extensions"
    by_id = {"video": {"id": video["id"]}}
    refused = [
        (extend(studio, picture, prompt="a"), "a picture"),
        (extend(studio, b"\x00\x00\x00\x20ftypisom" + b"x" * 100, prompt="a"), "cannot be used"),
        (extend(studio, content[: len(content) // 2], prompt="a"), "cannot be used"),
        (extend(studio, gif(2000, 2000), prompt="a"), "pixels a frame"),
        (extend(studio, content, seconds=30), "at most 20"),
        (extend(studio, content, fps=3), "omit the frame rate"),
        (post(address, json={"seconds": 1}), "one video"),
        (post(address, json={"video": "/etc/passwd"}), "no path"),
        (post(address, json={"video": {"id": video["id"], "url": "http://x/"}}), "no address"),
        (post(address, files={"video": (None, "http://127.0.0.1:1/a.mp4")}), "no address"),
        (post(address, files={"video[url]": (None, "file:///etc/passwd")}), "no address"),
        (post(address, json={**by_id, "steps": 0}), "steps"),
    ]
    for answer, words in refused:
        assert answer.status_code == 422, answer.text
        assert words in answer.json()["error"]["message"]
        assert "/tmp" not in answer.text
    absent = post(address, json={"video": {"id": "video_none"}})
    assert (absent.status_code, absent.json()["error"]["code"]) == (404, "video_not_found")
    waiting = studio.create(prompt="a cat", steps=1000, seed=1).json()
    early = post(address, json={"video": {"id": waiting["id"]}})
    assert (early.status_code, early.json()["error"]["code"]) == (400, "video_not_ready")
    studio.http.delete(f"/v1/videos/{waiting['id']}")


def test_seconds_beyond_one_window_are_continued(studio):
    assert studio.studio.engine.seconds_of() < 1
    done = studio.make(prompt="a cat", seconds=2, seed=1, stages="keyframes", steps=1)
    assert float(done["seconds"]) == pytest.approx(2, abs=1 / 7)
    assert request_of(studio, done)["num_frames"] == 14
    long = studio.create(prompt="a cat", seconds=21)
    assert long.status_code == 422
    assert "at most 20.0 seconds" in long.json()["error"]["message"]


def test_a_picture_is_the_first_frame(studio, picture):
    files = {name: (None, str(value)) for name, value in {"prompt": "a cat", **FAST}.items()}
    files["input_reference"] = ("me.png", picture, "image/png")
    done = studio.wait(studio.http.post("/v1/videos", files=files).json()["id"])
    request = request_of(studio, done)
    assert request["first_frame"] is not None
    assert request["image_condition"] is None


def labels_of(studio):
    """Labels of the page's visible components."""
    parts = Page(studio).build().get_config_file()["components"]
    shown = [part["props"] for part in parts if part["props"].get("visible", True)]
    return {props["label"] for props in shown if props.get("label")}


# Gradio leaves event loops of its own for the garbage collector to close
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("_close_event_loops")
def test_the_page_offers_what_the_model_can_do(studio, shared, source):
    assert {"Motion", "Choose the motion"} <= labels_of(studio.studio)
    assert not {"Motion", "Choose the motion"} & labels_of(shared.studio)
    video, _ = source
    page, request = Page(studio.studio), SimpleNamespace(headers={CLIENT_HEADER: LOCAL_CLIENT})
    gallery = page._look("", [], 24, "", request)[0]
    assert 'data-action="extend"' in gallery
    press = SimpleNamespace(_data={"action": "extend", "id": video["id"]})
    *_, (shown, longer) = page._act([], press, request)
    assert shown == video["id"]
    done = studio.wait(longer)
    assert done["extended_from_video_id"] == video["id"]
    assert float(done["seconds"]) > float(video["seconds"])


def test_motion_is_taken_by_models_that_learned_it(studio, shared):
    calm, lively = (
        studio.make(prompt="a cat", seed=2, stages="keyframes", steps=1, motion=motion)
        for motion in (-1, 1.5)
    )
    assert request_of(studio, lively)["motion"] == 1.5
    assert calm["sha256"] != lively["sha256"]
    refused = shared.create(prompt="a cat", motion=1)
    assert refused.status_code == 422
    assert "without a motion score" in refused.json()["error"]["message"]
