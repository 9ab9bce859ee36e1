"""Encoding on a local Ray instance."""

import gc

import pytest

ray = pytest.importorskip("ray")

from magicvideo.data.workers import map_on_ray  # noqa: E402
from magicvideo.errors import UserError  # noqa: E402


@pytest.fixture
def cluster():
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    gc.collect()  # Ray leaves its processes to the collector, which warns of them


def test_a_missing_ray_cluster_is_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="No Ray cluster was found"):
        next(map_on_ray(len, ["a"], cpus=1, gpus=0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("cluster")
def test_shards_encoded_on_ray_equal_those_encoded_locally(encode_mixed, tmp_path):
    def on_ray(function, jobs):
        return map_on_ray(function, jobs, cpus=1, gpus=0)

    report = encode_mixed(tmp_path / "there", run_jobs=on_ray, clips_per_shard=4)
    assert report.missing == 0
    encode_mixed(tmp_path / "here", clips_per_shard=4)
    for path in (tmp_path / "here").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
