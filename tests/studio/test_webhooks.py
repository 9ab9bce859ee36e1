"""Events of finished videos: signed as the official client expects, and sent until accepted."""

import http.server
import threading
import warnings

import pytest

from magicvideo.errors import UserError
from magicvideo.studio.webhooks import Webhook

SECRET = "whsec_" + "c2VjcmV0LW9mLXRoaXJ0eS10d28tYnl0ZXMtaGVyZSE="


@pytest.fixture
def receiver():
    """A server that refuses the first event and records all events."""
    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((dict(self.headers), body))
            self.send_response(500 if len(got) == 1 else 204)
            self.end_headers()

        def log_message(self, *_):
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", got
        server.shutdown()
        thread.join()


def test_events_arrive_signed_and_again_until_accepted(open_studio, receiver):
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    url, got = receiver
    studio = open_studio()
    done = studio.make(prompt="a cat", seed=1, steps=1, stages="keyframes")
    failed = studio.create(prompt="a cat", seed=2, steps=400, stages="keyframes").json()["id"]
    studio.http.post(f"/v1/videos/{failed}/cancel")
    studio.wait(failed)
    store, webhook = studio.studio.store, Webhook(url, SECRET)
    webhook.send_all(store)
    assert len(got) == 2
    webhook.send_all(store)
    assert len(got) == 2  # the refused one waits a little
    store.postpone_notice(done["id"], -1.0)
    webhook.send_all(store)
    webhook.send_all(store)
    assert len(got) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
        events = [client.webhooks.unwrap(body, headers) for headers, body in got]
    kinds = {(event.type, event.data.id) for event in events}
    assert kinds == {("video.completed", done["id"]), ("video.failed", failed)}


def test_an_absent_receiver_is_tried_less_and_less_and_given_up(open_studio):
    studio = open_studio()
    done = studio.make(prompt="a cat", seed=1, steps=1, stages="keyframes")
    store, webhook = studio.studio.store, Webhook("http://127.0.0.1:9/none", SECRET)
    waits = []
    while store.open_notices():
        webhook.send_all(store)
        job = store.get(done["id"])
        waits.append(job.notice_at)
        store.postpone_notice(done["id"], -1.0) if not job.notified else None
        assert len(waits) < 20
    assert store.get(done["id"]).notified


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_%%%"])
def test_a_weak_secret_is_refused(secret):
    with pytest.raises(UserError, match="secret"):
        Webhook("http://127.0.0.1/", secret)


def test_other_addresses_are_refused():
    with pytest.raises(UserError, match="not an http"):
        Webhook("file:///etc/passwd", SECRET)
