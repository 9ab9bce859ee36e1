"""Names of outputs: made from prompts, or from a pattern."""

import re
import unicodedata
from pathlib import Path

from magicvideo.errors import UserError
from magicvideo.media.formats import FORMATS, format_of

_FIELDS = ("index", "slug", "seed")


def slug_of(prompt: str) -> str:
    """Return a short name of letters, digits and hyphens; it can lead to no other folder."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = "-".join(re.findall(r"[a-z0-9]+", plain))
    return words[:60].rstrip("-") or "video"


def beside(video: Path, made: str) -> Path:
    """Return a name for what is made of a video: beside it, in its format or else as MP4."""
    suffix = video.suffix.lower()
    if suffix.removeprefix(".") not in FORMATS or suffix == ".png":
        suffix = ".mp4"
    return video.with_name(f"{video.stem}-{made}{suffix}")


def storable(path: Path, height: int, width: int) -> Path:
    """Return a made name, as WebP where the format of the name has no odd sides and one is odd."""
    is_odd = height % 2 or width % 2
    return path.with_suffix(".webp") if is_odd and format_of(path) in ("mp4", "webm") else path


def output_paths(
    output: Path | None, names: list[str], seeds: list[int], chosen: str | None
) -> list[Path]:
    """Return where each video goes; all are of one format.

    Args:
        output: None for made names in the present folder; a file; a folder (one that exists or,
            for several videos, a new one) for made names in it; for PNG frames of one video their
            folder; or a pattern with {index}, {slug} and {seed}.
        names: What each video is called after, its prompt.
        seeds: Seed of each video.
        chosen: Format by name, or None to tell it by the suffix (MP4 for made names).

    Raises:
        UserError: If the format is unknown, a field of the pattern is, or two names are the same.
    """
    pattern = _pattern(output, len(names), chosen)
    digits = len(str(len(names)))
    paths = []
    for index, (name, seed) in enumerate(zip(names, seeds, strict=True), start=1):
        values = {"index": f"{index:0{digits}}", "slug": slug_of(name), "seed": str(seed)}
        path = Path(_fill(pattern, values))
        if chosen is None and not path.suffix:
            raise UserError(
                f"{path} has no suffix; end it in .mp4, .webm, .webp or .gif, or add --format png "
                "for a folder of frames."
            )
        format_of(path, chosen)
        if path in paths:
            raise UserError(
                f"Several videos would be {path}; put {{index}}, {{slug}} or {{seed}} into "
                "--output, or name a folder."
            )
        paths.append(path)
    return paths


def _pattern(output: Path | None, count: int, chosen: str | None) -> str:
    ending = "" if chosen == "png" else f".{chosen or 'mp4'}"
    if output is None:
        return "{slug}-{seed}" + ending
    if "{" in str(output):
        return str(output)
    if count > 1 and (output.is_dir() or not output.suffix):
        return f"{output}/{{index}}-{{slug}}{ending}"
    if output.is_dir() and chosen != "png":
        return f"{output}/{{slug}}-{{seed}}{ending}"
    return str(output)


def _fill(pattern: str, values: dict[str, str]) -> str:
    def value_of(match: re.Match[str]) -> str:
        if match[1] not in values:
            allowed = ", ".join(f"{{{name}}}" for name in _FIELDS)
            raise UserError(f"The output pattern holds {match[0]}; it can hold {allowed}.")
        return values[match[1]]

    return re.sub(r"\{(\w*)\}", value_of, pattern)
