import pytest

from magicvideo.data.sources.fluent_emoji import MARKER
from magicvideo.data.sources.known import open_source
from magicvideo.errors import UserError


def test_sources_are_known_by_what_lies_in_them(shapes, tmp_path):
    assert open_source(shapes).name == "folder"
    (tmp_path / MARKER).touch()
    source = open_source(tmp_path)
    assert (source.name, len(source.candidates), len(source.skipped)) == ("fluent-emoji", 0, 2014)
    with pytest.raises(UserError, match="have a split of their own"):
        open_source(tmp_path, holdout=0.1)


def test_no_folder_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no file"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        open_source(tmp_path / "absent")
