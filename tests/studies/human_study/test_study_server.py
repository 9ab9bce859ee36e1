"""The pages of a study over real connections."""

import html
import http.client
import re
import socket
import sqlite3
import threading
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import av
import numpy as np
import pytest

from magicvideo.errors import UserError
from studies.human_study.results import QUESTIONS, Votes
from studies.human_study.server import serve_study

ANSWERS = {"quality": "left", "text": "same", "motion": "right"}


def get(server, path, **headers):
    with urlopen(Request(server.address + path.removeprefix("/"), headers=headers)) as answer:
        return answer.status, answer.headers, answer.read()


def page_of(server, **query):
    return get(server, f"/pair?{urlencode(query)}")[2].decode()


def post(server, fields, **headers):
    request = Request(server.address + "vote", urlencode(fields).encode(), headers)
    with urlopen(request) as answer:  # it follows to the next page
        return answer.read().decode()


def refused(call, *arguments, **options):
    with pytest.raises(HTTPError) as error:
        call(*arguments, **options)
    with error.value as answer:
        return answer.code, answer.read().decode()


def addresses(study, folder):
    return [f"/video/{name}" for name in study.videos(folder)]


def pair_on(page):
    return int(re.search(r'name="pair" value="(\d+)"', page)[1])


def videos_on(page):
    return re.findall(r'src="(/video/[^"]+)"', page)


def side_of(content, tmp_path):
    """Tell red from blue in the bytes that were served."""
    path = tmp_path / "served.mp4"
    path.write_bytes(content)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3
    red, _, blue = np.stack(frames).mean(axis=(0, 1, 2))
    return "a" if red > blue else "b"


def test_a_rater_goes_through_all_pairs(server, study, tmp_path):
    for place in range(1, 6):
        page = page_of(server, rater="Ada")
        assert f"<h1>Pair {place} of 5</h1>" in page
        pair = pair_on(page)
        assert pair == study.order("Ada")[place - 1]
        assert (
            html.unescape(re.search(r'id="prompt">(.*?)</strong>', page)[1])
            == (study.prompts[pair])
        )
        sides = [side_of(get(server, path)[2], tmp_path) for path in videos_on(page)]
        assert sides == [study.left("Ada", pair), "ab"[study.left("Ada", pair) == "a"]]
        after = post(server, ANSWERS | {"rater": "Ada", "pair": pair})
    assert "Thank you, Ada" in after
    assert "Pair 1 of 5" in page_of(server, rater="Bo")
    votes = Votes(tmp_path).of("Ada")
    assert sorted(votes) == list(range(5))
    for pair, answers in votes.items():
        left = study.left("Ada", pair)
        assert answers == {"quality": left, "text": "same", "motion": "ab"[left == "a"]}


def test_an_answer_can_be_changed(server, study, tmp_path):
    pair = study.order("Ada")[2]
    post(server, ANSWERS | {"rater": "Ada", "pair": pair})
    page = page_of(server, rater="Ada", place=3)
    checked = re.findall(r'name="(\w+)" value="(\w+)" required checked', page)
    assert dict(checked) == ANSWERS
    post(server, ANSWERS | {"rater": "Ada", "pair": pair, "quality": "right"})
    assert Votes(tmp_path).of("Ada")[pair]["quality"] != study.left("Ada", pair)
    assert len(Votes(tmp_path).all()) == 3


def test_nothing_that_is_served_reveals_a_side(server, study, telling, tmp_path):
    served = [get(server, path) for path in ("/", "/page.css", "/page.js")]
    served += [
        get(server, f"/pair?{urlencode({'rater': rater, 'place': place})}")
        for rater in ("Ada", "Bo")
        for place in range(1, 6)
    ]
    served += [get(server, path) for path in addresses(study, tmp_path)]
    everything = b"".join(str(headers).encode() + body for _, headers, body in served)
    assert [word for word in telling if word.encode().lower() in everything.lower()] == []
    assert b"a cat" in everything  # the prompt is there, so the search would find


def test_videos_contain_no_text_and_no_date(server, study, tmp_path):
    for number, path in enumerate(addresses(study, tmp_path)):
        file = tmp_path / f"{number}.mp4"
        file.write_bytes(get(server, path)[2])
        with av.open(str(file)) as container:
            assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands"}
            assert set(container.streams[0].metadata) <= {"language", "handler_name", "vendor_id"}


def test_pages_load_nothing_from_other_hosts(server):
    pages = ["/", "/page.css", "/page.js", "/pair?rater=Ada&place=2"]
    for _, headers, body in (get(server, path) for path in pages):
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
        assert not re.search(rb"https?://|@import|url\(", body)


def test_prompts_and_names_are_escaped(server, study):
    rater = "<script>alert(1)</script>"
    page = page_of(server, rater=rater, place=study.order(rater).index(3) + 1)
    assert "two &lt;b&gt;boats&lt;/b&gt;" in page
    assert "<script>alert" not in page
    assert "alert(1)" in html.unescape(page)


