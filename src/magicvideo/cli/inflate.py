"""`magicvideo inflate`: initializes a video model from Stable Diffusion."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from magicvideo.convert.stable_diffusion import TransferReport

SourceModel = Annotated[
    Path,
    typer.Argument(
        help="Stable Diffusion 1.x or 2.x: a folder in diffusers' format, or one "
        ".safetensors or .ckpt file."
    ),
]
Output = Annotated[Path, typer.Argument(help="Model folder to create.")]
Frames = Annotated[int, typer.Option(min=1, help="Number of key frames.")]
Size = Annotated[
    int | None,
    typer.Option(
        help="Side of the frames in pixels; by default as in the training of Stable Diffusion."
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the tokenizer, for a single file; by default the folder `tokenizer` next "
        "to it."
    ),
]
ImageEncoder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of CLIP's image encoder; by default that of the safety checker, which is the "
        "same. Without one the model does not accept images."
    ),
]
Prediction = Annotated[
    Literal["epsilon", "v_prediction"] | None,
    typer.Option(help="Prediction type of a single file of Stable Diffusion 2.x."),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inflate")(inflate)


def inflate(
    source: SourceModel,
    output: Output,
    frames: Frames = 16,
    size: Size = None,
    tokenizer: Tokenizer = None,
    image_encoder: ImageEncoder = None,
    prediction: Prediction = None,
) -> None:
    """Initialize a video model from Stable Diffusion, for training.

    Examples:
      magicvideo inflate stable-diffusion-v1-5 models/start --size 256
      magicvideo inflate v1-5-pruned.safetensors models/start --tokenizer stable-diffusion/tokenizer
    """
    from magicvideo.atomic_io import lock_outputs
    from magicvideo.convert.stable_diffusion import inflate_stable_diffusion

    with lock_outputs([output.absolute()]):
        accounts = inflate_stable_diffusion(
            source,
            output,
            num_frames=frames,
            size=size,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            prediction=prediction,
        )
    _tell(accounts, output)


def _tell(accounts: "Sequence[TransferReport]", output: Path) -> None:
    """Report the weights of every component, and the path of the model."""
    from rich.console import Console
    from rich.table import Table

    table = Table("component", box=None, pad_edge=False)
    for column in ("copied", "new", "refused"):
        table.add_column(column, justify="right")
    for account in accounts:
        counts = (account.copied, account.new, account.refused)
        table.add_row(account.component, *(f"{count:,}" for count in counts))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for account in accounts:
        for reason, count in account.reasons.items():
            console.print(f"refused     {account.component}: {count:,} {reason}", markup=False)
    console.print(
        f"\n{output} is the model. Its temporal layers are untrained: train it before generating "
        "videos.",
        markup=False,
    )
