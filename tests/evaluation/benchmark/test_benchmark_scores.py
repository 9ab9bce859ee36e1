"""Which scores get the names of the literature, for features of several sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from magicvideo.evaluation.benchmark.features import ClipFeatures, FeatureNetworks
from magicvideo.evaluation.benchmark.protocol import Statistics
from magicvideo.evaluation.benchmark.scores import frame_metric_names, score
from magicvideo.evaluation.networks.clip import CLIPEncoder
from magicvideo.evaluation.networks.extractors import I3D, Inception, ResolvedFile

CLIPS, REAL, IMAGES, CLASSES = 5, 6, 2, 3
PLAIN = {
    "covariance_divisor": "n-1",
    "neighbours": 1,
    "seed": 0,
    "resamples": 2,
    "extrapolate": False,
}


def located(name):
    return ResolvedFile(path=Path(name), name=name, sha256="0")


class NamedI3D(I3D):
    def __init__(self):
        self.located = located("i3d.pt")


class NamedInception(Inception):
    def __init__(self):
        self.located = located("inception.pt")


class SizedClip(CLIPEncoder):
    """Without weights: names follow from the settings."""

    def __init__(self, **changes):
        self.located = located("clip")
        with torch.device("meta"):  # transformers' defaults are ViT-B/32
            self._image = CLIPVisionModelWithProjection(CLIPVisionConfig(**changes))


def looks(count, seed=0, video=7, image=11, embedding=13):
    rng = np.random.default_rng(seed)
    probabilities = rng.uniform(size=(count, IMAGES, CLASSES))
    return ClipFeatures(
        videos=rng.standard_normal((count, video)),
        similarity=rng.uniform(size=count),
        change=rng.uniform(size=count),
        warping=rng.uniform(size=count),
        images=rng.standard_normal((count, IMAGES, image)),
        probabilities=probabilities / probabilities.sum(axis=2, keepdims=True),
        clip_images=rng.standard_normal((count, IMAGES, embedding)),
        attributes=[],
        sha256="0",
    )


@pytest.fixture
def figures(judge):
    """A function that scores clips of noise: name of a figure to the figure."""

    def figures(sizes=None, statistics=None, **networks):
        given = FeatureNetworks(judge=judge, **networks)
        ours, real = looks(CLIPS, 1, **(sizes or {})), looks(REAL, 2, **(sizes or {}))
        settings = Statistics.model_validate(PLAIN | (statistics or {}))
        return {figure.name: figure for figure in score(given, ours, real, settings)}

    return figures


def columns(found):
    return {name: figure.column for name, figure in found.items() if figure.column}


def test_fid_and_kid_are_of_2048_features_of_inception(figures):
    assert frame_metric_names(2048) == ("FID", "KID", "fid")
    found = figures({"image": 192}, inception=NamedInception())
    names = {name for name, figure in found.items() if figure.network.startswith("inception")}
    assert names == {*frame_metric_names(192)[:2], "Inception Score, frames"}
    assert not {"FID", "KID"} & names
    assert columns(found) == {}
    assert found["Inception Score, frames"].network == "inception.pt, 192 pooled features"


@pytest.mark.parametrize(
    ("width", "names", "column"),
    [
        (400, {"FVD", "KVD"}, {"FVD": "fvd"}),
        (401, {"Frechet distance, videos", "kernel distance, videos"}, {}),
    ],
)
def test_fvd_and_kvd_are_of_400_logits_of_i3d(figures, width, names, column):
    found = figures({"video": width}, i3d=NamedI3D())
    assert {name for name in found if name.endswith("VD") or "distance" in name} == names
    assert columns(found) == column
    assert {found[name].network for name in names} == {f"i3d.pt, {width} logits before the softmax"}


def test_a_judge_of_400_features_gives_no_fvd(figures):
    found = figures({"video": 400})
    assert not {"FVD", "KVD", "CLIPSIM"} & set(found)
    assert columns(found) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": 16},
        {"image_size": 256},
        {"hidden_size": 1024, "num_attention_heads": 16},
        {"projection_dim": 768},
    ],
)
def test_clipsim_and_clip_fid_are_of_vit_b_32(figures, changes):
    found = figures(clip=SizedClip())
    assert columns(found) == {"CLIP-FID": "clip_fid", "CLIPSIM": "clipsim"}
    others = figures(clip=SizedClip(**changes))
    assert columns(others) == {}
    assert {"Frechet distance, CLIP's frames", "cosine with the caption"} <= set(others)
    assert not {"CLIP-FID", "CLIPSIM"} & set(others)


def test_the_kernel_distance_excludes_pairs_of_frames_of_one_clip(figures):
    found = figures(inception=NamedInception())["kernel distance, frames"]
    (ours, first), (real, second) = (
        (clips.reshape(-1, clips.shape[2]), np.repeat(np.arange(len(clips)), IMAGES))
        for clips in (looks(CLIPS, 1).images, looks(REAL, 2).images)
    )
    pairs = [(1 + one @ other.T / 11) ** 3 for one, other in ((ours, ours), (real, real))]
    inner = [
        pair[at[:, None] != at].mean() for pair, at in zip(pairs, (first, second), strict=True)
    ]
    expected = sum(inner) - 2 * ((1 + ours @ real.T / 11) ** 3).mean()
    assert found.measured.value == pytest.approx(expected, rel=1e-6)
    assert found.measured.count == CLIPS


def test_the_seed_of_the_protocol_draws_resamples_halves_and_subsets(figures):
    networks = {"i3d": NamedI3D(), "inception": NamedInception(), "clip": SizedClip()}
    first, again, other = (
        figures(statistics={"seed": seed, "extrapolate": True}, **networks) for seed in (0, 0, 1)
    )
    assert first == again
    for name, figure in first.items():
        moved = other[name]
        assert figure.measured.value == moved.measured.value
        if not name.startswith(("precision", "recall")):  # Wilson's interval draws nothing
            assert figure.measured != moved.measured, name
        if "distance" in name:
            assert figure.real.value != moved.real.value, name
        if figure.extrapolated is not None:
            assert figure.extrapolated != moved.extrapolated, name
