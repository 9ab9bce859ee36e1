"""The page that a benchmark writes."""

from pathlib import Path

from magicvideo.atomic_io import atomic_file


def publish(text: str, output: Path | None) -> None:
    """Print a page, and write it to a file if one is named."""
    print(text)
    if output is not None:
        with atomic_file(output) as partial:
            partial.write_text(text, encoding="utf-8")
