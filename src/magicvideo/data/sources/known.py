"""Which source a folder is."""

from pathlib import Path

from magicvideo.data.sources import fluent_emoji, folder
from magicvideo.data.sources.source import Source
from magicvideo.errors import UserError


def open_source(path: Path, holdout: float = 0.0) -> Source:
    """Return the source that lies in a folder: fetched emoji, or anybody's video files.

    Args:
        path: The folder.
        holdout: Share of the clips of a folder of videos that training does not see.

    Raises:
        UserError: If it is no folder, holds no file, or its metadata is broken.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name one with clips in it.")
    if (path / fluent_emoji.MARKER).is_file():
        if holdout:
            raise UserError(
                "--holdout is for folders of videos; the emoji have a split of their own."
            )
        return fluent_emoji.find_clips(path)
    source = folder.find_clips(path, holdout)
    if not source.candidates and not source.skipped:
        raise UserError(f"{path} holds no file; put videos with captions into it.")
    return source
