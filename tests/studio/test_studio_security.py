"""Attacks of hostile clients and pages on the server, over real connections."""

import contextlib
import io
import json
import os
import socket
import struct
import threading
import time
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

from magicvideo.errors import UserError
from magicvideo.studio.config import Limits
from magicvideo.studio.files import FileStore
from magicvideo.studio.security import Access
from magicvideo.studio.uploads import normalize_picture

TOKEN, OTHER = "correct-horse-battery", "another-client-token"


@pytest.fixture
def listener():
    """A port that counts connections."""
    counted = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        stop = threading.Event()

        def count():
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    counted.append(server.accept()[0].close())

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", counted
        stop.set()
        thread.join()


def raw(studio, data, seconds=5.0):
    """Send raw bytes and return the whole answer."""
    with socket.create_connection(("127.0.0.1", studio.port), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := connection.recv(65536):
                answer += part
                if b"\r\n\r\n" in answer and b"content-length" in answer.lower():
                    head, _, body = answer.partition(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                    if len(body) >= length:
                        break
        return answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:80"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_foreign_hosts_and_pages_are_refused(shared, headers, status):
    """A page of another site reads nothing, also after its name was bound to this address."""
    for path in ("/v1/videos", "/health", "/metrics"):
        answer = shared.http.get(path, headers=headers)
        assert answer.status_code == status, answer.text
    if status == 403 and "navigate" not in headers.values():
        post = shared.http.post("/v1/videos", json={"prompt": "a cat"}, headers=headers)
        assert post.status_code == 403


def test_its_own_page_may_post(shared):
    headers = {"Origin": shared.url}
    answer = shared.http.post("/v1/videos", json={"prompt": "a cat"}, headers=headers)
    assert answer.status_code == 200
    shared.http.delete(f"/v1/videos/{answer.json()['id']}")


def test_a_token_is_needed_and_separates_clients(open_studio):
    access = Access(tokens={TOKEN: "ada", OTHER: "bo"})
    studio = open_studio(access=access, worker=False)
    ada, bo = ({"Authorization": f"Bearer {token}"} for token in (TOKEN, OTHER))
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": TOKEN}, {"Cookie": "a=b"}):
        answer = studio.http.get("/v1/videos", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
    assert studio.http.get("/health").status_code == 200
    post = studio.http.post
    forged = {**bo, "x-magicvideo-client": "ada"}
    video = post("/v1/videos", json={"prompt": "a cat"}, headers=ada).json()["id"]
    other = post("/v1/videos", json={"prompt": "a cat"}, headers=forged).json()["id"]
    for method, path in (
        ("GET", f"/v1/videos/{video}"),
        ("DELETE", f"/v1/videos/{video}"),
        ("POST", f"/v1/videos/{video}/cancel"),
        ("GET", f"/v1/videos/{video}/content"),
        ("GET", f"/v1/videos/{video}/events"),
    ):
        assert studio.http.request(method, path, headers=bo).status_code == 404
    listed = studio.http.get("/v1/videos", headers=bo).json()["data"]
    assert [item["id"] for item in listed] == [other]
    login = studio.http.get("/", params={"token": TOKEN})
    assert (login.status_code, login.headers["location"]) == (303, "/")
    cookie = login.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert studio.http.get(f"/v1/videos/{video}").status_code == 200  # by the cookie
    wrong = httpx.get(f"{studio.url}/", params={"token": "x"}, trust_env=False)
    assert wrong.status_code == 401


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../../../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "video_x/../../../etc/passwd",
        "video_%00",
        "C:\\windows\\win.ini",
        "x" * 300,
        "~root",
    ],
)
def test_no_path_leads_out(shared, name):
    for ending in ("", "/content", "/preview", "/events"):
        head = f"GET /v1/videos/{name}{ending} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = raw(shared, head.encode("latin-1"))
        assert answer.split()[1] in (b"404", b"422", b"400", b"307", b"405"), answer[:200]
        assert b"root:" not in answer


def test_names_in_a_request_make_no_files(open_studio, picture, tmp_path):
    studio = open_studio(worker=False)
    before = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    prompts = ["../../escape", "/abs/olute", "a\u202eb", "con", "x" * 300]
    for prompt in prompts:
        files = {"prompt": (None, prompt), "input_reference": ("../../../up.png", picture)}
        assert studio.http.post("/v1/videos", files=files).status_code == 200
    after = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    assert after == before
    names = studio.studio.files.names()
    assert len(names) == len(prompts)
    assert all(name.startswith("upload_") and name.endswith(".png") for name in names)
    with pytest.raises(ValueError, match="not the name"):
        FileStore(str(tmp_path / "files")).read("../home/jobs.sqlite")


def test_no_address_in_a_request_is_opened(shared, listener):
    address, connections = listener
    sent = [
        {"input_reference": f"{address}/a.png"},
        {"input_reference": {"image_url": f"{address}/a.png"}},
        {"input_reference": "file:///etc/passwd"},
        {"lora": [f"{address}/style"]},
        {"model": f"{address}/model"},
        {"webhook": address},
    ]
    for fields in sent:
        answer = shared.http.post("/v1/videos", json={"prompt": "a cat", **fields})
        assert answer.status_code in (404, 422)
    assert connections == []


def test_a_body_of_one_byte_too_many_is_refused(open_studio):
    studio = open_studio(limits=Limits(body_bytes=50_000), worker=False)
    headers = {"content-type": "application/json"}
    body = b'{"prompt": "a cat"' + b" " * 50_000
    fits, over = body[: 50_000 - 1] + b"}", body[:50_000] + b"}"
    assert (len(fits), len(over)) == (50_000, 50_001)
    assert studio.http.post("/v1/videos", content=fits, headers=headers).status_code == 200
    assert studio.http.post("/v1/videos", content=over, headers=headers).status_code == 413

    def chunks():
        yield over[:30_000]
        yield over[30_000:]

    assert studio.http.post("/v1/videos", content=chunks(), headers=headers).status_code == 413


def bomb(side):
    """A small PNG file with huge sides, whose pixels must not be decoded."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_pictures_that_would_fill_memory_are_refused(shared, picture):
    for content, words in (
        (bomb(20_000), "pixels"),
        (bomb(60_000), "pixels"),
        (picture[:60], "picture"),
        (b"", "picture"),
        (b"\x00" * 1000, "picture"),
        (b"GIF89a" + b"\xff" * 100, "picture"),
        (b"%PDF-1.4 not an image", "picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "picture"),
    ):
        began = time.monotonic()
        files = {"prompt": (None, "a cat"), "input_reference": ("a.png", content)}
        answer = shared.http.post("/v1/videos", files=files)
        assert answer.status_code == 422, content[:20]
        assert words in answer.json()["error"]["message"]
        assert time.monotonic() - began < 30  # as many pixels would take minutes


def test_a_picture_is_kept_upright_small_and_without_metadata():
    exif = Image.Exif()
    exif[274], exif[270] = 6, "a secret place"  # turned by a quarter
    holder = io.BytesIO()
    Image.new("RGB", (4000, 1000), "red").save(holder, format="JPEG", exif=exif)
    png = normalize_picture(holder.getvalue(), most_pixels=10_000_000)
    with Image.open(io.BytesIO(png)) as kept:
        assert kept.size == (512, 2048)
        assert kept.info == {}
    assert b"secret" not in png
    with pytest.raises(UserError, match="4000x1000"):
        normalize_picture(holder.getvalue(), most_pixels=3_999_999)


def test_a_picture_of_sixteen_bits_is_kept_as_viewers_show_it():
    holder = io.BytesIO()
    Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)).save(holder, format="PNG")
    with Image.open(io.BytesIO(normalize_picture(holder.getvalue(), most_pixels=64))) as kept:
        assert kept.convert("RGB").getpixel((4, 4)) == (100, 100, 100)


def until_closed(connection):
    """Return all bytes until the other side closes the connection."""
    connection.settimeout(300)
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


def test_slow_clients_hold_no_thread_and_are_sent_away(open_studio):
    studio = open_studio(limits=Limits(receive_seconds=1.0), worker=False)
    head = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 1000\r\n\r\n{"
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(60):
            connection = socket.create_connection(("127.0.0.1", studio.port), timeout=300)
            stack.callback(connection.close)
            connection.sendall(head)
            slow.append(connection)
        assert studio.http.get("/health").status_code == 200
        assert threading.active_count() - threads <= 41  # AnyIO's pool, whatever the clients do
        assert {until_closed(connection).split()[1] for connection in slow} == {b"408"}
        assert studio.http.get("/health").status_code == 200


def test_too_many_connections_are_told(open_studio):
    studio = open_studio(limits=Limits(connections=5), worker=False)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            connection = socket.create_connection(("127.0.0.1", studio.port), timeout=10)
            stack.callback(connection.close)
        assert b"503" in raw(studio, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/videos HTTP/1.1\r\n\r\n",
        b"GET /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /v1/videos HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 400_000 + b"\r\n\r\n",
        b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_broken_requests_are_answered_and_the_server_lives(shared, data):
    answer = raw(shared, data)
    assert answer.split()[1] in (b"400", b"403", b"404", b"413", b"431"), answer[:100]
    assert shared.http.get("/health").status_code == 200


def test_files_are_served_with_headers_that_keep_them_files(shared):
    done = shared.make(prompt="<script>alert(1)</script>", seed=1, steps=1, stages="keyframes")
    answer = shared.http.get(f"/v1/videos/{done['id']}/content")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "script" not in answer.headers["content-disposition"]
    listed = shared.http.get("/v1/videos", params={"limit": 1})
    assert listed.headers["content-type"] == "application/json"


def test_the_folder_is_the_owners_alone(open_studio):
    if os.name != "posix":
        pytest.skip("permissions as POSIX has them")
    home = open_studio(worker=False).studio.config.home
    assert home.stat().st_mode & 0o077 == 0


def test_secrets_are_in_no_answer(open_studio):
    studio = open_studio(
        worker=False, settings={"webhook_secret": "whsec_c2VjcmV0c2VjcmV0c2VjcmV0"}
    )
    seen = "".join(
        studio.http.get(path).text for path in ("/openapi.json", "/metrics", "/v1/videos", "/ready")
    )
    assert "whsec" not in seen
    assert str(studio.studio.config.home) not in json.dumps(seen)
