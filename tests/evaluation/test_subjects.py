import numpy as np

from magicvideo.atomic_io import sha256
from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import write_info, write_manifest
from magicvideo.evaluation.subjects import Subjects


def test_clips_with_one_name_are_one_subject_with_the_default_tone_first(every_clip):
    subjects = Subjects(every_clip)
    names = ["bear", "boat", "man running", "thumbs up", "waving hand", "woman running"]
    assert subjects.names == names
    assert [len(members) for members in subjects.clips] == [1, 1, 4, 4, 4, 4]
    for number, members in enumerate(subjects.clips):
        assert {subjects.of_clip[index] for index in members} == {number}
        assert every_clip.clips[members[0]].attributes.skin_tone is None


def test_different_drawings_have_hard_negatives(every_clip):
    subjects = Subjects(every_clip)
    assert subjects.alike.sum() == len(subjects)
    for number, families in enumerate(subjects.rivals):
        assert all(families)
        assert all(number not in family for family in families)


def test_the_same_drawing_under_two_names_is_not_a_negative(every_clip, tmp_path):
    (tmp_path / "clips").mkdir()
    clips = []
    for number, name in enumerate(("red heart", "blue heart", "heart")):
        source = every_clip.clips[0 if number < 2 else 9]
        pixels = np.load(every_clip.folder / source.file)
        path = tmp_path / "clips" / f"{number}.npy"
        np.save(path, pixels)
        attributes = source.attributes.model_copy(
            update={"name": name, "base": name, "skin_tone": None}
        )
        clips.append(
            source.model_copy(
                update={
                    "id": str(number),
                    "file": f"clips/{number}.npy",
                    "sha256": sha256(path),
                    "split": "train",
                    "attributes": attributes,
                }
            )
        )
    write_info(tmp_path, every_clip.info)
    write_manifest(tmp_path, clips)
    subjects = Subjects(ClipDataset(tmp_path))
    assert subjects.names == ["blue heart", "heart", "red heart"]
    assert subjects.alike.tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]
    assert subjects.alike_without_colour.all()  # all are a "heart" without their colours
