import numpy as np
import pytest
import torch
from torch.nn import functional as F

from magicvideo.errors import UserError
from magicvideo.evaluation.prompt_sets import from_uint8, to_uint8
from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.conditioning import embed_frames
from magicvideo.models.upscaler import upsample_bicubic
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from studies.upscaler.evaluation import (
    UpscaleMethod,
    check_vae_divisible,
    crop_features,
    downsample,
    nearest_upsample,
    network_method,
    resize_methods,
    score_quality,
    with_vae_roundtrip,
)

FACTOR = 2


@pytest.fixture
def videos():
    """Blobs: what shrinking keeps, and noise: what it loses."""
    blobs = F.interpolate(torch.rand(3, 3, 7, 7) * 2 - 1, size=(36, 36), mode="bicubic")
    noise = 0.2 * torch.randn(3, 3, 36, 36)
    return [from_uint8(to_uint8(video)) for video in ((blobs + noise)[:2], (blobs + noise)[2:])]


def test_real_frames_score_best_and_resizing_scores_as_computed(pipeline, videos):
    truths = dict(enumerate(videos))
    methods = [UpscaleMethod("truth", lambda _, seed: truths[seed]), *resize_methods(pipeline)]
    done = []
    truth, bicubic, lanczos = score_quality(
        methods, pipeline.image_encoder, videos, FACTOR, done.append
    )
    assert done == [1, 2]
    assert truth.frechet == pytest.approx(0, abs=1e-9)
    assert truth.psnr.value == pytest.approx(58.92, abs=0.01)
    assert truth.ssim.value == pytest.approx(1)
    made = [methods[1].enlarge(downsample(video, FACTOR), 0) for video in videos]
    errors = [(a - b).square().mean().item() for a, b in zip(made, videos, strict=True)]
    assert bicubic.psnr.value == pytest.approx(np.mean([10 * np.log10(4 / e) for e in errors]))
    assert bicubic.psnr.count == 2
    assert 0 < bicubic.ssim.value < 1
    assert bicubic.frechet > 1e-6
    assert lanczos.frechet != bicubic.frechet
    assert min(bicubic.seconds, lanczos.seconds) > 0
    gains = lanczos.samples.compared_to(bicubic.samples)
    assert gains.psnr.value == pytest.approx(lanczos.psnr.value - bicubic.psnr.value)
    assert gains.ssim.value == pytest.approx(lanczos.ssim.value - bicubic.ssim.value)
    assert gains.frechet.value == pytest.approx(lanczos.frechet / bicubic.frechet)


def test_crops_are_taken_at_full_resolution_side_by_side(pipeline):
    video = torch.rand(2, 3, 36, 52) * 2 - 1
    found = crop_features(pipeline.image_encoder, video)
    assert found.shape == (2 * 2 * 3, 14)
    crop = video[1:, None, :, 16:32, 32:48]
    with torch.no_grad():
        expected = embed_frames(pipeline.image_encoder, crop)[0, 0].double().numpy()
    assert np.abs(found[6 + 3 + 2] - expected).max() < 1e-6
    with pytest.raises(UserError, match="smaller than the 16"):
        crop_features(pipeline.image_encoder, video[..., :15])


def test_resizing_equals_that_of_torch(pipeline):
    """Away from the frame's edges PIL's bicubic is torch's, but for the cubic's parameter."""
    assert [method.name for method in resize_methods(pipeline)] == ["bicubic", "Lanczos"]
    small = from_uint8(to_uint8(F.interpolate(torch.rand(1, 3, 4, 5), size=(12, 15))))
    for method in resize_methods(pipeline):
        made = method.enlarge(small, 0)
        assert made.shape == (1, 3, 24, 30)
        assert (made - upsample_bicubic(small, 2).clamp(-1, 1)).abs()[..., 4:-4, 4:-4].mean() < 0.03
        flat = method.enlarge(small[..., :1, :1].expand_as(small), 0)
        assert torch.equal(flat, small[..., :1, :1].expand_as(flat))


def test_the_network_output_is_8_bit_and_depends_on_seed_and_steps(pipeline):
    small = torch.rand(2, 3, 9, 11)
    one, two = network_method(pipeline, 1), network_method(pipeline, 2)
    assert (one.name, two.name) == ("network, 1 step", "network, 2 steps")
    made = one.enlarge(small, 5)
    assert made.shape == (2, 3, 18, 22)
    assert torch.equal(from_uint8(to_uint8(made)), made)
    assert torch.equal(one.enlarge(small, 5), made)
    assert not torch.equal(one.enlarge(small, 6), made)
    assert not torch.equal(two.enlarge(small, 5), made)


def test_frames_pass_through_the_autoencoder_as_one_video_first(pipeline):
    small = from_uint8(to_uint8(torch.rand(3, 3, 12, 18) * 2 - 1))
    seen = []

    def enlarge_noted(frames, seed):
        seen.append((frames, seed))
        return nearest_upsample(frames, FACTOR)

    method = UpscaleMethod("as it is", enlarge_noted)
    for noise in (0.0, 0.1, 0.1, 0.5):
        noted = with_vae_roundtrip(pipeline, method, noise)
        assert noted.name == "as it is"
        with torch.no_grad():
            assert noted.enlarge(small, 4).shape == (3, 3, 24, 36)
    (clean, seed), (little, _), (again, _), (much, _) = seen
    assert seed == 4
    with torch.no_grad():
        latents = encode_frames(pipeline.vae, small[None])
        expected = decode_latents(pipeline.vae, latents)[0]
    assert torch.equal(clean, from_uint8(to_uint8(expected)))
    assert torch.equal(little, again)
    errors = [(frames - clean).square().mean() for frames in (little, much)]
    assert 0 < 4 * errors[0] < errors[1]


def test_frames_that_the_autoencoder_cannot_take_are_refused(pipeline):
    check_vae_divisible(pipeline, 24)
    with pytest.raises(UserError, match="26 pixels wide, but this model's autoencoder requires"):
        check_vae_divisible(pipeline, 26)


def test_small_frames_are_block_means_in_8_bits():
    large = torch.full((1, 3, 4, 4), -1.0)
    large[..., 0, 0] = 1.0
    small = downsample(large, 2)
    assert torch.allclose(small[0, 2], torch.tensor([[-0.5, -1], [-1, -1]]), atol=1 / 255)
    assert torch.equal(from_uint8(to_uint8(small)), small)
    with pytest.raises(UserError, match="Frames of 4 pixels cannot be downsampled by 3"):
        downsample(large, 3)


def test_a_model_without_an_upscaler_is_refused(pipeline):
    parts = {**pipeline.components, "upscaler": None, "upscaler_scheduler": None}
    for ask in (lambda p: network_method(p, 1), resize_methods):
        with pytest.raises(UserError, match="no upscaler; name another"):
            ask(MagicVideoPipeline(**parts))
