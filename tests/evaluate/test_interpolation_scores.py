import numpy as np
import pytest
import torch
from tiny_model import make_tiny_pipeline

from magicvideo.errors import UserError
from magicvideo.evaluate.interpolation import (
    CEILING,
    LATENT_BLEND,
    METHODS,
    NEAREST,
    OURS,
    PIXEL_BLEND,
    interpolation_markdown,
    score_interpolation,
)
from magicvideo.generate.pipeline import MagicVideoPipeline


@pytest.fixture(scope="module")
def pipeline():
    return make_tiny_pipeline()


def score(pipeline, judge, dataset):
    done = []
    scores = score_interpolation(
        pipeline, judge, dataset, 2, num_keys=3, seed=1, on_clip=done.append
    )
    assert done == [1, 2]
    return {row.name: row for row in scores}


def test_every_method_is_scored_and_a_network_that_adds_nothing_blends(pipeline, judge, every_clip):
    with torch.no_grad():
        pipeline.interpolator.unet.conv_out.weight.zero_()
        pipeline.interpolator.unet.conv_out.bias.zero_()
        pipeline.interpolator.unet.conv_out_adaptor.shift.zero_()
    pipeline.interpolator.register_to_config(residual_scale=1e-9)
    scores = score(pipeline, judge, every_clip)
    assert tuple(scores) == METHODS
    assert scores[OURS].psnr.value == pytest.approx(scores[LATENT_BLEND].psnr.value, abs=0.2)
    assert scores[CEILING].frechet >= 0
    for row in scores.values():
        assert np.isfinite([row.psnr.value, row.ssim.value, row.frechet, row.seam]).all()
    # the nearest frame moves halfway between two keys alone
    assert scores[NEAREST].seam < 0.01
    assert scores[PIXEL_BLEND].psnr.count == 2
    text = interpolation_markdown(list(scores.values()), "# T")
    assert text.startswith("# T\n\n| between")
    assert text.count("\n| ") == 1 + len(METHODS)


def test_a_model_without_the_network_is_refused(pipeline, judge, every_clip):
    parts = {**pipeline.components, "interpolator": None}
    with pytest.raises(UserError, match="no interpolation network"):
        score(MagicVideoPipeline(**parts), judge, every_clip)
