import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from magicvideo.data.backgrounds import (
    COLOURS,
    DIRECTIONS,
    Background,
    nearest_colour,
    render_background,
)
from magicvideo.data.dataset import ClipDataset, collate, composite_background
from magicvideo.data.manifest import ClipRecord, DatasetInfo, write_info, write_manifest
from magicvideo.data.prepare import _write_array
from magicvideo.errors import UserError

FRAMES, SIZE = 19, 8


@pytest.fixture
def folder(tmp_path):
    """Two clips: `glass`, transparent, and `wall`, opaque; frame k has the value 10 k."""
    (tmp_path / "clips").mkdir()
    clips = []
    for name, channels in (("glass", 4), ("wall", 3)):
        pixels = np.zeros((FRAMES, SIZE, SIZE, channels), np.uint8)
        pixels[..., :3] = 10 * np.arange(FRAMES)[:, None, None, None]
        if channels == 4:
            pixels[..., 3] = pixels[..., 0]
        _write_array(tmp_path / f"clips/{name}.npy", pixels)
        clips.append(
            ClipRecord(
                id=name,
                file=f"clips/{name}.npy",
                frames=FRAMES,
                fps=12,
                channels=channels,
                split="train" if channels == 4 else "heldout",
                loops=False,
                sha256="0",
                text=f"a {name}",
            )
        )
    info = DatasetInfo(
        source="test", origin="here", height=SIZE, width=SIZE, licence="none", split_rule="none"
    )
    write_info(tmp_path, info)
    write_manifest(tmp_path, clips)
    return tmp_path


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from(sorted(COLOURS)))
def test_compositing_equals_that_of_pillow(seed, colour):
    rng = np.random.default_rng(seed)
    straight = rng.integers(0, 256, (3, 5, 5, 4), dtype=np.uint8)
    premultiplied, expected = [], []
    for frame in straight:
        picture = Image.fromarray(frame)
        premultiplied.append(np.asarray(picture.convert("RGBa")))
        behind = Image.new("RGBA", picture.size, (*COLOURS[colour], 255))
        expected.append(np.asarray(Image.alpha_composite(behind, picture))[..., :3])
    composed = composite_background(np.stack(premultiplied), Background(colour))
    in_bytes = (composed + 1) * 127.5
    difference = in_bytes.permute(0, 2, 3, 1) - torch.from_numpy(np.stack(expected)).float()
    assert difference.abs().max() <= 2  # Pillow rounds twice


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_gradient_is_unchanged_behind_transparent_pixels(direction):
    background = Background("blue", "pink", direction)
    frames = composite_background(np.zeros((2, 7, 7, 4), np.uint8), background)
    expected = torch.from_numpy(render_background(background, 7, 7) / 127.5 - 1).permute(2, 0, 1)
    torch.testing.assert_close(frames, expected.expand(2, 3, 7, 7))


def test_opaque_frames_are_only_rescaled():
    pixels = np.arange(2 * 5 * 5 * 3, dtype=np.uint8).reshape(2, 5, 5, 3)
    frames = composite_background(pixels, None)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(frames, expected)


def test_a_sample_is_the_frames_at_its_rate(folder):
    dataset = ClipDataset(folder, ("heldout",))
    strides = set()
    for seed in range(30):
        sample = dataset.sample(0, np.random.default_rng(seed), num_frames=5, strides=(2, 4))
        values = ((sample.frames[:, 0, 3, 4] + 1) * 127.5).round() / 10
        (stride,) = set(values.diff().int().tolist())
        assert sample.fps == 12 / stride
        assert sample.frames.shape == (5, 3, SIZE, SIZE)
        strides.add(stride)
    assert strides == {2, 3, 4}


def test_a_sample_is_a_function_of_its_random_numbers(folder):
    dataset = ClipDataset(folder)
    one, same, other = (
        dataset.sample(0, np.random.default_rng(seed), num_frames=3) for seed in (5, 5, 6)
    )
    assert torch.equal(one.frames, same.frames)
    assert (one.caption, one.fps) == (same.caption, same.fps)
    assert not torch.equal(one.frames, other.frames)


