import pytest

from magicvideo.errors import UserError
from magicvideo.evaluation.video_cache import Share, process_share


def test_a_single_process_has_all(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert process_share() == Share(0, 1)


def test_torchrun_tells_the_share(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert process_share() == Share(2, 3)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(UserError, match="RANK=3 and WORLD_SIZE=3"):
        process_share()
