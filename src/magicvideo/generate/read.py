"""Reading back, from a finished file, the request that made it."""

from pathlib import Path

from magicvideo.errors import UserError
from magicvideo.generate.animations import read_animation_text
from magicvideo.generate.containers import read_container_text
from magicvideo.generate.formats import FIRST_FRAME
from magicvideo.generate.request import Request, from_json


def read_request(path: Path) -> Request:
    """Return the request that made a file, or a folder of PNG frames.

    Raises:
        UserError: If there is no such file, or it holds no request.
    """
    source = path / FIRST_FRAME if path.is_dir() else path
    if not source.is_file():
        raise UserError(f"{source} does not exist.")
    by_pillow = source.suffix.lower() in (".gif", ".webp", ".png")
    try:
        text = read_animation_text(source) if by_pillow else read_container_text(source)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{source} cannot be read as a video: {error}.") from None
    request = None if text is None else from_json(text)
    if request is None:
        raise UserError(
            f"{source} does not say how it was made; it is not from magicvideo, or a program that "
            "copied it left that out."
        )
    return request
