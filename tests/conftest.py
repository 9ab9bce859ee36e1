"""Shared fixtures: seeds, and a small prepared data set of real files."""

import gc
import random
import signal
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from einops import rearrange
from jaxtyping import config

from magicvideo.data.prepare import FrameSettings, prepare
from magicvideo.data.sources import folder
from magicvideo.data.sources.synthetic import write_clips

TINY_CLIPS, TINY_SIZE = 7, 24


# Whole commands and runs call the same functions thousands of times; the other tests, and the run
# of all stages that tests of training share, call them with checks of all shapes.
UNCHECKED_SHAPES = (
    "evaluation/test_evaluate_command.py",
    "faults/",
    "flows/",
    "studies/ablations/",
    "studio/",
    "training/test_distill_stage.py",
    "training/test_dry_run.py",
    "training/test_emoji_v2.py",
    "training/test_joint_training.py",
    "training/test_lora_stage.py",
    "training/test_run.py",
    "training/test_start.py",
)


@pytest.fixture(autouse=True)
def _shape_checks(request):
    """Leave the checks of shapes out of the tests that are named above."""
    path = Path(request.node.path).relative_to(Path(__file__).parent).as_posix()
    config.update("jaxtyping_disable", path.startswith(UNCHECKED_SHAPES))
    yield
    config.update("jaxtyping_disable", False)


def pytest_collection_finish():
    """Take what importing has created, which all stays, out of the garbage collector's way."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c():
    """Let Ctrl-C arrive, also where the tests themselves run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries may draw from it)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A folder of seven small videos with captions beside them; do not write into it."""
    path = tmp_path_factory.mktemp("shapes")
    write_clips(path, TINY_CLIPS)
    return path


@pytest.fixture(scope="session")
def prepared(shapes, tmp_path_factory) -> Path:
    """The seven videos prepared at 24 pixels, none held out; do not write into it."""
    path = tmp_path_factory.mktemp("prepared") / "data"
    prepare(folder.scan(shapes), path, FrameSettings.square(TINY_SIZE))
    return path


@pytest.fixture(scope="session")
def write_video():
    """A function that writes frames `f h w 3` as a video file."""

    def write(path, frames, fps=24, codec="libx264", **options):
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream(codec, rate=fps)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder of real classes with random weights; copy it before writing into it."""
    from tiny_model import make_tiny_pipeline  # heavy, and most tests do without

    path = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def moving_square():
    """Five frames of 18x26: a red square wanders over blue."""
    pixels = np.zeros((5, 18, 26, 3), np.uint8)
    pixels[:] = (30, 60, 200)
    for index in range(5):
        pixels[index, 4:12, 2 + 3 * index : 10 + 3 * index] = (230, 40, 20)
    return rearrange(torch.from_numpy(pixels).float() / 127.5 - 1, "f h w c -> f c h w")
