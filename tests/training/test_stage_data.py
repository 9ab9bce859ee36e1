"""The clips that a stage uses if some or all have no caption."""

import shutil

import pytest
from tiny_recipe import tiny_values

from magicvideo.data.manifest import read_manifest, write_manifest
from magicvideo.errors import UserError
from magicvideo.training.loader import open_frames
from magicvideo.training.recipe import Recipe
from magicvideo.training.resolve import plan_stage


def frame_dataset(recipe, name):
    return open_frames(plan_stage(recipe, name).data, name)


@pytest.fixture
def told(prepared, tmp_path):
    """A function that gives a recipe on clips of which only some keep their captions."""

    def told(ids):
        folder = shutil.copytree(prepared, tmp_path / "data")
        clips = [
            clip if clip.id in ids else clip.model_copy(update={"text": None})
            for clip in read_manifest(folder)
        ]
        write_manifest(folder, clips)
        return Recipe.model_validate(tiny_values(folder, tmp_path / "run"))

    return told


def ids_of(dataset):
    return [clip.id for clip in dataset.clips]


def test_a_clip_without_a_caption_is_unconditional_and_not_used_for_matching(told, prepared):
    train = [clip.id for clip in read_manifest(prepared) if clip.split == "train"]
    recipe = told(train[1:3])
    assert ids_of(frame_dataset(recipe, "clip")) == train[1:3]
    for name in ("image", "unsupervised", "keyframes", "autoencoder"):
        assert ids_of(frame_dataset(recipe, name)) == train
    assert [clip.has_caption for clip in frame_dataset(recipe, "image").clips][:3] == [
        False,
        True,
        True,
    ]


def test_stages_with_text_refuse_data_without_captions(told):
    recipe = told(())
    for name in ("image", "keyframes"):
        with pytest.raises(
            UserError, match=f"Stage {name} is conditioned on text, but no training"
        ):
            frame_dataset(recipe, name)
    with pytest.raises(UserError, match="no clip with a caption in train"):
        frame_dataset(recipe, "clip")
    assert (
        len(frame_dataset(recipe, "unsupervised"))
        == len(frame_dataset(recipe, "interpolation"))
        > 0
    )
