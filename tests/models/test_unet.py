import pytest
import torch
from networks import FRAMES, SMALL, TOKENS, VIDEOS, make_inputs, make_unet

from magicvideo.models.inflate import is_temporal_key
from magicvideo.models.unet import VideoUNet


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(5)
    return make_unet()


def moved_by_changing(network, frame):
    """How far each frame of the output moves when one frame of the input is replaced."""
    latents, *given = make_inputs()
    changed = latents.clone()
    changed[:, frame] = torch.randn_like(changed[:, frame])
    with torch.no_grad():
        moved = network(latents, *given).sample - network(changed, *given).sample
    return moved.abs().amax(dim=(0, 2, 3, 4))


@pytest.mark.parametrize("frame", range(FRAMES))
def test_a_changed_frame_does_not_change_earlier_frames(unet, frame):
    moved = moved_by_changing(unet, frame)
    assert moved[frame:].min() > 1e-4
    assert moved[:frame].tolist() == [0.0] * frame  # to the last bit


@pytest.mark.parametrize("mode", ["post_softmax_mask", "bidirectional"])
def test_other_modes_change_earlier_frames(mode):
    assert moved_by_changing(make_unet(temporal_attention=mode), 3).min() > 1e-5


def test_without_temporal_attention_frames_are_independent():
    moved = moved_by_changing(make_unet(temporal_attention="none"), 3)
    assert moved[3] > 0.1
    moved[3] = 0
    assert moved.max() == 0


@torch.no_grad()
def test_each_frame_can_have_its_own_timestep(unet):
    """Equal timesteps equal a common one; a frame's own timestep changes it and later frames."""
    latents, timestep, tokens, fps = make_inputs()
    together = unet(latents, timestep, tokens, fps).sample
    each = timestep[:, None].repeat(1, FRAMES)
    torch.testing.assert_close(unet(latents, each, tokens, fps).sample, together, atol=1e-5, rtol=0)
    each[:, 3] = 0
    moved = (unet(latents, each, tokens, fps).sample - together).abs().amax(dim=(0, 2, 3, 4))
    assert moved[:3].max() == pytest.approx(0, abs=1e-5)
    assert moved[3:].min() > 1e-4


@pytest.mark.parametrize("given", [1, 2, 4])
@torch.no_grad()
def test_later_frames_with_a_cache_of_given_frames_equal_the_uncached_ones(given):
    torch.manual_seed(11)
    unet = make_unet(motion_condition=True)
    latents, timestep, tokens, fps = make_inputs()
    motion = torch.tensor([0.7, float("nan")])
    each = timestep[:, None].repeat(1, FRAMES)
    each[:, :given] = 0
    whole = unet(latents, each, tokens, fps, motion=motion).sample
    cache = unet.cache_frames(latents[:, :given], tokens, fps, motion)
    later = unet(latents[:, given:], timestep, tokens, fps, motion=motion, past=cache).sample
    torch.testing.assert_close(later, whole[:, given:], atol=2e-5, rtol=0)
    second = slice(1, 2)
    alone = unet(
        latents[second, given:],
        timestep[second],
        tokens[second],
        fps[second],
        motion=motion[second],
        past=cache.select_videos(second, VIDEOS),
    ).sample
    torch.testing.assert_close(alone, later[second], atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="at most"):
        unet(latents, timestep, tokens, fps, past=cache)


@pytest.mark.parametrize(
    "changes", [{"temporal_attention": "bidirectional"}, {"convolutions": "3d"}]
)
def test_frames_that_depend_on_later_ones_are_not_cached(changes):
    latents, _, tokens, fps = make_inputs()
    with pytest.raises(ValueError, match="computed once"):
        make_unet(**changes).cache_frames(latents, tokens, fps)


@torch.no_grad()
def test_a_motion_score_is_a_condition_that_may_be_unknown():
    torch.manual_seed(9)
    network = make_unet(motion_condition=True)
    inputs = make_inputs()
    unknown = network(*inputs).sample
    mixed = network(*inputs, motion=torch.tensor([float("nan"), 1.5])).sample
    torch.testing.assert_close(mixed[0], unknown[0], atol=1e-5, rtol=0)
    assert (mixed[1] - unknown[1]).abs().max() > 1e-3
    other = network(*inputs, motion=torch.tensor([float("nan"), -0.5])).sample
    assert (mixed[1] - other[1]).abs().max() > 1e-3
    fresh = VideoUNet(**SMALL, motion_condition=True)
    moved = fresh(*inputs, motion=torch.tensor([0.3, 1.5])).sample
    assert torch.equal(fresh(*inputs).sample, moved)


def test_a_motion_score_needs_its_embedding(unet):
    with pytest.raises(ValueError, match="motion_condition"):
        unet(*make_inputs(), motion=torch.tensor([0.0, 1.0]))


