"""`magicvideo studio`: invalid options, and access to the server."""

from filelock import FileLock

from magicvideo.cli import run
from magicvideo.cli.studio import _access
from magicvideo.studio.config import Limits, StudioConfig, config_from_json, config_to_json


def refused(capsys, *words):
    assert run(["studio", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_invalid_tokens_are_refused(capsys, tmp_path):
    file = tmp_path / "tokens.txt"
    common = ("--home", tmp_path / "home", "--device", "cpu", "--tokens", file)
    assert "cannot be read" in refused(capsys, *common)
    file.write_text("ada short\n", encoding="utf-8")
    assert "Line 1" in refused(capsys, *common)
    file.write_text("# nobody\n\n", encoding="utf-8")
    assert "holds no client" in refused(capsys, *common)


def test_limits_that_are_not_positive_are_refused(capsys, tmp_path):
    home = ("--home", tmp_path / "home")
    assert "above 0" in refused(capsys, *home, "--job-minutes", 0)
    assert "above 0" in refused(capsys, *home, "--keep-hours", -1)


def test_two_servers_on_one_home_are_refused(capsys, tmp_path, tiny_model):
    home = tmp_path / "home"
    words = ("--home", home, "--model", tiny_model, "--port", 0, "--no-page", "--server-only")
    (home / "locks").mkdir(parents=True)
    with FileLock(home / "locks" / "server.lock"):
        assert "Another server runs" in refused(capsys, *words, "--device", "cpu")


def test_a_webhook_without_a_secret_is_refused(capsys, tmp_path, tiny_model, monkeypatch):
    monkeypatch.delenv("MAGICVIDEO_WEBHOOK_SECRET", raising=False)
    words = ("--home", tmp_path / "home", "--model", tiny_model, "--port", 0, "--no-page")
    words += ("--server-only", "--device", "cpu", "--webhook", "http://127.0.0.1:9/")
    assert "needs a secret" in refused(capsys, *words)


def test_a_token_is_made_where_others_could_reach_it(monkeypatch):
    monkeypatch.delenv("MAGICVIDEO_TOKEN", raising=False)
    assert not _access("127.0.0.1", None, []).tokens
    opened = _access("0.0.0.0", None, ["video.example"])
    assert len(opened.tokens) == 1
    assert all(len(token) >= 24 for token in opened.tokens)
    assert opened.allows_host("192.168.1.7:7860")
    assert opened.allows_host("video.example")
    assert not opened.allows_host("evil.example")
    monkeypatch.setenv("MAGICVIDEO_TOKEN", "a token of the owner's")
    assert _access("127.0.0.1", None, []).client_of_token("a token of the owner's") == "owner"


def test_settings_reach_a_worker_whole(tmp_path):
    config = StudioConfig(home=tmp_path, queue="redis://host", limits=Limits(queued_jobs=3))
    assert config_from_json(config_to_json(config)) == config
