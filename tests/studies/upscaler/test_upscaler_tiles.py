import pytest
import torch

from magicvideo.models.upscaler import Upscaler
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from studies.upscaler.evaluation import score_tiles

SIDE = 52


class Shortsighted(Upscaler):
    """Says that it sees less far than it does, so that its tiles are too small."""

    @property
    def receptive_radius(self):
        return 1


@pytest.fixture
def frame():
    return torch.rand(1, 3, SIDE, SIDE) * 2 - 1


def test_tiles_change_only_the_last_bits(pipeline, frame):
    found = score_tiles(pipeline, frame, 2, seed=3)
    assert found.side == SIDE
    # a third of the side, and on both sides the radius, 11, all of them even
    assert found.tile == 18 + 2 * 12
    assert found.greatest < 0.01
    assert found.border == pytest.approx(found.untiled_border, abs=0.01)
    assert found.untiled_border > 10


def test_too_small_an_overlap_shows_at_tile_borders(pipeline, frame):
    upscaler = Shortsighted(**dict(pipeline.upscaler.config)).eval()
    upscaler.load_state_dict(pipeline.upscaler.state_dict())
    wrong = MagicVideoPipeline(**{**pipeline.components, "upscaler": upscaler})
    found = score_tiles(wrong, frame, 2, seed=3)
    assert found.greatest > 0.1
    assert found.border != pytest.approx(found.untiled_border, abs=0.001)


def test_frames_that_are_too_small_for_tiles_are_skipped(pipeline, frame):
    assert score_tiles(pipeline, frame[..., :30, :30], 1, seed=3) is None
