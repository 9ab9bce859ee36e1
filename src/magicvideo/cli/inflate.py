"""`magicvideo inflate`: Stable Diffusion becomes a video model."""

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
Output = Annotated[Path, typer.Argument(help="Model folder to make.")]
Frames = Annotated[int, typer.Option(min=1, help="Key frames of a video.")]
Size = Annotated[
    int | None,
    typer.Option(help="Pixels a side; by default what Stable Diffusion was trained with."),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the tokenizer, which a single file does not hold; by default the "
        "folder `tokenizer` beside the file."
    ),
]
ImageEncoder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of CLIP's vision tower; by default the safety checker's, which is the "
        "same. Without one the model takes no pictures."
    ),
]
Prediction = Annotated[
    Literal["epsilon", "v_prediction"] | None,
    typer.Option(help="What a single file of Stable Diffusion 2.x predicts."),
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
    """Make a video model that starts as Stable Diffusion, frame by frame; then train it.

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
    """Say what became of the weights of every component, and where the model is."""
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
        f"\n{output} holds the model. Its new parts are neutral: train it before it moves.",
        markup=False,
    )
