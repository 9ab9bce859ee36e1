"""The official `openai` client against the server."""

import warnings

import pytest

openai = pytest.importorskip("openai", reason="the openai client is not installed")


@pytest.fixture
def client(shared):
    # the client marks its video calls as deprecated, since its own service has ended
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none") as opened:
            yield opened


def test_create_poll_download_page_and_delete(client, picture):
    first = client.videos.create_and_poll(
        prompt="a cat",
        model="magicvideo",
        input_reference=("face.png", picture, "image/png"),
        extra_body={"seed": "4", "steps": "1", "stages": "keyframes"},
        poll_interval_ms=100,
    )
    assert (first.status, first.progress, first.error) == ("completed", 100, None)
    assert first.prompt == "a cat"
    assert client.videos.download_content(first.id).read()[4:8] == b"ftyp"
    thumbnail = client.videos.download_content(first.id, variant="thumbnail").read()
    assert thumbnail.startswith(b"RIFF")
    second = client.videos.remix(first.id, prompt="a dog")
    assert client.videos.poll(second.id, poll_interval_ms=100).status == "completed"
    assert client.videos.retrieve(second.id).remixed_from_video_id == first.id
    listed = [video.id for video in client.videos.list(limit=1)]  # it follows the pages
    assert listed[:2] == [second.id, first.id]
    for video in (first, second):
        assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(first.id)


def test_strings_as_the_client_sends_them(client):
    video = client.videos.create(prompt="a cat", seconds="0.5", size="48x48")
    assert (video.status, video.size) == ("queued", "48x48")
    client.videos.delete(video.id)


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.UnprocessableEntityError, match="size is 720x1280"):
        client.videos.create(prompt="a cat", size="720x1280")
    with pytest.raises(openai.NotFoundError) as error:
        client.videos.create(prompt="a cat", model="sora-2")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="extends no videos"):
        client.videos.extend(prompt="on", seconds="4", video=("a.mp4", b"bytes"))
    with pytest.raises(openai.BadRequestError, match="edits no videos"):
        client.videos.edit(prompt="on", video=("a.mp4", b"bytes"))
