"""The option `--lora` of `magicvideo generate`: what was written, into a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from magicvideo.errors import UserError

if TYPE_CHECKING:
    from magicvideo.pipelines.request import LoraRef
    from magicvideo.pipelines.text_to_video import MagicVideoPipeline

Loras: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:SCALE]",
        help="A LoRA (.safetensors) and its scale, 1 by default; several add up.",
    ),
]


def load_loras(pipeline: "MagicVideoPipeline", written: list[str]) -> None:
    """Merge LoRAs into a loaded model, in the order in which they were written.

    Raises:
        UserError: If a file cannot be read or does not fit the model.
    """
    for text in written:
        path, scale = _split(text)
        pipeline.load_lora(path, 1.0 if scale is None else scale)


def load_recorded_loras(
    pipeline: "MagicVideoPipeline", recorded: tuple["LoraRef", ...], written: list[str]
) -> None:
    """Merge the LoRAs of a video into a loaded model, out of the files that were written.

    Raises:
        UserError: If a file is missing, foreign or another than it was, or its scale is.
    """
    from magicvideo.pipelines.lora import lora_hash

    given = {lora_hash(path): (path, scale) for path, scale in map(_split, written)}
    for use in recorded:
        if use.sha256 not in given:
            raise UserError(
                f"The video was made with the LoRA {use.name} of SHA-256 {use.sha256}, which is "
                f"{'none of those named' if given else 'not named'}; name its file with --lora."
            )
        path, scale = given[use.sha256]
        if scale not in (None, use.scale):
            raise UserError(
                f"The scale of {path} is {scale:g} and was {use.scale:g} in the video; leave the "
                "scale out."
            )
    known = {use.sha256 for use in recorded}
    if foreign := [path for key, (path, _) in given.items() if key not in known]:
        raise UserError(f"The video was made without the LoRA {foreign[0]}; leave it out.")
    for use in recorded:
        pipeline.load_lora(given[use.sha256][0], use.scale)


def _split(text: str) -> tuple[Path, float | None]:
    """Return the file and the scale of FILE[:SCALE]; a colon may be part of the file's name."""
    name, _, last = text.rpartition(":")
    if not name or Path(text).exists() or last.endswith(".safetensors"):
        return Path(text), None
    try:
        return Path(name), float(last)
    except ValueError:
        raise UserError(
            f"The scale {last!r} of the LoRA {name} is no number; write --lora {name}:0.8, or "
            "leave it out."
        ) from None