def test_a_background_can_be_selected_and_is_named(folder):
    dataset = ClipDataset(folder, ("train", "heldout"))
    assert [clip.id for clip in dataset.clips] == ["glass", "wall"]
    rng = np.random.default_rng(0)
    glass = dataset.sample(
        0, rng, num_frames=FRAMES, strides=(1, 1), background="lime", caption_style="plain"
    )
    assert glass.caption == "a glass, lime background"
    assert nearest_colour((glass.frames[0, :, 2, 2] + 1) * 127.5) == "lime"  # frame 0 is all glass
    wall = dataset.sample(1, rng, num_frames=3, background="lime", caption_style="plain")
    assert wall.caption == "a wall"


def test_clips_without_a_caption_can_be_left_out(folder):
    splits = ("train", "heldout")
    glass, wall = ClipDataset(folder, splits).clips
    write_manifest(folder, [glass.model_copy(update={"text": None}), wall])
    dataset = ClipDataset(folder, splits)
    assert [clip.has_caption for clip in dataset.clips] == [False, True]
    assert dataset.sample(0, np.random.default_rng(0), num_frames=2).caption == ""
    told = ClipDataset(folder, splits, captioned=True)
    assert [clip.id for clip in told.clips] == ["wall"]
    with pytest.raises(UserError, match="has no clip with a caption in train;"):
        ClipDataset(folder, captioned=True)


def test_an_unknown_background_is_refused(folder):
    with pytest.raises(UserError, match="'limes' is not a background colour"):
        ClipDataset(folder).sample(0, np.random.default_rng(0), num_frames=2, background="limes")


def test_batches_stack_their_samples(folder):
    dataset = ClipDataset(folder, ("train", "heldout"))
    rng = np.random.default_rng(0)
    samples = [dataset.sample(index, rng, num_frames=5) for index in (1, 0, 1)]
    batch = collate(samples)
    assert batch.frames.shape == (3, 5, 3, SIZE, SIZE)
    assert batch.clip_ids == ["wall", "glass", "wall"]
    assert batch.captions == [sample.caption for sample in samples]
    torch.testing.assert_close(batch.fps, torch.tensor([sample.fps for sample in samples]))
    assert torch.equal(batch.frames[1], samples[1].frames)


def test_a_missing_or_truncated_clip_is_named_when_the_data_set_is_opened(folder):
    path = folder / "clips/glass.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"glass\.npy is cut off"):
        ClipDataset(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"glass\.npy is missing"):
        ClipDataset(folder)


def test_a_clip_that_changes_after_the_data_set_is_opened_is_named(folder):
    dataset, path = ClipDataset(folder), folder / "clips/glass.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"glass\.npy is cut off"):
        dataset.sample(0, np.random.default_rng(0), num_frames=3)
    path.unlink()
    with pytest.raises(UserError, match=r"glass\.npy is missing"):
        dataset.sample(0, np.random.default_rng(0), num_frames=3)


def test_an_empty_split_and_an_unprepared_folder_are_refused(folder, shapes):
    write_manifest(folder, ClipDataset(folder).clips)
    with pytest.raises(UserError, match="no clip in heldout"):
        ClipDataset(folder, ("heldout",))
    with pytest.raises(UserError, match="not a prepared data set"):
        ClipDataset(shapes)


def test_every_clip_without_a_caption_is_a_separate_subject(folder):
    told = [("a dog", 2), (None, 3), ("a cat", 1)]
    clip = ClipDataset(folder).clips[0]
    clips = [
        clip.model_copy(update={"id": f"{text}{number}", "text": text})
        for text, count in told
        for number in range(count)
    ]
    write_manifest(folder, clips)
    dataset = ClipDataset(folder)
    shares = dict(
        zip([one.text for one in dataset.clips], dataset.sampling_weights(1.0), strict=True)
    )
    assert shares == {
        "a dog": pytest.approx(1 / 10),
        None: pytest.approx(1 / 5),
        "a cat": pytest.approx(1 / 5),
    }
