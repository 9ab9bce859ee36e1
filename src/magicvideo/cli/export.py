"""`magicvideo export`: exports a run as a model folder, or the image U-Net of a model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from magicvideo.cli.console import say
from magicvideo.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of a training run, such as runs/emoji; with --image-model a model folder."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder to create.")],
    precision: Annotated[
        Literal["fp16", "fp32"], typer.Option(help="Precision of the stored weights.")
    ] = "fp16",
    image_model: Annotated[
        bool,
        typer.Option(
            "--image-model",
            help="Write the image network of a model as diffusers' UNet2DConditionModel.",
        ),
    ] = False,
    card: Annotated[
        Path | None,
        typer.Option(help="Markdown to add to the model card: data, limits and results."),
    ] = None,
) -> None:
    """Export a training run as a model folder.

    Examples:
      magicvideo export runs/emoji models/emoji
      magicvideo export runs/emoji models/emoji --card recipes/emoji_card.md
      magicvideo generate "a cat face, blue background" --model models/emoji
      magicvideo export --image-model models/emoji models/emoji-unet
    """
    from magicvideo.atomic_io import lock_outputs

    if image_model and card is not None:
        raise UserError("--card describes a complete model; omit it with --image-model.")
    with lock_outputs([output.absolute()]):
        if image_model:
            _export_image_model(source, output, half=precision == "fp16")
            return
        from magicvideo.training.export import export as export_run

        export_run(source, output, precision, card)
    say(f"{output} is the model; use it with --model {output}.")


def _export_image_model(model: Path, output: Path, *, half: bool) -> None:
    from magicvideo.convert.extract_unet import export_image_model

    done = export_image_model(model, output, half=half)
    say(f"{done.folded} adaptors of the first frame are folded into convolutions.")
    if done.scaled_residuals:
        say(
            f"{done.scaled_residuals} more scale a residual connection too, up to "
            f"{done.largest:.3f} away from 1, for which an image network has no place; there the "
            "scale is left out."
        )
    say(f"{done.left_out} temporal attention layers are omitted.")
    say(f"{output} is the image network; diffusers loads it as UNet2DConditionModel.")
