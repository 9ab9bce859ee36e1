import pytest
import torch
from diffusers import AutoencoderKL
from networks import randomise

from magicvideo.errors import UserError
from magicvideo.models.autoencoder import (
    PatchAutoencoder,
    decode_latents,
    encode_frames,
    vae_scale_factor,
)
from magicvideo.models.inflate import inflate, is_temporal_key
from magicvideo.models.video_vae import (
    VideoPatchAutoencoder,
    freeze_encoder,
    inflate_autoencoder,
)
from magicvideo.rng import StackedGenerator

VIDEOS, FRAMES, CHANNELS, HEADS, REACH = 2, 7, 5, 2, 4
HEIGHT, WIDTH, CHANGED = 12, 24, 3


def make_patch():
    return PatchAutoencoder(
        latent_channels=CHANNELS,
        patch_size=4,
        widths=(6, 10),
        encoder_layers=(1, 2),
        decoder_layers=(3, 2),
        norm_num_groups=2,
        scaling_factor=0.7,
    )


def make_kl():
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 6, 8),
        latent_channels=CHANNELS,
        norm_num_groups=2,
        scaling_factor=0.7,
    )


@pytest.fixture(params=[make_patch, make_kl], ids=["patch", "kl"])
def image(request):
    return randomise(request.param())


@pytest.fixture
def fresh(image):
    return inflate_autoencoder(image, HEADS, REACH).eval()


@pytest.fixture
def video(fresh):
    """With temporal layers that have an effect."""
    return randomise(fresh)


def latents():
    return torch.randn(VIDEOS, FRAMES, CHANNELS, HEIGHT // 4, WIDTH // 4) * 0.3


def frame_by_frame(frames):
    return torch.stack([frames[:, [place]] for place in range(frames.shape[1])])


@torch.no_grad()
def test_starts_as_the_image_autoencoder(image, fresh):
    frames = torch.rand(VIDEOS, FRAMES, 3, HEIGHT, WIDTH, dtype=torch.double) * 2 - 1
    code = latents().double() / 0.7
    image.double(), fresh.double()  # where equal means equal
    for one in code:
        expected = image.decode(one).sample
        for num_frames in (1, FRAMES):
            made = fresh.decode(one, num_frames).sample
            torch.testing.assert_close(made, expected, atol=1e-13, rtol=0)
    assert torch.equal(encode_frames(fresh, frames), encode_frames(image, frames))
    assert vae_scale_factor(fresh) == vae_scale_factor(image) == 4


@torch.no_grad()
def test_a_frame_depends_on_earlier_frames_in_the_window_and_never_on_later_ones(video):
    code = latents()[0]
    changed = code.clone()
    changed[CHANGED] += torch.randn_like(code[CHANGED])
    moved = video.decode(code, FRAMES).sample - video.decode(changed, FRAMES).sample
    moved = moved.abs().amax(dim=(1, 2, 3))
    assert moved[:CHANGED].max() == 0
    assert moved[CHANGED:].min() > 1e-6
    # through two layers the change travels twice as far; each alone stops at its reach
    video.temporal_up.to_out.weight.zero_()
    code, changed = (torch.cat([part, code]) for part in (code, changed))
    moved = video.decode(code, 2 * FRAMES).sample - video.decode(changed, 2 * FRAMES).sample
    moved = moved.abs().amax(dim=(1, 2, 3))
    assert moved[CHANGED : CHANGED + REACH].min() > 1e-6
    assert moved[CHANGED + REACH :].max() == 0


@torch.no_grad()
def test_both_temporal_layers_have_an_effect(video):
    code = latents()[0]
    before = video.decode(code, FRAMES).sample
    for layer in (video.temporal_mid, video.temporal_up):
        weights = layer.to_out.weight.clone()
        layer.to_out.weight.zero_()
        assert (video.decode(code, FRAMES).sample - before).abs().max() > 1e-3
        layer.to_out.weight.copy_(weights)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 16])
@torch.no_grad()
def test_the_chunk_size_does_not_change_the_result(video, chunk):
    code = latents()
    whole = decode_latents(video, code, FRAMES)
    torch.testing.assert_close(decode_latents(video, code, chunk), whole, atol=1e-5, rtol=0)
    # double precision tells rounding from dependence
    video.double()
    exact = decode_latents(video, code.double(), FRAMES)
    windows = decode_latents(video, code.double(), chunk)
    torch.testing.assert_close(windows, exact, atol=1e-13, rtol=0)
    assert exact.std() > 0.1