@pytest.mark.parametrize(
    "path",
    [
        "/study.json",
        "/votes.sqlite",
        "/video/",
        "/video/../study.json",
        "/video/../../../../../../etc/passwd",
        "/video/%2e%2e%2fstudy.json",
        "/video/..%2Fvotes.sqlite",
        "//video//etc/passwd",
        "/page.css/../../results.py",
        "/pages/pair.html",
        "/../conftest.py",
        "/video/" + "0" * 32 + ".mp4",
        "/video/\x00.mp4",
    ],
)
def test_no_path_leads_out(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection._validate_path = lambda _: None  # a browser would clean the path up
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status in (400, 404)  # 400: a path that HTTP does not allow
    assert body in (b"There is no such page.", b"Invalid HTTP request received.")
    connection.close()


@pytest.mark.parametrize("place", ["0", "6", "-1", "x", "1e3", "9" * 9, "\u0663"])
def test_an_invalid_pair_number_gives_an_error(server, place):
    code, page = refused(page_of, server, rater="Ada", place=place)
    assert code == 400
    assert "There is no" in page


def test_an_invalid_name_gives_an_error(server):
    for query in ({}, {"rater": ""}, {"rater": "x" * 41}, {"rater": "\a"}):
        code, page = refused(page_of, server, **query)
        assert code == 400
        assert "A name has 1 to 40 printable characters" in page
    assert refused(get, server, "/pair?rater=%ff")[0] == 400
    assert refused(get, server, "/pair?rater=Ada" + "&x=1" * 9)[0] == 400


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rater": ""}, "A name has"),
        ({"pair": "5"}, "There is no such pair"),
        ({"pair": "-1"}, "There is no such pair"),
        ({"pair": "0 OR 1"}, "There is no such pair"),
        ({"quality": ""}, "An answer is missing"),
        ({"motion": "a"}, "An answer is missing"),
        ({f"x{n}": "1" for n in range(9)}, "cannot be read"),
    ],
)
def test_an_invalid_form_is_not_stored(server, tmp_path, change, sentence):
    code, page = refused(post, server, ANSWERS | {"rater": "Ada", "pair": "3"} | change)
    assert code == 400
    assert sentence in page
    assert Votes(tmp_path).all() == []


def test_a_form_of_another_site_or_size_is_not_stored(server, tmp_path):
    form = ANSWERS | {"rater": "Ada", "pair": "3"}
    assert refused(post, server, form, Origin="http://elsewhere.example")[0] == 403
    assert refused(post, server, form, Host="elsewhere.example")[0] == 403
    assert refused(post, server, form | {"more": "x" * 5000})[0] == 413
    for length in ("-1", "x", "9" * 30, ""):
        assert refused(post, server, form, **{"Content-Length": length})[0] in (400, 413)
    assert Votes(tmp_path).all() == []
    own = server.address.rstrip("/")
    post(server, form, Origin=own)
    assert len(Votes(tmp_path).all()) == 3


def test_a_range_of_a_video_can_be_requested(server, study, tmp_path):
    path = addresses(study, tmp_path)[0]
    whole = get(server, path)[2]
    status, headers, piece = get(server, path, Range="bytes=7-30")
    assert (status, piece) == (206, whole[7:31])
    assert headers["Content-Range"] == f"bytes 7-30/{len(whole)}"
    assert get(server, path, Range="bytes=9-")[2] == whole[9:]
    assert get(server, path, Range="bytes=-9")[2] == whole[-9:]
    assert refused(get, server, path, Range=f"bytes={len(whole)}-")[0] == 416


def test_many_raters_vote_at_once(server, tmp_path):
    failures = []

    def rate(rater):
        try:
            for pair in range(5):
                post(server, ANSWERS | {"rater": rater, "pair": pair})
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=rate, args=(f"rater {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(Votes(tmp_path).all()) == 6 * 5 * len(QUESTIONS)


def test_an_address_in_use_gives_an_error(server, study, tmp_path):
    with pytest.raises(UserError, match="cannot be listened on"):
        serve_study(study, tmp_path, "127.0.0.1", server.port)


def test_pages_of_another_host_name_read_nothing(server):
    """A page whose name was bound to this address afterwards gets neither prompts nor videos."""
    for path in ("/", "/pair?rater=Ada", "/page.css"):
        assert refused(get, server, path, Host="evil.example")[0] == 403


def test_a_truncated_vote_is_not_stored(server, tmp_path):
    body = urlencode(ANSWERS | {"rater": "Ada", "pair": "3"}).encode()
    head = f"POST /vote HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body) + 5}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)
    assert get(server, "/")[0] == 200
    assert Votes(tmp_path).all() == []


def test_a_locked_table_gives_an_error(server, monkeypatch):
    def refuse(*_):
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(Votes, "put", refuse)
    code, sentence = refused(post, server, ANSWERS | {"rater": "Ada", "pair": "3"})
    assert (code, "send them again" in sentence) == (503, True)


def test_a_missing_video_gives_an_error(server, study, tmp_path):
    (tmp_path / "videos").unlink()
    assert refused(get, server, addresses(study, tmp_path)[0])[0] == 404


def test_with_any_address_everybody_can_vote_but_only_with_known_host_names(study, made, tmp_path):
    (tmp_path / "videos").symlink_to(made / "videos")
    running = serve_study(study, tmp_path, "0.0.0.0", 0)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        form = ANSWERS | {"rater": "Ada", "pair": "3"}
        for host in ("192.168.1.7:8000", "[fe80::1]:8000", socket.gethostname()):
            assert get(running, "/", Host=host)[0] == 200
        assert refused(post, running, form, Host="evil.example")[0] == 403
        assert Votes(tmp_path).all() == []
    finally:
        running.stop()
        thread.join()
