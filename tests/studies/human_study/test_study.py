import pytest

from magicvideo.errors import UserError
from magicvideo.pipelines.request import GenerationSettings
from studies.human_study.study import Study, StudyArm, open_study, read_study

A, B = (StudyArm(name=name, kind="videos", hash=name * 3) for name in ("one", "two"))
PROMPTS = [f"prompt {number}" for number in range(40)]
WANTED = {"a": A, "b": B, "prompts": PROMPTS, "seed": 3, "settings": GenerationSettings(fps=7.0)}


def study_with(salt):
    return Study(a=A, b=B, prompts=tuple(PROMPTS), seed=3, settings=WANTED["settings"], salt=salt)


def test_orders_and_sides_depend_only_on_the_salt_and_the_rater():
    study = study_with("salt")
    assert study.order("Ada") == study_with("salt").order("Ada")
    assert sorted(study.order("Ada")) == list(range(40))
    orders = [study.order("Ada"), study.order("Bo"), study_with("pepper").order("Ada")]
    assert len(set(map(tuple, orders))) == 3
    sides = {
        (salt, rater): "".join(study_with(salt).left(rater, pair) for pair in range(40))
        for salt in ("salt", "pepper")
        for rater in ("Ada", "Bo")
    }
    assert len(set(sides.values())) == 4
    for row in sides.values():
        assert 10 <= row.count("a") <= 30  # 40 fair coins leave this once in 1000 times


def test_video_names_differ_and_depend_on_the_salt(tmp_path):
    names = set(study_with("salt").videos(tmp_path))
    assert len(names) == 80
    assert not names & set(study_with("pepper").videos(tmp_path))


def test_a_study_is_stored_and_found_again(tmp_path):
    begun = open_study(tmp_path / "new", **WANTED)
    assert open_study(tmp_path / "new", **WANTED) == begun == read_study(tmp_path / "new")
    assert open_study(tmp_path / "other", **WANTED).salt != begun.salt


@pytest.mark.parametrize(
    "change",
    [
        {"a": B},
        {"b": A},
        {"prompts": PROMPTS[1:]},
        {"seed": 4},
        {"settings": GenerationSettings(fps=8.0)},
    ],
)
def test_another_study_in_the_same_folder_is_refused(tmp_path, change):
    open_study(tmp_path, **WANTED)
    with pytest.raises(UserError, match=f"another value of {next(iter(change))}, to which"):
        open_study(tmp_path, **WANTED | change)


def test_a_folder_without_a_study_gives_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no study; create one with"):
        read_study(tmp_path / "nowhere")
    (tmp_path / "study.json").write_text('{"salt": 3}')
    with pytest.raises(UserError, match=r"study\.json is damaged"):
        read_study(tmp_path)