@torch.no_grad()
def test_a_longer_video_starts_with_the_shorter_one(unet):
    latents, *given = make_inputs()
    shorter = unet(latents[:, :3], *given).sample
    torch.testing.assert_close(unet(latents, *given).sample[:, :3], shorter, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_video_does_not_depend_on_its_batch(unet):
    latents, timestep, tokens, fps = make_inputs()
    together = unet(latents, timestep, tokens, fps).sample
    for i in range(VIDEOS):
        one = slice(i, i + 1)
        alone = unet(latents[one], timestep[one], tokens[one], fps[one]).sample
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_output_depends_on_timestep_condition_and_frame_rate(unet):
    latents, timestep, tokens, fps = make_inputs()
    made = unet(latents, timestep, tokens, fps).sample
    for other in (
        unet(latents, timestep - 5, tokens, fps).sample,
        unet(latents, timestep, tokens.flip(2), fps).sample,
        unet(latents, timestep, tokens, fps + 5).sample,
    ):
        assert (other - made).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3


@torch.no_grad()
def test_initially_the_frame_rate_has_no_effect():
    latents, timestep, tokens, fps = make_inputs()
    fresh = VideoUNet(**SMALL)
    made = fresh(latents, timestep, tokens, fps).sample
    assert torch.equal(fresh(latents, timestep, tokens, fps + 5).sample, made)


@torch.no_grad()
def test_equal_tokens_count_as_one(unet):
    latents, timestep, tokens, fps = make_inputs()
    one = tokens[:, :1]
    expected = unet(latents, timestep, one, fps).sample
    made = unet(latents, timestep, one.expand(-1, TOKENS, -1), fps).sample
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_every_parameter_learns(unet):
    inputs = make_inputs()
    unet(*inputs).sample.square().mean().backward()
    assert [name for name, p in unet.named_parameters() if p.grad.abs().max() == 0] == []


def test_temporal_layers_have_gradients_from_the_first_step():
    """Zero initialisation must not block the gradient of the last layer."""
    fresh = VideoUNet(**SMALL)
    fresh(*make_inputs()).sample.square().mean().backward()
    gradients = {
        name: p.grad.abs().max() for name, p in fresh.named_parameters() if is_temporal_key(name)
    }
    still = [name for name, largest in gradients.items() if largest == 0]
    assert all(
        name.endswith(("to_qkv.weight", "temporal.norm.weight", "temporal.norm.bias"))
        or name.startswith("fps_embedding.linear_1")
        for name in still
    ), still


@torch.no_grad()
def test_memory_order_changes_nothing():
    network, inputs = make_unet(), make_inputs()
    expected = network(*inputs).sample
    network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(*inputs).sample, expected, atol=1e-5, rtol=0)


def test_loads_from_the_folder_it_was_saved_to(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    again, inputs = VideoUNet.from_pretrained(tmp_path), make_inputs()
    assert again.config.num_frames == FRAMES
    with torch.no_grad():
        assert torch.equal(again(*inputs).sample, unet(*inputs).sample)


def test_refuses_a_video_that_is_too_long(unet):
    with pytest.raises(ValueError, match="the video has 6 frames and the network at most 5"):
        unet(*make_inputs(frames=FRAMES + 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, "down_block_types .*'AttnDown"),
        ({"up_block_types": ("UpBlock2D",)}, "up_block_types has 1 levels .* 2"),
        ({"attention_head_dim": (2, 3, 5)}, r"attention_head_dim=\(2, 3, 5\) .* 2 levels"),
        ({"attention_head_dim": 5}, "channels=8 is not a multiple of num_heads=5"),
    ],
)
def test_errors_name_the_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        VideoUNet(**{**SMALL, **changes})


@torch.no_grad()
def test_without_adaptors_shared_layers_treat_all_frames_equally():
    """With one frame repeated and no attention along time, only adaptors make frames differ."""
    latents, *given = make_inputs()
    still = latents[:, :1].expand_as(latents)
    plain = make_unet(temporal_attention="none", frame_adaptor=False)(still, *given).sample
    torch.testing.assert_close(plain[:, 1:], plain[:, :1].expand_as(plain[:, 1:]))
    adapted = make_unet(temporal_attention="none")(still, *given).sample
    assert (adapted[:, 1:] - adapted[:, :-1]).abs().amax(dim=(0, 2, 3, 4)).min() > 1e-2


def test_the_number_of_temporal_parameters_is_reported():
    """A scale and a shift for each frame and channel after every 3x3 convolution and transformer.

    Temporal attention: a norm, three projections without a bias and one with.
    """
    fresh, frames = VideoUNet(**SMALL), SMALL["num_frames"]
    convolutions = [
        module.out_channels
        for module in fresh.modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    transformers = [8, 12, 8, 8]  # one down, one in the middle, two up
    adaptors = 2 * frames * (sum(convolutions) + sum(transformers))
    temporal = sum(4 * c * c + 3 * c for c in transformers)
    names = {name: p.numel() for name, p in fresh.named_parameters() if is_temporal_key(name)}
    assert sum(n for name, n in names.items() if "adaptor" in name) == adaptors
    assert sum(n for name, n in names.items() if "temporal" in name) == temporal


@torch.no_grad()
def test_a_scalar_condition_applies_to_the_whole_batch(unet):
    latents, _, tokens, _ = make_inputs()
    expected = unet(latents, torch.tensor([17, 17]), tokens, torch.tensor([8.0, 8.0])).sample
    for step in (17, torch.tensor(17), torch.tensor([17]), torch.full((2, FRAMES), 17)):
        for fps in (8.0, 8, torch.tensor(8.0), torch.tensor([8.0])):
            (made,) = unet(latents, step, tokens, fps, return_dict=False)
            torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": lambda x: x.transpose(1, 2)}, "it looks like b c f h w, so transpose"),
        ({"sample": lambda x: x[0]}, "must have five axes, b f c h w"),
        ({"sample": lambda x: x[:, :, :2]}, r"axis 2 must have in_channels=3$"),
        ({"timestep": lambda x: x.repeat(2)}, r"timestep has the shape \(4,\)"),
        ({"fps": lambda x: x.repeat(2, 1)}, r"fps has the shape \(2, 2\)"),
        ({"encoder_hidden_states": lambda x: x[:1]}, "has 1 conditions and sample has 2"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_shapes_that_do_not_fit_are_named(change, message):
    names = ("sample", "timestep", "encoder_hidden_states", "fps")
    given = dict(zip(names, make_inputs(), strict=True))
    given |= {name: function(given[name]) for name, function in change.items()}
    with pytest.raises(ValueError, match=message):
        make_unet()(**given)