@torch.no_grad()
def test_videos_are_independent_and_clamped(video):
    code = latents()
    frames = decode_latents(video, code, 3)
    assert frames.shape == (VIDEOS, FRAMES, 3, HEIGHT, WIDTH)
    for one, expected in zip(code, frames, strict=True):
        alone = video.decode(one / 0.7, FRAMES).sample.clamp(-1, 1)
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
    together = video.decode(code.flatten(0, 1) / 0.7, FRAMES).sample.clamp(-1, 1)
    torch.testing.assert_close(together, frames.flatten(0, 1), atol=1e-5, rtol=0)
    assert decode_latents(video, code * 100).abs().max() == 1


@torch.no_grad()
def test_a_call_leaves_no_state_on_the_network(video):
    code = latents()
    before = {name: sorted(vars(module)) for name, module in video.named_modules()}
    first = decode_latents(video, code, 2)
    decode_latents(video, code.flip(1), 3)
    assert torch.equal(decode_latents(video, code, 2), first)
    assert {name: sorted(vars(module)) for name, module in video.named_modules()} == before


def test_the_cache_is_not_longer_than_the_window(video):
    memory = None
    with torch.no_grad():
        for code in frame_by_frame(latents()[:1]):
            _, memory = video.decode_chunk(code[0] / 0.7, 1, memory)
    for keys, values in memory:
        assert keys.shape == values.shape
        assert keys.shape[2] == REACH - 1


@torch.no_grad()
def test_the_forward_pass_decodes_a_sample_of_the_posterior(video):
    x = torch.rand(VIDEOS * FRAMES, 3, HEIGHT, WIDTH) * 2 - 1
    made, mean = video(x, StackedGenerator([torch.Generator().manual_seed(3)]), FRAMES)
    posterior = video.encode(x).latent_dist
    code = posterior.sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(made, video.decode(code, FRAMES).sample)
    assert torch.equal(mean, posterior.mean)
    assert (code - mean).abs().max() > 0.01


def test_every_tensor_is_copied_or_new(image, fresh):
    other = type(fresh).from_config(fresh.config)
    inflation = inflate(other, image.state_dict())
    assert sorted(inflation.copied) == sorted(image.state_dict())
    assert sorted(inflation.copied + inflation.new) == sorted(other.state_dict())
    assert {name.split(".")[0] for name in inflation.new} == {"temporal_mid", "temporal_up"}
    for name in inflation.copied:
        assert torch.equal(other.state_dict()[name], image.state_dict()[name])
        assert not is_temporal_key(name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda weights: weights | {"decoder.extra": torch.zeros(2)},
            "decoder.extra .* not exist",
        ),
        (
            lambda weights: weights | {"encoder.odd": torch.zeros(2)},
            "encoder.odd .* not exist",
        ),
        (lambda weights: dict(list(weights.items())[1:]), "image network lacks"),
    ],
    ids=["foreign", "foreign in the encoder", "missing"],
)
def test_a_refusal_of_other_weights_names_the_tensor(image, fresh, spoil, message):
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(UserError, match=message):
        inflate(fresh, spoil(dict(image.state_dict())))
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())


@torch.no_grad()
def test_loads_from_the_folder_it_was_saved_to(video, tmp_path):
    video.save_pretrained(tmp_path)
    again = type(video).from_pretrained(tmp_path)
    assert again.config.temporal_heads == HEADS
    assert again.config.temporal_window_size == REACH
    assert again.config.scaling_factor == 0.7
    code = latents()
    assert torch.equal(decode_latents(again, code, 2), decode_latents(video, code, 2))


def test_the_encoder_is_left_out_of_training(video):
    freeze_encoder(video)
    trained = {name for name, p in video.named_parameters() if p.requires_grad}
    held = {name.split(".")[0] for name, _ in video.named_parameters() if name not in trained}
    theirs = {"encoder", "encoder_linear", "quant_conv"}
    assert held == theirs & {name.split(".")[0] for name, _ in video.named_parameters()}
    video(torch.rand(FRAMES, 3, HEIGHT, WIDTH), StackedGenerator([torch.Generator()]), FRAMES)[
        0
    ].sum().backward()
    assert {name for name, p in video.named_parameters() if p.grad is not None} == trained


def test_errors_name_the_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="channels=10 is not a multiple of num_heads=3"):
        inflate_autoencoder(make_patch(), 3, REACH)
    with pytest.raises(ValueError, match="window_size=0"):
        inflate_autoencoder(make_kl(), HEADS, 0)
    with pytest.raises(ValueError, match=r"decoder_layers=\(0, 2\): the first"):
        VideoPatchAutoencoder(decoder_layers=(0, 2))
